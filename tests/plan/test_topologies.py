"""Devices that are not here: their names, their wires, and meshes on them."""

import os
from typing import Any

import numpy as np
import pytest

from research.errors import UserError
from research.parallel import chips
from research.plan import topologies
from tests import small
from tests.plan.cases import planned


@pytest.mark.parametrize(
    ("name", "devices", "chip"),
    [("v5p:4x4x4", 64, "v5p"), ("v5e:16x16", 256, "v5e"), ("gpu:h100:8x4", 32, "h100"), ("h200:16", 16, "h200")],
)
def test_topologies_by_name(name: str, devices: int, chip: str) -> None:
    found = topologies.parse(name)
    assert (found.num_devices, found.chip.name) == (devices, chip)
    assert len({device.id for device in found.devices()}) == devices


@pytest.mark.parametrize("name", ["v9:2x2", "v5p", "v5p:4x4", "v5e:0x4", "v5e:axb", "gpu:h100", ""])
def test_unknown_topologies_are_refused(name: str) -> None:
    with pytest.raises(UserError) as caught:
        topologies.parse(name)
    small.assert_one_sentence(str(caught.value), "--topology")


@pytest.mark.parametrize("name", ["v5e:16x16", "v6e:2x4", "v5p:2x2x1", "v5p:4x4x44", "v5p:16x16x24", "v4:16x16x16"])
def test_documented_slices_are_accepted(name: str) -> None:
    assert topologies.parse(name).name == name


def test_cpus_share_the_memory_of_this_machine() -> None:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert [topologies.parse(f"cpu:{number}").chip.hbm_bytes for number in (1, 8)] == [whole, whole // 8]


def test_slices_belong_to_tpus() -> None:
    assert topologies.parse("v5e:2x2", 2).num_devices == 8
    for name, slices in (("gpu:h100:8x2", 2), ("v5e:2x2", 0)):
        with pytest.raises(UserError, match="--slices"):
            topologies.parse(name, slices)


def test_a_ring_carries_twice_what_a_line_does_and_a_network_least() -> None:
    def bandwidth(topology: str, slices: int = 1, axis: str = "fsdp", **changes: Any) -> tuple[str, float]:
        found = planned(topology, slices, train__batch_size=64, **changes)
        wire = topologies.wire(found.topology, found.assembly.mesh, (axis,))
        return wire.network, wire.bandwidth

    link = chips.CHIPS["v5e"].link_bandwidth
    assert bandwidth("v5e:4x4") == ("torus", 2 * link)  # two sides of four chips, neither of which wraps
    assert bandwidth("v5e:16x1") == ("torus", 2 * link)  # one ring
    assert bandwidth("v5e:4x1") == ("torus", link)
    assert bandwidth("v5p:4x4x4") == ("torus", 6 * chips.CHIPS["v5p"].link_bandwidth)
    slow = chips.CHIPS["v5e"].network_bandwidth
    assert bandwidth("v5e:2x2", 2, axis="replica", parallel__mesh__replica=2) == ("network", slow)
    assert bandwidth("gpu:h100:8x1") == ("node", chips.CHIPS["h100"].link_bandwidth)
    assert bandwidth("gpu:h100:8x2") == ("network", chips.CHIPS["h100"].network_bandwidth)


@pytest.mark.parametrize(
    ("name", "mentioned"),
    [
        ("gpu:h100:12", ["12 GPUs", "gpu:h100:4x3"]),
        ("gpu:v5e:2x2", ["gpu:v5e:2x2"]),
        ("v5e:64x64", ["v5e:64x64", "1, 2, 4, 8 or 16"]),
        ("v6e:3x3", ["v6e:3x3", "1, 2, 4, 8 or 16"]),
        ("v5p:4x4x6", ["v5p:4x4x6", "multiple of 4"]),
        ("v5p:16x20x28", ["8,960 chips", "6,144"]),
        ("v4:16x16x20", ["5,120 chips", "4,096"]),
    ],
)
def test_what_is_no_topology_is_refused(name: str, mentioned: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        topologies.parse(name)
    small.assert_one_sentence(str(caught.value), *mentioned)


@pytest.mark.parametrize("slices", [1, 2])
def test_an_axis_may_take_a_part_of_a_side_of_the_torus(slices: int) -> None:
    axes = {"parallel__mesh__tensor": 2, "parallel__mesh__replica": slices}
    found = planned("v5p:4x4x4", slices, parallel__preset="fsdp_tp", train__batch_size=256, **axes)
    mesh = found.assembly.mesh
    assert mesh.shape["tensor"] == 2 and mesh.shape["fsdp"] == 32 and mesh.size == 64 * slices
    chips = mesh.devices.reshape(-1, 2)
    near = [np.abs(np.subtract(a.coords, b.coords)).sum() for a, b in chips if a.slice_index == b.slice_index]
    assert len(near) == len(chips) and set(near) == {1}

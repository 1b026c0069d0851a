"""Sizes of mesh axes, and rows between hosts and meshes."""

import subprocess
import sys
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from research.errors import UserError
from research.parallel import arrays, devices, mesh
from research.parallel.rules import BATCH
from research.settings import AXES, MeshSettings, ParallelSettings
from tests.small import assert_one_sentence


def parallel(preset: str = "dp", **axes: int) -> ParallelSettings:
    return ParallelSettings(preset=preset, mesh=MeshSettings(**axes))


@pytest.mark.parametrize(
    ("preset", "asked", "count", "sizes"),
    [
        ("dp", {}, 8, {"data": 8}),
        ("dp", {}, 1, {}),
        ("fsdp", {}, 8, {"fsdp": 8}),
        ("tp", {}, 8, {"tensor": 8}),
        ("fsdp_tp", {}, 8, {"fsdp": 4, "tensor": 2}),
        ("fsdp_tp", {}, 2, {"tensor": 2}),
        ("fsdp_tp", {}, 1, {}),
        ("fsdp_tp", {"tensor": 4}, 8, {"fsdp": 2, "tensor": 4}),
        ("fsdp_tp", {"tensor": 1}, 8, {"fsdp": 8}),
        ("fsdp_tp", {"tensor": -1}, 8, {"tensor": 8}),
        ("fsdp_tp", {"tensor": -1, "fsdp": 2}, 8, {"fsdp": 2, "tensor": 4}),
        ("fsdp_tp", {"fsdp": 4}, 8, {"fsdp": 4, "tensor": 2}),
        ("fsdp", {"replica": 2}, 8, {"replica": 2, "fsdp": 4}),
        ("fsdp", {"data": -1}, 8, {"data": 8}),
        ("fsdp", {"data": -1, "fsdp": 2}, 8, {"data": 4, "fsdp": 2}),
        ("dp", {"data": 8}, 8, {"data": 8}),
        ("dp", {"data": 2, "fsdp": 2, "tensor": 2}, 8, {"data": 2, "fsdp": 2, "tensor": 2}),
        ("dp", {"data": 1, "sequence": -1}, 8, {"sequence": 8}),
        ("dp", {"data": -1}, 1, {}),
    ],
)
def test_axis_sizes(preset: str, asked: dict[str, int], count: int, sizes: dict[str, int]) -> None:
    found = mesh.axis_sizes(parallel(preset, **asked), count)
    assert found == dict.fromkeys(AXES, 1) | sizes
    assert tuple(found) == AXES


@pytest.mark.parametrize(
    ("preset", "asked", "count", "mentioned"),
    [
        ("dp", {"data": 4}, 8, ["parallel.mesh.data=4", "8"]),
        ("dp", {"data": 16}, 8, ["parallel.mesh.data=16", "8"]),
        ("dp", {"fsdp": 3}, 8, ["parallel.mesh.fsdp=3", "8 devices"]),
        ("fsdp_tp", {}, 3, ["parallel.mesh.tensor=2", "3 devices"]),
        ("tp", {"tensor": 2}, 1, ["parallel.mesh.tensor=2", "1"]),
        ("dp", {"data": -1, "fsdp": -1}, 8, ["data and fsdp", "-1"]),
        ("dp", {"fsdp": 0}, 8, ["parallel.mesh.fsdp=0"]),
        ("dp", {"data": 1}, 8, ["1 devices", "8"]),
    ],
)
def test_sizes_that_cannot_be_are_one_sentence(
    preset: str, asked: dict[str, int], count: int, mentioned: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        mesh.axis_sizes(parallel(preset, **asked), count)
    assert_one_sentence(str(caught.value), *mentioned)


def test_a_mesh_has_all_axes_and_all_devices() -> None:
    made = mesh.make_mesh(parallel("fsdp_tp", replica=2))
    assert made.axis_names == AXES and made.axis_types == (AxisType.Auto,) * len(AXES)
    assert dict(made.shape) == dict.fromkeys(AXES, 1) | {"replica": 2, "fsdp": 2, "tensor": 2}
    assert set(made.devices.flat) == set(jax.devices())
    assert mesh.make_mesh(parallel(), jax.devices()[:1]).size == 1


@pytest.mark.parametrize(
    ("fields", "environment", "mentioned"),
    [
        ({"num_processes": 2, "process_id": 1}, {}, "parallel.coordinator_address"),
        ({"process_id": 0}, {}, "parallel.coordinator_address"),
        ({"coordinator_address": "localhost:1", "num_processes": 2, "process_id": 5}, {}, "parallel.process_id=5"),
        ({"coordinator_address": "localhost:1"}, {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two"),
    ],
)
def test_a_cluster_that_is_half_described_is_refused(
    fields: dict[str, Any], environment: dict[str, str], mentioned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        mesh.start_processes(ParallelSettings(**fields))
    assert_one_sentence(str(caught.value), mentioned)


def test_an_address_alone_is_enough_only_where_the_place_says_the_rest() -> None:
    """In a process of its own: JAX joins before any device is touched. On a TPU VM its metadata say the rest."""
    program = (
        "from research.errors import UserError\nfrom research.parallel import mesh\n"
        "from research.settings import ParallelSettings\n"
        "try:\n    mesh.start_processes(ParallelSettings(coordinator_address='localhost:1'))\n"
        "except UserError as error:\n    print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert_one_sentence(ran.stdout.strip(), "parallel.num_processes=None", "parallel.coordinator_address")


def test_what_a_launcher_leaves_to_the_place_is_asked_of_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    """`launch.tpu_vm` and `launch.skypilot` export the address of the first host of a slice and nothing else."""
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:8476")
    with mock.patch.object(jax.distributed, "initialize") as initialize:
        mesh.start_processes(ParallelSettings())
    initialize.assert_called_once_with(None, None, None)


def test_one_process_agrees_with_itself() -> None:
    mesh.agree({"settings": "a", "commit": "b"})


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6e", 918e12),
        ("NVIDIA H100 80GB", 989e12),
        ("cpu", None),
    ],
)
def test_the_peak_of_a_device_is_that_of_its_longest_name(kind: str, peak: float | None) -> None:
    assert devices.peak_flops(mock.Mock(spec=jax.Device, device_kind=kind)) == peak


@pytest.mark.parametrize(("kind", "rate"), [("TPU v4", 1.0), ("TPU v5p", 2.0), ("NVIDIA H100 80GB", 2.0), ("cpu", 2.0)])
def test_products_in_int8_are_as_much_faster_as_the_data_sheet_says(kind: str, rate: float) -> None:
    assert devices.int8_rate(mock.Mock(spec=jax.Device, device_kind=kind)) == pytest.approx(rate, rel=0.01)


# --- rows ---------------------------------------------------------------------------------------------------------

MESHES = {
    "dp": parallel("dp"),
    "fsdp": parallel("fsdp"),
    "tp": parallel("tp"),
    "fsdp_tp": parallel("fsdp_tp"),
    "replica": parallel("fsdp_tp", replica=2),
}


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_global_arrays_are_the_rows_of_the_hosts(name: str, accumulation: int) -> None:
    made = mesh.make_mesh(MESHES[name])
    rng = np.random.default_rng(0)
    batch = {
        "tokens": rng.integers(0, 99, (accumulation, 16, 5), dtype=np.int32),
        "weights": rng.random((accumulation, 16, 5)).astype(np.float32),
        "labels": rng.integers(0, 2, (accumulation, 16), dtype=np.int32),
    }
    held = arrays.local_rows(16, made)
    np.testing.assert_array_equal(held, np.arange(16))
    found = arrays.to_global(batch, 16, held, made)
    shards = int(np.prod([made.shape[axis] for axis in BATCH]))
    for key, array in found.items():
        np.testing.assert_array_equal(array, batch[key])
        assert array.dtype == batch[key].dtype
        assert array.sharding.is_equivalent_to(arrays.batch_sharding(made), array.ndim)
        assert {shard.data.shape[:2] for shard in array.addressable_shards} == {(accumulation, 16 // shards)}
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(shard.data, batch[key][shard.index])


def test_rows_are_sharded_over_every_axis_that_carries_data() -> None:
    assert arrays.batch_sharding(mesh.make_mesh(parallel())).spec == PartitionSpec(None, BATCH)
    assert set(AXES) - set(BATCH) == {"sequence", "tensor"}


@pytest.mark.parametrize(
    ("name", "batch_size", "accumulation", "fits"),
    [
        ("dp", 16, 1, True),
        ("dp", 16, 2, True),
        ("dp", 16, 4, False),
        ("dp", 12, 1, False),
        ("tp", 1, 1, True),
        ("fsdp_tp", 4, 1, True),
        ("fsdp_tp", 6, 1, False),
        ("replica", 4, 1, True),
        ("replica", 4, 2, False),
    ],
)
def test_a_batch_that_the_mesh_does_not_divide_is_one_sentence(
    name: str, batch_size: int, accumulation: int, fits: bool
) -> None:
    made: Any = mesh.make_mesh(MESHES[name])
    if fits:
        arrays.check_rows(batch_size, accumulation, made)
        return
    with pytest.raises(UserError) as caught:
        arrays.check_rows(batch_size, accumulation, made)
    mentioned = [f"train.batch_size={batch_size}"] + (
        [f"train.accumulation={accumulation}"] if accumulation > 1 else []
    )
    assert_one_sentence(str(caught.value), *mentioned)
    with pytest.raises(UserError, match=rf"evaluate\.batch_size={batch_size}"):
        arrays.check_rows(batch_size, accumulation, made, key="evaluate.batch_size")

"""The table of slices is the one that plans are made with."""

import pytest

from launch.devices import GENERATIONS, parse
from research.errors import UserError
from research.parallel.chips import CHIPS
from research.plan import topologies
from tests.small import assert_one_sentence

SLICES = ["v4:2x2x1", "v4:4x4x4", "v5p:2x2x2", "v5p:4x4x8", "v5e:1x1", "v5e:2x2", "v5e:4x4", "v5e:16x16", "v6e:8x16"]


def test_generations_are_those_of_plans() -> None:
    planned = {name: (chip.dimensions, chip.per_host) for name, chip in CHIPS.items() if chip.platform == "tpu"}
    assert {name: (one.dimensions, one.per_host) for name, one in GENERATIONS.items()} == planned


@pytest.mark.parametrize("name", SLICES)
def test_hosts_and_chips_are_those_of_plans(name: str) -> None:
    found, planned = parse(name), topologies.parse(name)
    assert (found.chips, found.shape) == (planned.num_devices, planned.shape)
    assert found.hosts == len({device.process_index for device in planned.devices()})
    assert found.hosts * found.per_host == found.chips


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("v5p:4x4x4", "v5p-128"),
        ("v5p:2x2x1", "v5p-8"),
        ("v5p:8x4x4", "v5p-256"),
        ("v4:2x2x4", "v4-32"),
        ("v5e:1x1", "v5litepod-1"),
        ("v5e:2x4", "v5litepod-8"),
        ("v5e:16x16", "v5litepod-256"),
        ("v6e:4x4", "v6e-16"),
    ],
)
def test_a_slice_has_the_name_that_cloud_tpu_gives_it(name: str, called: str) -> None:
    assert parse(name).accelerator_type == called


@pytest.mark.parametrize("name", ["v5p:4x4x16", "v5p:4x4x12", "v5e:2x8"])
def test_a_shape_that_no_name_means_is_refused(name: str) -> None:
    with pytest.raises(UserError) as refused:
        _ = parse(name).accelerator_type
    assert_one_sentence(str(refused.value), f"--devices={name}")


@pytest.mark.parametrize(
    "name", ["", "tpu", "v5p", "v5p:", "v5p:0x4x4", "v5p:4x4", "v5e:3x3", "gpu", "gpu:0", "gpu:h100", "cpu:8"]
)
def test_what_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(UserError) as refused:
        parse(name)
    assert_one_sentence(str(refused.value), f"--devices={name}")


def test_gpus_and_cpus() -> None:
    assert parse("cpu") == parse("cpu") and parse("cpu").kind == "cpu"
    assert (parse("gpu:8").name, parse("gpu:8").per_host) == ("", 8)
    assert (parse("gpu:h100:4").name, parse("gpu:h100:4").per_host) == ("h100", 4)

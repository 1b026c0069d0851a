"""Kernels are chosen by platform, mesh and name, each with a reason; what cannot be is one sentence."""

import dataclasses
from typing import Any

import pytest

from research.errors import UserError
from research.kernels import Layout, alone, attention, choice, choose, experts, grouped_experts, products, vocabulary
from research.kernels.fused import Fused
from research.kernels.sharded_attention import ShardedAttention
from research.kernels.splash import Splash
from research.settings import ParallelSettings
from tests.kernels.meshes import layout
from tests.small import assert_one_sentence


def elsewhere(platform: str, devices: int = 8, **axes: int) -> Layout:
    """A layout that says that its devices are of another platform: nothing is run on them here."""
    of = layout("fsdp", devices, **axes)

    class Elsewhere(Layout):
        @property
        def platform(self) -> str:
            return platform

    return Elsewhere(of.mesh, of.batch, of.weights)


def test_one_cpu_and_the_references_are_what_they_are_called() -> None:
    single = layout("dp", 1)
    assert choose(ParallelSettings(kernels="reference"), single) is choice.REFERENCE is alone("tpu")
    assert choose(ParallelSettings(kernels="reference"), layout("dp")) is choice.REFERENCE
    assert choose(ParallelSettings(), single) == dataclasses.replace(
        choice.CPU, reasons=choose(ParallelSettings(), single).reasons
    )
    assert alone("cpu") is choice.CPU


@pytest.mark.parametrize("kernels", [choice.CPU, choice.REFERENCE])
def test_the_names_that_are_recorded_are_those_of_the_kernels(kernels: choice.Kernels) -> None:
    rooms: dict[str, Any] = {"attention": attention, "vocabulary_loss": vocabulary, "product": products}
    rooms["activated"] = products
    rooms["experts"] = grouped_experts if kernels is choice.CPU else experts
    assert {name: getattr(rooms[name], own) for name, own in kernels.names} == {
        name: getattr(kernels, name) for name in rooms
    }


@pytest.mark.parametrize(
    ("platform", "devices", "asked", "name"),
    [
        ("tpu", 8, "auto", "splash"),
        ("tpu", 1, "auto", "splash"),
        ("gpu", 8, "auto", "cudnn"),
        ("cuda", 1, "auto", "cudnn"),
        ("cpu", 8, "auto", "blocked"),
        ("tpu", 8, "xla", "xla"),
        ("gpu", 8, "blocked", "blocked"),
        ("cpu", 8, "reference", "reference"),
    ],
)
def test_attention_is_chosen_by_platform_or_by_name(platform: str, devices: int, asked: str, name: str) -> None:
    of = elsewhere(platform, devices)
    made = choose(ParallelSettings(attention=asked), of)
    assert dict(made.names)["attention"] == name
    assert set(dict(made.names)) == set(dict(made.reasons)) and all(dict(made.reasons).values())
    inner = made.attention.inner if isinstance(made.attention, ShardedAttention) else made.attention
    assert isinstance(made.attention, ShardedAttention) == (devices > 1 and name not in ("splash", "reference"))
    expected = {"splash": Splash(of if devices > 1 else None), "cudnn": Fused("cudnn"), "xla": Fused("xla")}
    assert inner == expected.get(name, attention.BACKENDS.get(name))


@pytest.mark.parametrize(("asked", "around"), [("auto", False), ("gather", False), ("ring", True)])
def test_how_keys_are_seen_over_a_sequence_has_a_reason(asked: str, around: bool) -> None:
    made = choose(ParallelSettings(sequence_attention=asked), layout("fsdp_sp"))
    assert isinstance(made.attention, ShardedAttention) and made.attention.around == around
    assert dict(made.names)["sequence_attention"] == ("ring" if around else "gather")
    assert asked == "auto" or asked in dict(made.reasons)["sequence_attention"]


@pytest.mark.parametrize(
    ("changes", "mentioned"),
    [
        ({"attention": "splash"}, ["parallel.attention=splash", "TPU", "CPU"]),
        ({"attention": "cudnn"}, ["parallel.attention=cudnn", "GPU"]),
        (
            {"attention": "blocked", "kernels": "reference"},
            ["parallel.attention=blocked", "parallel.kernels=reference"],
        ),
        (
            {"attention": "xla", "sequence_attention": "ring"},
            ["parallel.sequence_attention=ring", "parallel.attention=xla"],
        ),
        ({"sequence_attention": "ring"}, ["parallel.sequence_attention=ring", "parallel.mesh.sequence"]),
    ],
)
def test_what_cannot_be_chosen_is_one_sentence(changes: dict[str, Any], mentioned: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        choose(ParallelSettings(**changes), layout("dp"))
    assert_one_sentence(str(caught.value), *mentioned)

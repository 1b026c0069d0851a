"""The real TPU compiler on topologies that are not here; `make test-tpu` runs these in an environment with libtpu.

Compiling takes minutes. The published models carry the mark `slow` beside `tpu`: `make test-tpu ALL=1` adds them.
"""

import functools
import importlib.util
from typing import Any

import pytest

from research import config
from research.plan import planning, search, topologies, verdict
from research.plan.planning import Plan
from tests import small

pytestmark = [
    pytest.mark.tpu,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: make test-tpu"),
]

GIB = 2**30
SMALL = {
    "tokenizer.vocab_size": 4096,
    "data.sequence_length": 512,
    "model.num_layers": 2,
    "model.embed_dim": 512,
    "model.num_heads": 4,
    "model.mlp_dim": 2048,
    "model.compute_dtype": "bfloat16",
    "train.batch_size": 16,
    "parallel.preset": "fsdp",
}
PUBLISHED: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "llama-7b": ("causal", "v5p:4x4x4", 1, {"train.batch_size": 256, "parallel.remat": "most"}),
    "llama-7b on v5e": (
        "causal",
        "v5e:16x16",
        1,
        {"train.batch_size": 1024, "data.sequence_length": 2048, "parallel.remat": "heads"},
    ),
    "llama-70b": ("causal", "v5p:8x8x8", 1, {"train.batch_size": 1024, "parallel.remat": "full"}),
    "llama-70b in two slices": (
        "causal",
        "v5p:4x8x8",
        2,
        {"train.batch_size": 1024, "parallel.remat": "full", "parallel.mesh.replica": 2},
    ),
    "mixtral-8x7b": (
        "causal",
        "v5p:4x4x4",
        1,
        {
            "train.batch_size": 64,
            "parallel.remat": "full",
            "parallel.preset": "fsdp_ep",
            "parallel.mesh.expert": 4,
            "parallel.mesh.fsdp": 16,
        },
    ),
    "bert-large": ("masked", "v5e:4x4", 1, {"parallel.remat": "dots"}),
}


# Bytes of a device (arguments, temporaries and program) that MaxText's published settings need for the same chips,
# tokens and recomputation: llama2-7b, 4 sequences a chip, of 4096 with `remat_policy=minimal` on v5p-128 (64 chips), of
# 2048 with `save_qkv_proj` on v5e-256; compiled by JAX 0.12.0 with libtpu 0.0.50.
MAXTEXT = {"llama-7b": 52.22e9, "llama-7b on v5e": 12.39e9}


@functools.cache
def planned(topology: str, slices: int = 1, **changes: Any) -> Plan:
    keys = SMALL | {name.replace("__", "."): value for name, value in changes.items()}
    return planning.plan(small.settings(keys), topologies.parse(topology, slices))


def test_the_compiler_agrees_with_the_analysis() -> None:
    found = planned("v5e:2x2")
    made = found.compiled
    assert made is not None and made.refused is None and found.fits
    assert found.memory.given == pytest.approx(made.memory["argument"], rel=0.03)
    assert made.kernels["attention"] == "splash" and made.custom_kernels >= 2
    assert made.unknown_loops == ()


def test_fsdp_moves_what_a_hand_count_says() -> None:
    """Each layer's weights are gathered twice in bfloat16 and its gradients scattered once, three quarters of each."""
    found = planned("v5e:2x2")
    assert {flow.axes for flow in found.flows} == {("fsdp",)}
    parameters = found.assembly.count.parameters
    gathers = 2 * parameters * 2 * 3 / 4
    scatters = {2: parameters * 2 * 3 / 4, 4: parameters * 4 * 3 / 4}
    sent = sum(flow.bytes for flow in found.flows)
    # Gradients travel as bfloat16 or as float32, by the compiler's choice; what else moves is small.
    assert gathers + scatters[2] <= sent <= 1.15 * (gathers + scatters[4])


def test_over_rings_weights_are_gathered_and_not_added_up() -> None:
    """A torus that the compiler takes for lines gathers by adding up padded shards: twice the bytes."""
    found = planned("v5p:4x4x4", train__batch_size=64)
    gathered = sum(flow.bytes for flow in found.flows if flow.kind == "all-gather")
    layers = 2 * (4 * 512 * 512 + 3 * 512 * 2048)  # weights of both, gathered forwards and backwards in bfloat16
    assert gathered >= 2 * layers * 2 * 63 / 64


def test_a_chip_is_given_options_that_its_compiler_takes() -> None:
    made = planned("v6e:2x2").compiled
    assert made is not None and made.kernels["attention"] == "splash" and made.custom_kernels >= 2


def test_what_does_not_fit_is_refused_with_a_change_that_compiles() -> None:
    found = planned("v5e:2x2", model__num_layers=16, data__sequence_length=2048, train__batch_size=128)
    assert not found.fits
    instead = search.nearest(found, compiles=True, tell=lambda line: None)
    assert instead is not None and instead.plan.counted and instead.plan.fits
    small.assert_one_sentence(verdict.sentence(found, instead), "activations", search.describe(instead.changes))


def test_slices_are_joined_by_replicas() -> None:
    found = planned("v5e:2x2", slices=2, parallel__mesh__replica=2)
    over = {flow.axes for flow in found.flows}
    assert any("replica" in axes for axes in over)
    assert found.memory.given == pytest.approx(found.compiled.memory["argument"], rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_fit(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    objective, topology, slices, changes = PUBLISHED[name]
    recipe = config.load_recipe(f"configs/{objective}.py:{name.split(' ')[0]}")
    given = {"parallel.preset": "fsdp", "model.compute_dtype": "bfloat16", **changes}
    settings = search.changed(config.to_settings(recipe), given)
    found = planning.plan(settings, topologies.parse(topology, slices))
    assert found.compiled is not None
    peer = f" (MaxText {MAXTEXT[name] / 1e9:.2f})" if name in MAXTEXT else ""
    used = f"{found.needed / 1e9:.2f} of {found.capacity / 1e9:.2f} GB a device{peer}, {settings.parallel.remat}"
    time = f"estimated {found.roofline.step_seconds:.2f} s a step, compiled in {found.compiled.seconds:.0f} s"
    with capsys.disabled():
        print(f"\n{name}, {found.topology.label}: {used}, {time}", flush=True)
    assert found.fits
    assert found.compiled.kernels["attention"] == "splash" and found.compiled.custom_kernels >= 2
    assert found.memory.given == pytest.approx(found.compiled.memory["argument"], rel=0.03)
    assert found.needed <= MAXTEXT.get(name, found.capacity)

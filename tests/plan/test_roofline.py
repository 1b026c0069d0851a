"""Laws of the estimate: operations, bytes that move, seconds, cost."""

import dataclasses
import functools
from typing import Any

import pytest

from research.objectives import accounting
from research.plan import planning, roofline, topologies
from research.train.assembly import Assembly
from tests import small
from tests.plan.cases import WIDE, planned

DECODER = {"model.architecture": "encoder_decoder"}
# Splash attention leaves out what a pattern hides, where it can be: in the last case in the attention to the encoder
# alone.
EXECUTED: dict[str, dict[str, Any]] = {
    "causal": {},
    "window": {"model.attention_window": 32, "model.attention_period": "lg"},
    "masked": {"objective.name": "masked"},
    "prefix": {"objective.name": "prefix"},
    "span_corruption": {"objective.name": "span_corruption", **DECODER},
    "experts": {"model.num_experts": 4},
    "experts with places": {"model.num_experts": 4, "model.expert_capacity": 0.5},
    "ring": {"parallel.preset": "fsdp_sp", "parallel.sequence_attention": "ring"},
    "lstm": {"model.architecture": "lstm"},
    "mlp": {"model.architecture": "mlp"},
    "seq2seq": {"objective.name": "seq2seq", **DECODER},
    "seq2seq, relative positions": {"objective.name": "seq2seq", "model.position": "relative", **DECODER},
}
QUANTISED: dict[str, Any] = {"model__num_layers": 2, "model__embed_dim": 256, "model__mlp_dim": 512}
THIN = {"model.embed_dim": 64, "model.num_heads": 4, "model.mlp_dim": 128, "model.num_layers": 2}


@functools.cache
def assembled(case: str, **changes: Any) -> Assembly:
    keys = WIDE | THIN | EXECUTED[case] | {name.replace("__", "."): value for name, value in changes.items()}
    return planning.assembled(small.settings(keys), topologies.parse("v5e:2x2"))


@pytest.mark.parametrize("case", EXECUTED)
def test_no_family_executes_less_than_is_required(case: str) -> None:
    assembly = assembled(case)
    tokens = assembly.settings.train.batch_size * assembly.raw_length
    found = roofline.executed(assembly)
    assert (
        tokens * assembly.count.required_flops * (1 - 1e-9) <= found.total <= 1.7 * tokens * assembly.count.model_flops
    )


@pytest.mark.parametrize(
    ("case", "pairs"),
    [
        ("causal", 2 * 256 * 257 / 2),
        ("masked", 2 * 256**2),
        ("window", 256 * 257 / 2 + 256 * 33 - 32 * 33 / 2),
        ("seq2seq", 2 * (256**2 + 256 * 257 / 2 + 256**2)),
        ("seq2seq, relative positions", 2 * 256**2),
    ],
)
def test_kernels_of_attention_compute_nine_products_of_what_is_seen(case: str, pairs: float) -> None:
    """Two forwards and seven backwards, of `2 * heads * head_dim` operations a pair; two more where computed again."""
    of_a_product = 16 * 2 * 64 * pairs
    assert roofline.executed(assembled(case)).kernels == pytest.approx(9 * of_a_product)
    again = roofline.executed(assembled(case, parallel__remat="full"))
    assert again.kernels == pytest.approx(11 * of_a_product)


@pytest.mark.parametrize("topology", ["v5e:2x2", "v4:2x2x1", "gpu:h100:4x1"])
def test_products_in_int8_go_at_their_own_peak(topology: str) -> None:
    """Forward and input gradient of the layers' projections, two of six operations a weight and token each."""
    chip = topologies.parse(topology).chip
    plain, coarse = planned(topology, **QUANTISED), planned(topology, model__quantisation="int8", **QUANTISED)
    weights = coarse.assembly.model.parameters().values()
    layers = sum(weight.size for weight in weights if weight.kind == "kernel" and "layers" in weight.dimensions)
    done = roofline.executed(coarse.assembly)
    assert done.int8 == pytest.approx(4 * layers * 16 * 256)
    assert done.total == pytest.approx(plain.roofline.executed_flops, rel=1e-6)
    faster = done.int8 * (1 / chip.peak_flops - 1 / chip.int8_flops) / 4 / roofline.ATTAINABLE
    assert plain.roofline.compute_seconds - coarse.roofline.compute_seconds == pytest.approx(faster, abs=1e-12)
    assert coarse.roofline.peak_flops == chip.int8_flops and plain.roofline.peak_flops == chip.peak_flops


def test_flops_are_those_of_the_model() -> None:
    found = planned()
    account = accounting.account(found.settings)
    assert found.roofline.model_flops == pytest.approx(account.model_flops)
    # A kernel leaves out what the mask hides and computes scores again: on any number of devices the same.
    assert account.required_flops <= found.roofline.executed_flops <= 1.2 * account.model_flops
    assert planned("v5e:4x4").roofline.executed_flops == pytest.approx(found.roofline.executed_flops, rel=1e-6)


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "gpu:h100:4x1"])
def test_more_work_takes_longer_and_more_devices_less(topology: str) -> None:
    step = planned(topology).roofline.step_seconds
    assert planned(topology, model__num_layers=8).roofline.step_seconds > step
    assert planned(topology, train__batch_size=32).roofline.step_seconds > step
    assert (
        planned(topology, parallel__remat="full").roofline.compute_seconds > planned(topology).roofline.compute_seconds
    )
    larger = {"v5e:2x2": "v5e:4x4", "v5p:2x2x1": "v5p:2x2x2", "gpu:h100:4x1": "gpu:h100:8x1"}[topology]
    assert planned(larger).roofline.compute_seconds < planned(topology).roofline.compute_seconds
    assert 0 < planned(topology).roofline.utilisation <= 1


def test_a_faster_chip_is_faster_and_time_is_never_below_its_parts() -> None:
    slow, fast = planned("v5e:2x2").roofline, planned("v6e:2x2").roofline
    assert fast.step_seconds < slow.step_seconds
    for roof in (slow, fast):
        assert roof.step_seconds >= max(roof.compute_seconds, roof.memory_seconds, *roof.communication.values())


def test_rates_days_and_cost_agree() -> None:
    found = dataclasses.replace(planned(), price=3.0).record()["estimate"]
    assert found["tokens_per_step"] == 16 * 256
    assert found["tokens_per_second"] == pytest.approx(16 * 256 / found["step_seconds"])
    assert found["chip_hours"] == pytest.approx(4 * 20 * found["step_seconds"] / 3600)
    assert found["cost"] == pytest.approx(3 * found["chip_hours"])


@pytest.mark.parametrize("topology", ["v5e:2x2", "gpu:h100:4x1"])
def test_computing_again_and_offloading_are_never_free(topology: str) -> None:
    none = planned(topology).roofline
    for remat in ("full", "dots", "offload"):
        found = planned(topology, parallel__remat=remat).roofline
        assert found.step_seconds >= none.step_seconds and found.hbm_bytes >= none.hbm_bytes
        assert ("host" in found.communication) == (remat == "offload")


def test_windows_leave_out_what_they_hide() -> None:
    near = planned(model__attention_window=16, model__attention_period="l")
    assert near.roofline.executed_flops < planned().roofline.executed_flops


def test_what_stores_weights_gathers_and_what_copies_them_adds_gradients() -> None:
    size = planned().assembly.count.parameters
    split = {(flow.kind, flow.axes): flow.bytes for flow in planned(parallel__preset="fsdp_sp").flows}
    assert split["reduce-scatter", ("fsdp", "sequence")] == pytest.approx(size * 4 * 3 / 4)
    assert not any(kind == "all-reduce" for kind, _ in split)
    experts = {"model__num_experts": 4, "parallel__mesh__expert": 2, "parallel__mesh__fsdp": 2}
    routed = planned(parallel__preset="fsdp", **experts)
    found = {(flow.kind, flow.axes): flow.bytes for flow in routed.flows}
    weights = routed.assembly.model.parameters().values()
    owned = sum(weight.size for weight in weights if "experts" in weight.dimensions)
    others = sum(weight.size for weight in weights) - owned
    assert found["reduce-scatter", ("fsdp",)] > 0 and ("all-to-all", ("expert",)) not in found
    assert found["all-reduce", ("expert",)] == pytest.approx(2 * 4 * others / 2 / 2)
    assert ("all-gather", ("fsdp",)) in found
    assert found["all-gather", ("fsdp",)] == pytest.approx(2 * 2 * (others + owned / 2) / 2)


def test_fsdp_gathers_twice_and_scatters_once_by_analysis() -> None:
    found = planned()
    size = found.assembly.count.parameters
    by_kind = {flow.kind: flow for flow in found.flows}
    assert by_kind["all-gather"].bytes == pytest.approx(2 * size * 2 * 3 / 4)
    assert by_kind["reduce-scatter"].bytes == pytest.approx(size * 4 * 3 / 4)


def test_what_slices_cost_besides_is_said_of_slices_alone() -> None:
    said = [" ".join(roofline.assumptions(topologies.parse("v5p:4x4x4", slices))) for slices in (1, 2)]
    assert ["padded shards" in text for text in said] == [False, True]

"""Bytes by analysis against those of compiled programs."""

import functools
import math
from typing import Any

import pytest

from research.models.flops import Count
from research.plan import compiler, memory, trace
from tests import small

CASES: dict[str, dict[str, Any]] = {
    "fsdp": {"parallel.preset": "fsdp", "parallel.layers": "scan"},
    "fsdp and tensor, accumulated": {"parallel.preset": "fsdp_tp", "train.accumulation": 2},
    "masked, data parallel": {"objective.name": "masked", "parallel.preset": "dp", "model.num_layers": 1},
}
LONG = {"parallel.layers": "scan", "data.sequence_length": 128, "model.embed_dim": 64}
EXPERTS = {"parallel.preset": "fsdp_ep", "model.num_experts": 4, "parallel.mesh.expert": 4}
CUT: dict[str, dict[str, Any]] = {
    "sequence": LONG | {"parallel.preset": "fsdp_sp", "parallel.mesh.sequence": 8},
    "ring": LONG | {"parallel.preset": "fsdp_sp", "parallel.mesh.sequence": 4, "parallel.sequence_attention": "ring"},
    "experts": LONG | EXPERTS,
    "experts with places": LONG | EXPERTS | {"model.expert_capacity": 1.25},
    "experts, computed again": LONG | EXPERTS | {"parallel.remat": "full"},
}


@functools.cache
def compiled(case: str) -> Any:
    assembly, _ = small.trainer((CASES | CUT)[case], devices=8)
    options = dict(small.jit.keywords["compiler_options"])
    return assembly, compiler.lowered(assembly).compile(compiler_options=options).memory_analysis()


@pytest.mark.parametrize("case", CASES)
def test_arguments_are_those_of_the_compiler(case: str) -> None:
    assembly, stats = compiled(case)
    assert sum(memory.arguments(assembly).values()) == pytest.approx(stats.argument_size_in_bytes, rel=0.03)


def test_state_by_kind_is_what_the_weights_say() -> None:
    assembly, _ = compiled("masked, data parallel")
    found = memory.arguments(assembly)
    assert found[memory.PARAMETERS] == 4 * assembly.count.parameters
    assert found[memory.OPTIMIZER] == pytest.approx(2 * found[memory.PARAMETERS], rel=0.01)
    assert found[memory.BATCH] == 5 * 4 * 16 * 16 // 8


@pytest.mark.parametrize(
    ("shape", "stored"),
    [
        ((32, 64, 11008), 32 * 64 * 11008),
        ((24, 4096, 64), 24 * 64 * 4096),  # turned round
        ((24, 64, 16, 64), 24 * 64 * 16 * 128),
        ((30522, 64), 64 * 30592),
        ((2, 64), 2 * 128),
        ((3, 200), 4 * 256),
        ((1024,), 1024),
        ((64,), 128),
        ((), 128),
    ],
)
def test_a_tpu_stores_whole_tiles(shape: tuple[int, ...], stored: int) -> None:
    """As compiled for v5e: `f32[24,4096,64]{1,2,0:T(8,128)}`, `f32[24,64,16,64]{3,2,1,0:T(8,128)}`, and so on."""
    assert memory.tiled_size(shape) == stored


@pytest.mark.parametrize("case", ["fsdp", *CUT])
def test_estimates_are_near_what_the_compiler_needs(case: str) -> None:
    assembly, stats = compiled(case)
    assert 0.5 < sum(memory.estimates(assembly).values()) / stats.temp_size_in_bytes < 2.0


def assembled(**changes: Any) -> Any:
    keys = {name.replace("__", "."): value for name, value in changes.items()}
    return small.trainer({"parallel.layers": "scan", **keys}, devices=8)[0]


@pytest.mark.parametrize("case", CUT)
def test_a_device_keeps_a_share_of_everything_that_has_rows(case: str) -> None:
    part, twice = (memory.activations(assembled(**CUT[case], train__batch_size=rows)) for rows in (1024, 2048))
    assert twice == pytest.approx(2 * part, rel=0.02)


def kept(assembly: Any) -> float:
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in trace.trace(assembly).kept)


def test_less_is_kept_where_more_is_computed_again() -> None:
    sizes = [kept(assembled(parallel__remat=remat)) for remat in ("none", "dots", "full")]
    assert sizes[0] > sizes[1] > sizes[2]
    # Of each layer the input alone; besides, what head, embedding and final norm keep.
    layers = [shape for shape, _ in trace.trace(assembled(parallel__remat="full")).kept if shape[0] == 2]
    assert layers == [(2, trace.trace(assembled(parallel__remat="full")).rows, 16, 32)]


def test_traced_products_are_the_counted_ones_where_nothing_is_computed_again() -> None:
    assembly = assembled(parallel__remat="none", parallel__kernels="reference")
    count: Count = assembly.count
    found = trace.trace(assembly)
    assert found.operations.total == pytest.approx(found.rows * 16 * count.model_flops, rel=1e-6)
    again = trace.trace(assembled(parallel__remat="full", parallel__kernels="reference"))
    forward = found.rows * 16 * count.model_flops / 3
    assert 1.1 * forward < again.operations.total - 2 * forward < 2 * forward


def test_an_unrolled_stack_multiplies_what_a_scanned_one_does() -> None:
    scanned, unrolled = (trace.trace(assembled(parallel__layers=mode)) for mode in ("scan", "unroll"))
    assert scanned.operations == unrolled.operations


@pytest.mark.parametrize(
    "changes",
    [
        {"objective.name": "masked"},
        {"objective.name": "span_corruption", "model.architecture": "encoder_decoder", "data.sequence_length": 64},
        {"objective.name": "sentence_pairs", "model.token_types": 2, "model.pooler": True, "model.pair_head": True},
    ],
    ids=lambda changes: changes["objective.name"],
)
def test_batches_have_the_shapes_of_the_objective(changes: dict[str, Any]) -> None:
    assembly = small.trainer(changes, devices=8)[0]
    found = trace.batch_shapes(assembly)
    assert found["tokens"].shape[:2] == (1, 16)
    assert ("encoder_tokens" in found) == ("encoder_decoder" in changes.values())
    assert all(shape.sharding.mesh == assembly.mesh for shape in found.values())

"""Collectives read from compiled programs, against counts by hand and against the same program unrolled."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from research.plan import compiler, hlo, traffic
from research.plan.traffic import Flow
from tests import small

FSDP = {"parallel.preset": "fsdp", "parallel.layers": "scan"}


def mesh_of(*sizes: int) -> Mesh:
    names = ("a", "b", "c")[: len(sizes)]
    return Mesh(
        np.array(jax.devices()[: np.prod(sizes)]).reshape(sizes), names, axis_types=(AxisType.Auto,) * len(sizes)
    )


def read(function: Callable[..., Any], mesh: Mesh, specs: Any, *arguments: Any, out: Any = None) -> list[Flow]:
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=specs, out_specs=specs if out is None else out, check_vma=False
    )
    text = small.jit(mapped).lower(*arguments).compile().as_text()
    found = hlo.read(text, mesh.size)
    assert found.unknown_loops == ()
    return traffic.flows(found.collectives, mesh)


@functools.cache
def fsdp_text() -> tuple[Any, str]:
    assembly, _ = small.trainer(FSDP, devices=8)
    lowered = compiler.lowered(assembly)
    return assembly, lowered.compile(compiler_options=dict(small.jit.keywords["compiler_options"])).as_text()


def test_fsdp_moves_what_a_hand_count_says() -> None:
    assembly, text = fsdp_text()
    found = hlo.read(text, 8)
    assert found.unknown_loops == ()
    assert {axes for _, axes, *_ in traffic.flows(found.collectives, assembly.mesh)} == {("fsdp",)}
    # Width 32, 8 heads of 4, MLP 64 with a gate, float32: four projections, three of the MLP, two norms a layer.
    layer = 4 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32)
    inside = [one for one in found.collectives if "while/body" in one.source]
    gathered = sum(one.sent(8) * one.times for one in inside if one.kind == "all-gather")
    assert gathered == 2 * 2 * layer * 7 / 8  # forward and backward, two layers, seven of eight shards from elsewhere
    # XLA's CPU backend adds whole gradients up where a TPU scatters the sums: twice what a reduce-scatter sends.
    kinds = {"all-reduce": 2.0, "reduce-scatter": 1.0}
    added = sum(one.sent(8) * one.times / kinds[one.kind] for one in inside if one.kind in kinds and one.bytes_in > 64)
    assert added == pytest.approx(2 * layer * 7 / 8, rel=0.01)


@pytest.mark.parametrize(
    ("kind", "function", "expected"),
    [
        ("all-gather", lambda x: jax.lax.all_gather(x, "b")[0], 3 * 1024),
        ("all-reduce", lambda x: jax.lax.psum(x, "b"), 2 * 1024 * 3 / 4),
        ("reduce-scatter", lambda x: jnp.tile(jax.lax.psum_scatter(x, "b", tiled=True), (4,)), 1024 * 3 / 4),
        ("all-to-all", lambda x: jax.lax.all_to_all(x.reshape(4, -1), "b", 0, 0).reshape(-1), 1024 * 3 / 4),
        ("collective-permute", lambda x: jax.lax.ppermute(x, "b", [(0, 1), (1, 2), (2, 3)]), 1024 * 3 / 4),
    ],
)
def test_each_kind_sends_what_its_ring_algorithm_sends(kind: str, function: Any, expected: float) -> None:
    mesh = mesh_of(2, 4)
    found = read(function, mesh, P(("a", "b")), jnp.zeros(8 * 256, jnp.float32))
    assert found == [Flow(kind, ("b",), 1.0, expected)]


def test_axes_are_told_apart() -> None:
    mesh = mesh_of(2, 2, 2)

    def function(x: jax.Array) -> jax.Array:
        return jax.lax.psum(jax.lax.psum(jax.lax.psum(x, "a"), ("a", "c")), "b")

    found = read(function, mesh, P(("a", "b", "c")), jnp.zeros(8 * 256, jnp.float32))
    assert {flow.axes for flow in found} == {("a",), ("a", "c"), ("b",)}


def loops(repeat: Any) -> Callable[..., Any]:
    return lambda x: repeat(lambda y: jax.lax.ppermute(y * 2, "a", [(n, (n + 1) % 8) for n in range(8)]), x)


def unrolled(count: int) -> Any:
    def repeat(body: Any, x: Any) -> Any:
        for _ in range(count):
            x = body(x)
        return x

    return repeat


@pytest.mark.parametrize(
    ("repeat", "count"),
    [
        (lambda body, x: jax.lax.scan(lambda y, _: (body(y), None), x, None, length=7)[0], 7),
        (lambda body, x: jax.lax.fori_loop(2, 7, lambda _, y: body(y), x), 5),
        (
            lambda body, x: jax.lax.while_loop(
                lambda s: s[0] < 17, lambda s: (s[0] + 5, body(s[1])), (jnp.int32(2), x)
            )[1],
            3,
        ),
        (
            lambda body, x: jax.lax.scan(
                lambda y, _: (jax.lax.scan(lambda z, _: (body(z), None), y, None, length=3)[0], None), x, None, length=4
            )[0],
            12,
        ),
    ],
    ids=["scan", "fori", "while in steps", "nested"],
)
def test_loops_count_as_often_as_they_run(repeat: Any, count: int) -> None:
    mesh, x = mesh_of(8), jnp.zeros(8 * 256, jnp.float32)
    looped = read(loops(repeat), mesh, P("a"), x)
    assert looped == read(loops(unrolled(count)), mesh, P("a"), x)
    assert looped[0].times == count


def test_trip_counts_are_found_without_the_compilers_word() -> None:
    _, text = fsdp_text()
    module = hlo.parse(text)
    whiles = [(within, i) for within in module.computations.values() for i in within.values() if i.opcode == "while"]
    assert len(whiles) >= 2
    for within, loop in whiles:
        told = hlo.trip_count(module, within, loop)
        silent = hlo.Instruction(**{**loop.__dict__, "attributes": loop.attributes.replace("known_trip_count", "")})
        assert hlo.trip_count(module, within, silent) == told


def test_a_conditional_counts_as_its_costliest_branch() -> None:
    mesh = mesh_of(8)

    def function(x: jax.Array) -> jax.Array:
        ring = [(n, (n + 1) % 8) for n in range(8)]
        once = lambda y: jax.lax.ppermute(y, "a", ring)  # noqa: E731
        return jax.lax.cond(x[0] > 0, once, lambda y: once(once(y) + 1), x)

    found = read(function, mesh, P("a"), jnp.zeros(8 * 256, jnp.float32))
    assert found == [Flow("collective-permute", ("a",), 2.0, 2048.0)]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}, x", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups={}, x", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("replica_groups=[2,4]<=[8], x", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}, x", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}, x", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=8] {'a':(1)2}, x", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=8] {'a':(2)4}, x", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([8]<=[2,4]T(1,0)) {'b'}, x", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}, x", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ],
)
def test_every_form_of_replica_groups(written: str, expected: list[list[int]]) -> None:
    np.testing.assert_array_equal(hlo.replica_groups(written, 8), expected)


ASYNCHRONOUS = """HloModule m

%scattered (p.0: s32[8]) -> s32[8] {
  ROOT %p.0 = s32[8]{0:T(256)} parameter(0)
}, execution_thread="sparsecore"

%start (p: f32[256]) -> (f32[256], f32[1024]) {
  %p = f32[256]{0:T(256)} parameter(0)
  %g = f32[1024]{0:T(1024)S(1)} all-gather(%p), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}, \
frontend_attributes={chain_id="0"}
  %k = f32[8]{0:T(256)} custom-call(%p), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"block": "8"
}}, metadata={op_name="a/kernel"}
  ROOT %c = (f32[256]{0}, f32[1024]{0}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (p.1: f32[256]) -> f32[1024] {
  %p.1 = f32[256]{0:T(256)} parameter(0)
  ROOT %g.1 = f32[1024]{0:T(1024)} all-gather(%p.1), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}, \
frontend_attributes={chain_id="0"}
}

%all-reduce-scatter.2 (p.2: f32[1024]) -> f32[256] {
  %p.2 = f32[1024]{0:T(1024)} parameter(0)
  %r = f32[1024]{0:T(1024)} all-reduce(%p.2), channel_id=8, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %s = f32[256]{0:T(256)} dynamic-slice(%r), dynamic_slice_sizes={256}
}

ENTRY %main (x: f32[256]) -> f32[256] {
  %x = f32[256]{0:T(256)} parameter(0)
  %f = (f32[256]{0}, f32[1024]{0}) fusion(%x), kind=kCustom, calls=%start
  %h = f32[1024]{0:T(1024)} fusion(%x), kind=kCustom, calls=%async_collective_fusion.1
  ROOT %o = f32[256]{0:T(256)} fusion(%h), kind=kCustom, calls=%all-reduce-scatter.2
}
"""


SLICES = """HloModule m

ENTRY %main (x: f32[256]) -> f32[256] {
  %x = f32[256]{0:T(256)} parameter(0)
  %t = token[] after-all()
  %s = (f32[256]{0:T(256)}, u32[], token[]) send(%x, %t), channel_id=3, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %o = f32[256]{0:T(256)} copy(%x)
}
"""


def test_what_slices_hand_to_one_another_counts() -> None:
    found = traffic.flows(hlo.read(SLICES, 8).collectives, mesh_of(2, 4))
    assert found == [Flow("all-reduce", ("a",), 1.0, 1024.0)]


def test_tpu_fusions_count_once_and_as_what_they_are() -> None:
    found = traffic.flows(hlo.read(ASYNCHRONOUS, 4).collectives, mesh_of(4))
    assert sorted(found) == [Flow("all-gather", ("a",), 1.0, 3072.0), Flow("reduce-scatter", ("a",), 1.0, 3072.0)]


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[8,4]{1,0:T(8,128)S(1)}", 128),
        ("(bf16[2,3]{1,0}, s32[], pred[5]{0})", 12 + 4 + 5),
        ("s4[6]{0}", 3),
        ("token[]", 0),
        ("f32[<=4]{0}", 16),
    ],
)
def test_bytes_of_shapes(shape: str, size: int) -> None:
    assert hlo.shape_bytes(shape) == size


def test_a_sharding_of_one_device_moves_nothing() -> None:
    mesh = mesh_of(1)
    x = jax.device_put(jnp.zeros(8), NamedSharding(mesh, P("a")))
    assert read(lambda y: jax.lax.psum(y, "a"), mesh, P("a"), x) == []

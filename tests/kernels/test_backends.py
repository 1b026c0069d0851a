"""One suite for every attention backend, alone and on meshes: values, gradients, and what each leaves to others."""

import functools
import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.kernels import Pattern, attention, fused, splash
from research.kernels.attention import Form, Operands
from research.kernels.sharded_attention import ShardedAttention
from tests.kernels.meshes import layout
from tests.small import assert_close, jit

LENGTH, HEADS, WIDTH = 256, 4, 8


class Case(NamedTuple):
    """One call: the pattern, heads of keys, and what bends the logits."""

    pattern: Pattern
    groups: int = 4
    scale: float | None = None
    softcap: float | None = None
    prefix: bool = False
    bias: bool = False


CASES = {
    "causal, grouped": Case(Pattern(causal=True), groups=2),
    "bidirectional, capped, scaled": Case(Pattern(causal=False), scale=0.7, softcap=2.0),
    "causal window": Case(Pattern(causal=True, window=40), groups=1),
    "window": Case(Pattern(causal=False, window=70)),
    "prefix": Case(Pattern(causal=True, prefix=True), groups=2, prefix=True),
    "bias": Case(Pattern(causal=True), groups=2, softcap=3.0, bias=True),
}
SPLIT = {"fsdp": 2, "sequence": 2, "tensor": 2}
TURNS = {"data": 1, "sequence": 4, "tensor": 2}


def backends() -> dict[str, attention.Attention]:
    """Each with the mesh that it runs on."""
    blocks = {"interpret": True, "query_block": 128, "key_block": 128}
    return {
        "blocked": attention.blocked,
        "xla": fused.Fused("xla"),
        "splash": splash.Splash(None, **blocks),
        "splash on a mesh": splash.Splash(layout("fsdp_tp", **SPLIT), **blocks),
        "gathered keys": ShardedAttention(attention.blocked, layout("fsdp_tp", **SPLIT)),
        "ring": ShardedAttention(attention.blocked, layout("tp", **TURNS), around=True),
    }


# What each leaves to blocked attention; nobody else leaves anything.
LEFT = {
    "xla": {"bidirectional, capped, scaled", "bias"},
    "splash": {"prefix", "bias"},
    "splash on a mesh": {"prefix", "bias"},
}


def inputs(case: Case) -> tuple[dict[str, jax.Array], jax.Array]:
    """Two rows: two documents and padding, and padding before one document."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    ids = np.stack([np.repeat([1, 2, 0], [100, 140, 16]), np.repeat([0, 1], [20, 236])])
    of = {
        "query": normal(2, LENGTH, HEADS, WIDTH),
        "key": normal(2, LENGTH, case.groups, WIDTH),
        "value": normal(2, LENGTH, case.groups, WIDTH),
        "query_segments": jnp.asarray(ids, jnp.int32),
        "key_segments": jnp.asarray(ids, jnp.int32),
    }
    if case.prefix:
        of["key_prefix"] = jnp.asarray(rng.random((2, LENGTH)) < 0.3, jnp.int32)
    if case.bias:
        of["bias"] = normal(HEADS, LENGTH, LENGTH)
    return of, normal(2, LENGTH, HEADS, WIDTH)


def run(backend: attention.Attention, case: Case) -> tuple[jax.Array, jax.Array | None, dict[str, jax.Array]]:
    """The output, the largest logit, and the gradients of a sum with random weights."""
    of, direction = inputs(case)
    floats = {name: array for name, array in of.items() if jnp.issubdtype(array.dtype, jnp.floating)}

    def along(floats: dict[str, jax.Array], of: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
        out, largest = backend(Operands(**of | floats), Form(case.pattern, case.scale, case.softcap))
        return jnp.sum(out * direction), (out, largest)

    (_, (out, largest)), gradients = jit(jax.value_and_grad(along, has_aux=True))(floats, of)
    return out, largest, gradients


@functools.cache
def expected(name: str) -> tuple[jax.Array, jax.Array | None, dict[str, jax.Array]]:
    return run(attention.reference, CASES[name])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", ["blocked", "xla", "splash", "splash on a mesh", "gathered keys", "ring"])
def test_values_and_gradients_are_those_of_the_formula(
    backend: str, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    splash._say.cache_clear()
    fused._say.cache_clear()
    with caplog.at_level(logging.WARNING, logger="isoflop"):
        out, largest, gradients = run(backends()[backend], CASES[case])
    assert ("is replaced by blocked attention" in caplog.text) == (case in LEFT.get(backend, ()))
    wanted, most, of_wanted = expected(case)
    assert_close(out, wanted)
    assert_close(gradients, of_wanted)
    if largest is not None:
        assert_close(largest, most)
    known = backend in ("blocked", "gathered keys", "ring") or case in LEFT[backend]
    assert (largest is not None) == known


def test_a_single_prompt_is_attended_to_on_a_mesh_that_does_not_divide_it() -> None:
    """One row, one query, and a cache that is longer than what was read."""
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.normal(size=(1, n, HEADS, WIDTH)), jnp.float32) for n in (1, 9, 9))
    ids = jnp.asarray([[1, 1, 1, 1, 1, 0, 0, 0, 0]], jnp.int32)

    def attend(backend: attention.Attention) -> Any:
        of = Operands(query, key, value, ids[:, :1], ids)
        run = jit(lambda offset: backend(of._replace(query_offset=offset), Form(Pattern(causal=True))))
        return run(jnp.asarray(4, jnp.int32))

    for backend in (
        ShardedAttention(attention.blocked, layout("tp", **TURNS), around=True),
        splash.Splash(layout("fsdp_tp", **SPLIT), interpret=True),
    ):
        assert_close(attend(backend), attend(attention.reference))


def test_bfloat16_heads_of_any_width_reach_the_kernel_padded() -> None:
    of, _ = inputs(CASES["causal, grouped"])
    of = {name: array.astype(jnp.bfloat16) if array.ndim == 4 else array for name, array in of.items()}
    blocks = splash.Splash(None, interpret=True, query_block=128, key_block=256)
    found, wanted = (
        jit(lambda of, b=b: b(Operands(**of), Form(Pattern(causal=True)))[0])(of) for b in (blocks, attention.reference)
    )
    assert found.dtype == jnp.bfloat16 and found.shape == wanted.shape
    np.testing.assert_allclose(np.asarray(found, np.float32), np.asarray(wanted, np.float32), rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize(
    ("pattern", "queries", "keys", "more", "why"),
    [
        (Pattern(causal=True), 256, 256, {"biased": True}, "bias"),
        (Pattern(causal=True, prefix=True), 256, 256, {}, "prefix"),
        (Pattern(causal=True), 256, 256, {"known": False}, "run time"),
        (Pattern(causal=True), 128, 256, {}, "128 queries and 256 keys"),
        (Pattern(causal=False), 114, 256, {}, "114"),
        (Pattern(causal=False), 256, 256, {"parts": (4, 4)}, "4 parts"),
        (Pattern(causal=True), 1152, 1152, {"parts": (3, 3)}, None),
        (Pattern(causal=True), 1920, 1920, {"parts": (3, 3)}, "square"),
        (Pattern(causal=False), 128, 256, {}, None),
        (Pattern(causal=True, window=5), 256, 256, {"parts": (2, 2)}, None),
    ],
)
def test_what_splash_cannot_do_has_a_reason(
    pattern: Pattern, queries: int, keys: int, more: dict[str, Any], why: str | None
) -> None:
    found = splash.unsupported(pattern, queries, keys, **{"known": True, "biased": False, **more})
    assert found is None if why is None else found is not None and why in found


@pytest.mark.parametrize(
    ("implementation", "dtype", "head_dim", "softcap", "why"),
    [
        ("cudnn", jnp.float32, 64, None, "model.compute_dtype=bfloat16"),
        ("cudnn", jnp.bfloat16, 256, None, "256"),
        ("cudnn", jnp.bfloat16, 100, None, "100"),
        ("cudnn", jnp.bfloat16, 64, 3.0, "cap"),
        ("cudnn", jnp.bfloat16, 64, None, None),
        ("xla", jnp.float32, 100, None, None),
    ],
)
def test_what_the_fused_kernel_cannot_do_has_a_reason(
    implementation: str, dtype: Any, head_dim: int, softcap: float | None, why: str | None
) -> None:
    found = fused.unsupported(implementation, jnp.dtype(dtype), head_dim, softcap)
    assert found is None if why is None else found is not None and why in found


def test_the_fused_kernel_is_what_a_gpu_s_program_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lowered for a GPU that is not here: forward and backward each call cuDNN's attention, with the mask as a bias."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn  # what asks for the library and the device

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: capability == "9.0")
    heads, keys = (jax.ShapeDtypeStruct((2, 256, count, 64), jnp.bfloat16) for count in (4, 2))
    ids = jax.ShapeDtypeStruct((2, 256), jnp.int32)

    def total(query: Any, key: Any, value: Any, ids: Any) -> Any:
        of = Operands(query, key, value, ids, ids)
        return jnp.sum(fused.Fused("cudnn")(of, Form(Pattern(causal=True)))[0].astype(jnp.float32))

    program = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(heads, keys, keys, ids)
    text = program.lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaScaleBiasSoftmax(" in text and "__cudnn$fmhaScaleBiasSoftmaxBackward(" in text

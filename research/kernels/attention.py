"""Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1), with grouped keys (Ainslie et al. 2023)."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from research.kernels import products
from research.kernels.patterns import Pattern

Part = tuple[int, int, int, int]  # first query of a block, end, first key that it sees, end

KEPT = "attention"  # what the gradient starts from, by the name that a policy of rematerialisation keeps
HIDDEN = -1e30  # finite, so that rows of padding stay finite
# Blocks of queries: small ones skip more of what is hidden, large ones make larger products and fewer operations. With
# twice as many, shape M of the benchmarks runs 3 % faster and compiles 3 s (half) longer.
QUERIES = 64
MOST_BLOCKS = 4


class Operands(NamedTuple):
    """What attention is computed from; query `i` stands at place `query_offset + i` of the keys.

    Attributes:
      query: see the shapes; `heads` is a multiple of `kv_heads`.
      key: keys.
      value: values.
      query_segments: documents of the queries; 0 is padding.
      key_segments: documents of the keys.
      query_offset: place of the first query among the keys.
      key_prefix: 1 for keys of a bidirectional prefix.
      bias: is added to the logits (relative positions, ALiBi).
    """

    query: Float[Array, "batch query heads head_dim"]
    key: Float[Array, "batch key kv_heads head_dim"]
    value: Float[Array, "batch key kv_heads head_dim"]
    query_segments: Int[Array, "batch query"]
    key_segments: Int[Array, "batch key"]
    query_offset: Int[Array, ""] | int = 0
    key_prefix: Int[Array, "batch key"] | None = None
    bias: Float[Array, "heads query key"] | None = None

    @property
    def aligned(self) -> bool:
        """Whether it is known at compile time that queries and keys stand at the same places."""
        known = isinstance(self.query_offset, int) and self.query_offset == 0
        return known and self.query.shape[1] == self.key.shape[1]

    def visible(self, pattern: Pattern) -> Bool[Array, "batch query key"]:
        """Who sees whom."""
        return pattern.visible(self.query_segments, self.key_segments, self.query_offset, self.key_prefix)


@dataclasses.dataclass(frozen=True)
class Form:
    """What is computed.

    Attributes:
      pattern: who may see whom.
      scale: factor of the logits; none: head_dim^-0.5.
      softcap: logits are bent to stay below this (Gemma Team 2024, Gemma 2, section 2).
    """

    pattern: Pattern
    scale: float | None = None
    softcap: float | None = None

    def factor(self, head_dim: int) -> float:
        """Of the logits."""
        return head_dim**-0.5 if self.scale is None else self.scale


Attention = Callable[[Operands, Form], tuple[Float[Array, "batch query heads head_dim"], Float[Array, ""] | None]]


def reference(of: Operands, form: Form) -> tuple[Float[Array, "batch query heads head_dim"], Float[Array, ""]]:
    """Attention as the formula stands, and the largest visible logit of real positions.

    Logits and softmax are float32 whatever the inputs are.
    """
    batch, length, heads, width = of.query.shape
    groups = of.key.shape[2]
    grouped = of.query.reshape(batch, length, groups, heads // groups, width)
    logits = jnp.einsum("bqghd,bkgd->bghqk", grouped, of.key, preferred_element_type=jnp.float32)
    logits *= form.factor(width)
    if form.softcap is not None:
        logits = form.softcap * jnp.tanh(logits / form.softcap)
    if of.bias is not None:
        logits += of.bias.astype(jnp.float32).reshape(1, groups, heads // groups, *of.bias.shape[1:])
    visible = of.visible(form.pattern)[:, None, None]
    logits = jnp.where(visible, logits, HIDDEN)
    weights = jax.nn.softmax(logits, axis=-1).astype(of.value.dtype)
    out = checkpoint_name(jnp.einsum("bghqk,bkgd->bqghd", weights, of.value).reshape(of.query.shape), KEPT)
    real = visible & (of.query_segments > 0)[:, None, None, :, None]
    return out, jnp.max(jax.lax.stop_gradient(logits), initial=HIDDEN, where=real)


def blocked(of: Operands, form: Form) -> tuple[Float[Array, "batch query heads head_dim"], Float[Array, ""]]:
    """The same in blocks of queries, each with the keys that it can see, and with a gradient of its own.

    Heads stand before positions, so that every product is one of plain matrices; the softmax is divided after its
    product with the values; the gradient starts from the kept exponentials (Dao et al. 2022, appendix B.2, says which
    products it needs).
    """
    static = _Static(form, blocks(form.pattern, of.query.shape[1], of.key.shape[1], of.aligned))
    out, largest = _attend(static, of._replace(query_offset=jnp.asarray(of.query_offset, jnp.int32)))
    return out, jax.lax.stop_gradient(largest)


def blocks(pattern: Pattern, queries: int, keys: int, aligned: bool) -> tuple[Part, ...]:
    """Each block of queries and the keys that it can see; one block where they need not stand at the same places."""
    causal, window = pattern.causal and not pattern.prefix, pattern.window
    if not aligned or not (causal or window is not None):
        return ((0, queries, 0, keys),)
    size = max(QUERIES, -(-queries // MOST_BLOCKS))
    found = []
    for start in range(0, queries, size):
        stop = min(queries, start + size)
        first = 0 if window is None else max(0, start - window)
        last = stop if causal or window is None else min(keys, stop + window)
        found.append((start, stop, first, last))
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class _Static:
    """What blocked attention is compiled for."""

    form: Form
    parts: tuple[Part, ...]


class _Kept(NamedTuple):
    """What the gradient of one block starts from.

    Attributes:
      exponentials: of the logits less their row's maximum; hidden ones are zero.
      total: their sums by row.
      slope: of the soft-cap at each logit; none without one.
    """

    exponentials: Float[Array, "batch kv_heads group query key"]
    total: Float[Array, "batch kv_heads group query 1"]
    slope: Float[Array, "batch kv_heads group query key"] | None


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: _Static, of: Operands) -> tuple[Array, Array]:
    return _attend_forward(static, of)[0]


def _by_head(x: Array, groups: int) -> Float[Array, "batch kv_heads group seq head_dim"]:
    batch, length, heads, width = x.shape
    return x.reshape(batch, length, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)


def _by_place(x: Array) -> Float[Array, "batch seq heads head_dim"]:
    batch, groups, share, length, width = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(batch, length, groups * share, width)


def _product(equation: str, left: Array, right: Array) -> Array:
    return jnp.einsum(equation, left, right.astype(left.dtype), preferred_element_type=jnp.float32)


def _visible(of: Operands, pattern: Pattern, part: Part) -> Bool[Array, "batch 1 1 query key"]:
    """Who sees whom in a block."""
    start, stop, first, last = part
    queries, keys = of.query_segments[:, start:stop], of.key_segments[:, first:last]
    prefix = None if of.key_prefix is None else of.key_prefix[:, first:last]
    return pattern.visible(queries, keys, of.query_offset + (start - first), prefix)[:, None, None]


def _attend_forward(static: _Static, of: Operands) -> tuple[tuple[Array, Array], tuple]:
    form, bias, dtype = static.form, of.bias, of.value.dtype
    groups, scale = of.key.shape[2], form.factor(of.query.shape[-1])
    queries = _by_head(of.query, groups)
    keys, values = (_by_head(x, groups)[:, :, 0] for x in (of.key, of.value))
    outs, kept, largest = [], [], jnp.full((), HIDDEN, jnp.float32)
    for part in static.parts:
        start, stop, first, last = part
        logits = _product("bghqd,bgkd->bghqk", queries[..., start:stop, :], keys[:, :, first:last]) * scale
        slope = None
        if form.softcap is not None:
            bent = jnp.tanh(logits / form.softcap)
            logits, slope = form.softcap * bent, checkpoint_name(1.0 - bent**2, KEPT)
        if bias is not None:
            added = bias[:, start:stop, first:last].astype(jnp.float32)
            logits += added.reshape(1, groups, -1, *added.shape[1:])
        logits = jnp.where(_visible(of, form.pattern, part), logits, HIDDEN)
        most = jnp.max(logits, axis=-1, keepdims=True)
        exponentials = checkpoint_name(jnp.exp(logits - most), KEPT)
        total = checkpoint_name(jnp.sum(exponentials, axis=-1, keepdims=True), KEPT)
        product = _product("bghqk,bgkd->bghqd", exponentials.astype(dtype), values[:, :, first:last])
        outs.append((product / total).astype(dtype))
        kept.append(_Kept(exponentials.astype(dtype), total, slope))
        real = (of.query_segments[:, start:stop] > 0)[:, None, None, :, None]
        largest = jnp.maximum(largest, jnp.max(most, initial=HIDDEN, where=real))
    out = checkpoint_name(_by_place(outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=3)), KEPT)
    return (out, largest), (queries, keys, values, bias, out, kept)


def _attend_backward(static: _Static, residuals: tuple, cotangent: tuple[Array, Array]) -> tuple[Operands]:
    queries, keys, values, bias, out, kept = residuals
    scale = static.form.factor(queries.shape[-1])
    zero = products.hidden_zero(cotangent[0])  # or the forward pass would keep its slices for this one
    queries, keys, values = queries + zero, keys + zero, values + zero
    errors = _by_head(cotangent[0], keys.shape[1])
    expected = jnp.sum(cotangent[0].astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    expected = _by_head(expected, keys.shape[1])
    query_parts = []
    key_gradient, value_gradient = jnp.zeros(keys.shape, jnp.float32), jnp.zeros(values.shape, jnp.float32)
    bias_gradient = None if bias is None else jnp.zeros(bias.shape, jnp.float32)
    for (start, stop, first, last), (exponentials, total, slope) in zip(static.parts, kept, strict=True):
        error = (errors[..., start:stop, :].astype(jnp.float32) / total).astype(values.dtype)
        pulled = _product("bghqd,bgkd->bghqk", error, values[:, :, first:last])
        pulled = exponentials.astype(jnp.float32) * (pulled - expected[..., start:stop, :] / total)
        if bias_gradient is not None:
            by_bias = jnp.sum(pulled, axis=0).reshape(-1, *pulled.shape[3:])
            bias_gradient = bias_gradient.at[:, start:stop, first:last].add(by_bias)
        if slope is not None:
            pulled *= slope
        pulled = pulled.astype(values.dtype)
        query_parts.append(_product("bghqk,bgkd->bghqd", pulled, keys[:, :, first:last]) * scale)
        by_key = _product("bghqk,bghqd->bgkd", pulled, queries[..., start:stop, :]) * scale
        by_value = _product("bghqk,bghqd->bgkd", exponentials, error)
        key_gradient = key_gradient.at[:, :, first:last].add(by_key)
        value_gradient = value_gradient.at[:, :, first:last].add(by_value)
    query_gradient = query_parts[0] if len(query_parts) == 1 else jnp.concatenate(query_parts, axis=3)
    gradients = (
        _by_place(query_gradient).astype(queries.dtype),
        _by_place(key_gradient[:, :, None]).astype(keys.dtype),
        _by_place(value_gradient[:, :, None]).astype(values.dtype),
    )
    of_bias = None if bias is None or bias_gradient is None else bias_gradient.astype(bias.dtype)
    return (Operands(*gradients, None, None, None, None, of_bias),)  # type: ignore[arg-type]


_attend.defvjp(_attend_forward, _attend_backward)


BACKENDS: dict[str, Attention] = {"reference": reference, "blocked": blocked}

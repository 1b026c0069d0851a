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

KEPT = "attention"  # what the gradient starts from, by the name that a policy of rematerialisation keeps
HIDDEN = -1e30  # finite, so that rows of padding stay finite
# Blocks of queries: small ones skip more of what is hidden, large ones make larger products and fewer operations.
QUERIES = 64
MOST_BLOCKS = 8

Attention = Callable[..., tuple[Float[Array, "batch query heads head_dim"], Float[Array, ""] | None]]


def reference(
    query: Float[Array, "batch query heads head_dim"],
    key: Float[Array, "batch key kv_heads head_dim"],
    value: Float[Array, "batch key kv_heads head_dim"],
    *,
    pattern: Pattern,
    query_segments: Int[Array, "batch query"],
    key_segments: Int[Array, "batch key"],
    query_offset: Int[Array, ""] | int = 0,
    key_prefix: Int[Array, "batch key"] | None = None,
    bias: Float[Array, "heads query key"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> tuple[Float[Array, "batch query heads head_dim"], Float[Array, ""]]:
    """Attention as the formula stands, and the largest visible logit of real positions.

    Logits and softmax are float32 whatever the inputs are; query `i` stands at place `query_offset + i` of the keys.

    Args:
      query: see the shapes; `heads` is a multiple of `kv_heads`.
      key: keys.
      value: values.
      pattern: who may see whom.
      query_segments: documents of the queries; 0 is padding.
      key_segments: documents of the keys.
      query_offset: place of the first query among the keys.
      key_prefix: 1 for keys of a bidirectional prefix.
      bias: is added to the logits (relative positions, ALiBi).
      scale: factor of the logits; none: head_dim^-0.5.
      softcap: logits are bent to stay below this (Gemma Team 2024, Gemma 2, section 2).
    """
    batch, length, heads, width = query.shape
    groups = key.shape[2]
    grouped = query.reshape(batch, length, groups, heads // groups, width)
    logits = jnp.einsum("bqghd,bkgd->bghqk", grouped, key, preferred_element_type=jnp.float32)
    logits *= width**-0.5 if scale is None else scale
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    if bias is not None:
        logits += bias.astype(jnp.float32).reshape(1, groups, heads // groups, *bias.shape[1:])
    visible = pattern.visible(query_segments, key_segments, query_offset, key_prefix)[:, None, None]
    logits = jnp.where(visible, logits, HIDDEN)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    out = checkpoint_name(jnp.einsum("bghqk,bkgd->bqghd", weights, value).reshape(query.shape), KEPT)
    real = visible & (query_segments > 0)[:, None, None, :, None]
    return out, jnp.max(jax.lax.stop_gradient(logits), initial=HIDDEN, where=real)


def blocked(
    query: Float[Array, "batch query heads head_dim"],
    key: Float[Array, "batch key kv_heads head_dim"],
    value: Float[Array, "batch key kv_heads head_dim"],
    *,
    pattern: Pattern,
    query_segments: Int[Array, "batch query"],
    key_segments: Int[Array, "batch key"],
    query_offset: Int[Array, ""] | int = 0,
    key_prefix: Int[Array, "batch key"] | None = None,
    bias: Float[Array, "heads query key"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> tuple[Float[Array, "batch query heads head_dim"], Float[Array, ""]]:
    """The same in blocks of queries, each with the keys that it can see, and with a gradient of its own.

    Heads stand before positions, so that every product is one of plain matrices; the softmax is divided after its
    product with the values; the gradient starts from the kept exponentials (Dao et al. 2022, appendix B.2, says which
    products it needs).
    """
    width = query.shape[-1]
    parts = blocks(pattern, query.shape[1], key.shape[1], query_offset)
    form = _Form(pattern, parts, width**-0.5 if scale is None else scale, softcap)
    places = _Places(query_segments, key_segments, jnp.asarray(query_offset, jnp.int32), key_prefix)
    out, largest = _attend(query, key, value, bias, places, form)
    return out, jax.lax.stop_gradient(largest)


def blocks(
    pattern: Pattern, queries: int, keys: int, query_offset: Int[Array, ""] | int
) -> tuple[tuple[int, int, int, int], ...]:
    """`(first query, end, first key, end)` of each block of queries and the keys that it can see."""
    causal, window = pattern.causal and not pattern.prefix, pattern.window
    aligned = isinstance(query_offset, int) and query_offset == 0 and queries == keys
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


class _Places(NamedTuple):
    """Where queries and keys stand: segments, the place of the first query, flags of a prefix."""

    query_segments: Int[Array, "batch query"]
    key_segments: Int[Array, "batch key"]
    query_offset: Int[Array, ""]
    key_prefix: Int[Array, "batch key"] | None

    def visible(self, pattern: Pattern, part: tuple[int, int, int, int]) -> Bool[Array, "batch 1 1 query key"]:
        """Who sees whom in a block."""
        start, stop, first, last = part
        queries, keys = self.query_segments[:, start:stop], self.key_segments[:, first:last]
        prefix = None if self.key_prefix is None else self.key_prefix[:, first:last]
        return pattern.visible(queries, keys, self.query_offset + (start - first), prefix)[:, None, None]


@dataclasses.dataclass(frozen=True)
class _Form:
    """The static part of blocked attention."""

    pattern: Pattern
    parts: tuple[tuple[int, int, int, int], ...]
    scale: float
    softcap: float | None


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


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(
    query: Array, key: Array, value: Array, bias: Array | None, places: _Places, form: _Form
) -> tuple[Array, Array]:
    return _attend_forward(query, key, value, bias, places, form)[0]


def _by_head(x: Array, groups: int) -> Float[Array, "batch kv_heads group seq head_dim"]:
    batch, length, heads, width = x.shape
    return x.reshape(batch, length, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)


def _by_place(x: Array) -> Float[Array, "batch seq heads head_dim"]:
    batch, groups, share, length, width = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(batch, length, groups * share, width)


def _product(equation: str, left: Array, right: Array) -> Array:
    return jnp.einsum(equation, left, right.astype(left.dtype), preferred_element_type=jnp.float32)


def _attend_forward(
    query: Array, key: Array, value: Array, bias: Array | None, places: _Places, form: _Form
) -> tuple[tuple[Array, Array], tuple]:
    groups = key.shape[2]
    queries = _by_head(query, groups)
    keys, values = (_by_head(x, groups)[:, :, 0] for x in (key, value))
    outs, kept, largest = [], [], jnp.full((), HIDDEN, jnp.float32)
    for part in form.parts:
        start, stop, first, last = part
        logits = _product("bghqd,bgkd->bghqk", queries[..., start:stop, :], keys[:, :, first:last]) * form.scale
        slope = None
        if form.softcap is not None:
            bent = jnp.tanh(logits / form.softcap)
            logits, slope = form.softcap * bent, checkpoint_name(1.0 - bent**2, KEPT)
        if bias is not None:
            added = bias[:, start:stop, first:last].astype(jnp.float32)
            logits += added.reshape(1, groups, -1, *added.shape[1:])
        logits = jnp.where(places.visible(form.pattern, part), logits, HIDDEN)
        most = jnp.max(logits, axis=-1, keepdims=True)
        exponentials = checkpoint_name(jnp.exp(logits - most), KEPT)
        total = checkpoint_name(jnp.sum(exponentials, axis=-1, keepdims=True), KEPT)
        product = _product("bghqk,bgkd->bghqd", exponentials.astype(value.dtype), values[:, :, first:last])
        outs.append((product / total).astype(value.dtype))
        kept.append(_Kept(exponentials.astype(value.dtype), total, slope))
        real = (places.query_segments[:, start:stop] > 0)[:, None, None, :, None]
        largest = jnp.maximum(largest, jnp.max(most, initial=HIDDEN, where=real))
    out = checkpoint_name(_by_place(outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=3)), KEPT)
    return (out, largest), (queries, keys, values, bias, out, kept)


def _attend_backward(form: _Form, residuals: tuple, cotangent: tuple[Array, Array]) -> tuple:
    queries, keys, values, bias, out, kept = residuals
    zero = products.hidden_zero(cotangent[0])  # or the forward pass would keep its slices for this one
    queries, keys, values = queries + zero, keys + zero, values + zero
    errors = _by_head(cotangent[0], keys.shape[1])
    expected = jnp.sum(cotangent[0].astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    expected = _by_head(expected, keys.shape[1])
    query_parts = []
    key_gradient, value_gradient = jnp.zeros(keys.shape, jnp.float32), jnp.zeros(values.shape, jnp.float32)
    bias_gradient = None if bias is None else jnp.zeros(bias.shape, jnp.float32)
    for (start, stop, first, last), (exponentials, total, slope) in zip(form.parts, kept, strict=True):
        error = (errors[..., start:stop, :].astype(jnp.float32) / total).astype(values.dtype)
        pulled = _product("bghqd,bgkd->bghqk", error, values[:, :, first:last])
        pulled = exponentials.astype(jnp.float32) * (pulled - expected[..., start:stop, :] / total)
        if bias_gradient is not None:
            by_bias = jnp.sum(pulled, axis=0).reshape(-1, *pulled.shape[3:])
            bias_gradient = bias_gradient.at[:, start:stop, first:last].add(by_bias)
        if slope is not None:
            pulled *= slope
        pulled = pulled.astype(values.dtype)
        query_parts.append(_product("bghqk,bgkd->bghqd", pulled, keys[:, :, first:last]) * form.scale)
        by_key = _product("bghqk,bghqd->bgkd", pulled, queries[..., start:stop, :]) * form.scale
        by_value = _product("bghqk,bghqd->bgkd", exponentials, error)
        key_gradient = key_gradient.at[:, :, first:last].add(by_key)
        value_gradient = value_gradient.at[:, :, first:last].add(by_value)
    query_gradient = query_parts[0] if len(query_parts) == 1 else jnp.concatenate(query_parts, axis=3)
    return (
        _by_place(query_gradient).astype(queries.dtype),
        _by_place(key_gradient[:, :, None]).astype(keys.dtype),
        _by_place(value_gradient[:, :, None]).astype(values.dtype),
        None if bias is None or bias_gradient is None else bias_gradient.astype(bias.dtype),
        None,
    )


_attend.defvjp(_attend_forward, _attend_backward)


BACKENDS: dict[str, Attention] = {"reference": reference, "blocked": blocked}

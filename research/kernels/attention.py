"""Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1), with grouped keys (Ainslie et al. 2023)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.kernels.patterns import Pattern

HIDDEN = -1e30  # finite, so that rows of padding stay finite
CAUSAL_BLOCKS = 4  # blocks of queries; more skip more of the hidden half, and make smaller products

Attention = Callable[..., tuple[Float[Array, "batch query heads head_dim"], Float[Array, ""]]]


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
    out = jnp.einsum("bghqk,bkgd->bqghd", weights, value).reshape(query.shape)
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
    """The same, in blocks of queries that leave out the keys which no query of the block can see."""
    length, keys = query.shape[1], key.shape[1]
    causal, window = pattern.causal and not pattern.prefix, pattern.window
    aligned = isinstance(query_offset, int) and query_offset == 0 and length == keys
    if not aligned or not (causal or window is not None):
        parts = [(0, length, 0, keys)]
    else:
        size = -(-length // CAUSAL_BLOCKS)
        parts = []
        for start in range(0, length, size):
            first = 0 if window is None else max(0, start - window)
            stop = min(length, start + size)
            last = stop if causal or window is None else min(keys, stop + window)
            parts.append((start, stop, first, last))
    outs, largest = [], jnp.full((), HIDDEN, jnp.float32)
    for start, stop, first, last in parts:
        out, most = reference(
            query[:, start:stop],
            key[:, first:last],
            value[:, first:last],
            pattern=pattern,
            query_segments=query_segments[:, start:stop],
            key_segments=key_segments[:, first:last],
            query_offset=query_offset + start - first,
            key_prefix=None if key_prefix is None else key_prefix[:, first:last],
            bias=None if bias is None else bias[:, start:stop, first:last],
            scale=scale,
            softcap=softcap,
        )
        outs.append(out)
        largest = jnp.maximum(largest, most)
    return outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=1), largest


BACKENDS: dict[str, Attention] = {"reference": reference, "blocked": blocked}

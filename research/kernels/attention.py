"""Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1), with grouped keys (Ainslie et al. 2023)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.kernels.patterns import Pattern

HIDDEN = -1e30  # finite, so that rows of padding stay finite

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
) -> tuple[Float[Array, "batch query heads head_dim"], Float[Array, ""]]:
    """Attention as the formula stands, and the largest visible logit of real positions.

    Logits and softmax are float32 whatever the inputs are; query `i` stands at place `query_offset + i` of the keys.
    """
    batch, length, heads, width = query.shape
    groups = key.shape[2]
    grouped = query.reshape(batch, length, groups, heads // groups, width)
    logits = jnp.einsum("bqghd,bkgd->bghqk", grouped, key, preferred_element_type=jnp.float32) * width**-0.5
    visible = pattern.visible(query_segments, key_segments, query_offset)[:, None, None]
    logits = jnp.where(visible, logits, HIDDEN)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    out = jnp.einsum("bghqk,bkgd->bqghd", weights, value).reshape(query.shape)
    real = visible & (query_segments > 0)[:, None, None, :, None]
    return out, jnp.max(jax.lax.stop_gradient(logits), initial=HIDDEN, where=real)

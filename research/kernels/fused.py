"""Attention by `jax.nn.dot_product_attention`: cuDNN's fused kernel on GPUs, XLA's own program anywhere.

cuDNN never writes the logits to memory. Who may see whom beyond causality reaches it as a mask, `[batch, query, key]`.
What it does not know is left to blocked attention, and said once in the log.
"""

import dataclasses
import functools
import logging
from typing import Literal, cast

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from research.kernels import attention
from research.kernels.patterns import Pattern

MOST_HEAD_DIM = 128

log = logging.getLogger("isoflop")


@functools.cache
def _say(name: str, reason: str) -> None:
    log.warning("%s attention is replaced by blocked attention in a layer: %s", name, reason)


def unsupported(implementation: str, dtype: jnp.dtype, head_dim: int, softcap: float | None) -> str | None:
    """Why a call cannot be the fused one; none: it can."""
    if softcap is not None:
        return "it has no cap for the logits"
    if implementation == "cudnn" and dtype not in (jnp.bfloat16, jnp.float16):
        return f"it computes in bfloat16 and float16, not in {dtype}: set model.compute_dtype=bfloat16"
    if implementation == "cudnn" and (head_dim % 8 or head_dim > MOST_HEAD_DIM):
        return f"a head of {head_dim} is no multiple of 8 up to {MOST_HEAD_DIM}"
    return None


@dataclasses.dataclass(frozen=True)
class Fused:
    """The attention of one device.

    Attributes:
      implementation: `cudnn` or `xla`.
    """

    implementation: str

    def __call__(
        self,
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
    ) -> tuple[Float[Array, "batch query heads head_dim"], Float[Array, ""] | None]:
        """See `kernels.attention`; the largest logit is not known."""
        reason = unsupported(self.implementation, query.dtype, query.shape[3], softcap)
        if reason is not None:
            _say(self.implementation, reason)
            return attention.blocked(
                query,
                key,
                value,
                pattern=pattern,
                query_segments=query_segments,
                key_segments=key_segments,
                query_offset=query_offset,
                key_prefix=key_prefix,
                bias=bias,
                scale=scale,
                softcap=softcap,
            )
        aligned = isinstance(query_offset, int) and query_offset == 0 and query.shape[1] == key.shape[1]
        causal = pattern.causal and not pattern.prefix and aligned  # lets the kernel leave out the hidden half
        visible = pattern.visible(query_segments, key_segments, query_offset, key_prefix)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            out = jax.nn.dot_product_attention(
                query,
                key,
                value,
                None if bias is None else bias[None].astype(query.dtype),
                visible[:, None],
                scale=scale,
                is_causal=causal,
                implementation=cast(Literal["cudnn", "xla"], self.implementation),
            )
        return checkpoint_name(out, attention.KEPT), None

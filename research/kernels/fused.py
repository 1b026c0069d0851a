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
from jaxtyping import Array, Float

from research.kernels import attention
from research.kernels.attention import Form, Operands

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
        self, of: Operands, form: Form
    ) -> tuple[Float[Array, "batch query heads head_dim"], Float[Array, ""] | None]:
        """See `kernels.attention`; the largest logit is not known."""
        reason = unsupported(self.implementation, of.query.dtype, of.query.shape[3], form.softcap)
        if reason is not None:
            _say(self.implementation, reason)
            return attention.blocked(of, form)
        pattern = form.pattern
        causal = pattern.causal and not pattern.prefix and of.aligned  # lets the kernel leave out the hidden half
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            out = jax.nn.dot_product_attention(
                of.query,
                of.key,
                of.value,
                None if of.bias is None else of.bias[None].astype(of.query.dtype),
                of.visible(pattern)[:, None],
                scale=form.scale,
                is_causal=causal,
                implementation=cast(Literal["cudnn", "xla"], self.implementation),
            )
        return checkpoint_name(out, attention.KEPT), None

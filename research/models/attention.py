"""Multi-head self-attention with grouped keys, and its cache as a value."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.kernels import Kernels, Pattern
from research.models import layers
from research.parameters import Parameter
from research.settings import ModelSettings


def attention_parameters(settings: ModelSettings) -> list[Parameter]:
    """Projections to queries, keys and values and back, with biases where the settings ask for them."""
    embed, heads, groups, width = settings.embed_dim, settings.num_heads, settings.kv_heads, settings.head_width
    found = []
    for name, count, dimension in (
        ("query", heads, "heads"),
        ("key", groups, "kv_heads"),
        ("value", groups, "kv_heads"),
    ):
        shape, dimensions = (embed, count, width), ("embed", dimension, "head_dim")
        found.append(Parameter(f"attention/{name}", shape, dimensions, "kernel", embed, count * width, std=embed**-0.5))
        if settings.use_bias:
            bias = Parameter(f"attention/{name}_bias", shape[1:], dimensions[1:], "bias", 1, count * width, std=0.0)
            found.append(bias)
    if settings.qk_norm:
        for name in ("query_norm", "key_norm"):
            found.append(Parameter(f"attention/{name}", (width,), ("head_dim",), "norm", 1, 1, std=0.0, mean=1.0))
    inner = heads * width
    # Residual branches start small, so that the variance does not grow with depth (Radford et al. 2019, section 2.3).
    std = (inner * 2 * settings.num_layers) ** -0.5
    found.append(
        Parameter(
            "attention/out", (heads, width, embed), ("heads", "head_dim", "embed"), "kernel", inner, embed, std=std
        )
    )
    if settings.use_bias:
        found.append(Parameter("attention/out_bias", (embed,), ("embed",), "bias", 1, embed, std=0.0))
    return found


class Attention(nn.Module):
    """Self-attention of one block."""

    settings: ModelSettings
    kernels: Kernels
    constrain: layers.Constrain

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch seq embed"],
        segment_ids: Int[Array, "batch seq"],
        positions: Int[Array, "batch seq"],
        pattern: Pattern,
        cache: "tuple[Array, Array, Array, Array] | None" = None,
    ) -> tuple[Float[Array, "batch seq embed"], Float[Array, ""], tuple[Array, Array] | None]:
        """The output, the largest attention logit, and the cache's new keys and values.

        `cache` holds keys and values `[batch, length, kv_heads, head_dim]`, the segment ids of all `length` places, and
        the number of places filled before this call.
        """
        weights = layers.declare(self, attention_parameters(self.settings), x.dtype)
        query, key, value = (self._project(x, weights, name) for name in ("query", "key", "value"))
        if self.settings.qk_norm:  # bounds the logits (Dehghani et al. 2023, section 3.1)
            epsilon = self.settings.norm_epsilon
            query = layers.root_mean_square(query, weights["query_norm"], epsilon)
            key = layers.root_mean_square(key, weights["key_norm"], epsilon)
        if self.settings.position == "rotary":
            query = layers.rotary(query, positions, self.settings.rotary_base)
            key = layers.rotary(key, positions, self.settings.rotary_base)
        query = self.constrain(query, ("batch", "sequence", "heads", "head_dim"))
        key_segments, offset, kept = segment_ids, jnp.zeros((), jnp.int32), None
        if cache is not None:
            keys, values, key_segments, offset = cache
            key = jax.lax.dynamic_update_slice_in_dim(keys, key.astype(keys.dtype), offset, axis=1)
            value = jax.lax.dynamic_update_slice_in_dim(values, value.astype(values.dtype), offset, axis=1)
            kept = (key, value)
        out, logit_max = self.kernels.attention(
            query,
            key,
            value,
            pattern=pattern,
            query_segments=segment_ids,
            key_segments=key_segments,
            query_offset=offset if cache is not None else 0,
        )
        flat = out.reshape(*out.shape[:2], -1)
        result = self.kernels.product(flat, weights["out"].reshape(flat.shape[-1], -1))
        if self.settings.use_bias:
            result += weights["out_bias"][None, None, :]
        return result, logit_max, kept

    def _project(self, x: Array, weights: dict[str, Array], name: str) -> Array:
        weight = weights[name]
        flat = self.kernels.product(x, weight.reshape(weight.shape[0], -1))
        if self.settings.use_bias:
            flat += weights[f"{name}_bias"].reshape(1, 1, -1)
        return flat.reshape(*x.shape[:2], *weight.shape[1:])

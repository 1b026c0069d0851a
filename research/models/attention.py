"""Multi-head attention with grouped keys, over the sequence itself or over an encoder's, and its cache as a value."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from research.kernels import Kernels, Pattern
from research.kernels.attention import Form, Operands
from research.models import layers, positions
from research.parameters import Parameter
from research.settings import ModelSettings

EVERYTHING = Pattern(causal=False)


class Places(NamedTuple):
    """Where the tokens of a sequence stand.

    Attributes:
      segment_ids: documents, 1, 2, ...; 0 is padding.
      positions: counted from 0 in each document.
      prefix: 1 for the positions of a bidirectional prefix; none: there is none.
    """

    segment_ids: Int[Array, "batch seq"]
    positions: Int[Array, "batch seq"]
    prefix: Int[Array, "batch seq"] | None = None


class Filled(NamedTuple):
    """One layer's cache: what was decoded so far.

    Attributes:
      keys: `length` places of them.
      values: the same of values.
      segment_ids: of all places, those of this call included.
      offset: places filled before this call.
    """

    keys: Float[Array, "batch length kv_heads head_dim"]
    values: Float[Array, "batch length kv_heads head_dim"]
    segment_ids: Int[Array, "batch length"]
    offset: Int[Array, ""]


class Memory(NamedTuple):
    """What a decoder attends to: an encoder's hidden states, or one layer's keys and values of them.

    Attributes:
      hidden: the encoder's output; none where keys and values are given.
      segment_ids: documents of the encoder's positions.
      kept: keys and values `[batch, memory, kv_heads, head_dim]`.
    """

    hidden: Float[Array, "batch memory embed"] | None
    segment_ids: Int[Array, "batch memory"]
    kept: tuple[Array, Array] | None = None


def attention_parameters(settings: ModelSettings, num_layers: int, name: str = "attention") -> list[Parameter]:
    """Projections to queries, keys and values and back, with biases where the settings ask for them."""
    embed, heads, groups, width = settings.embed_dim, settings.num_heads, settings.kv_heads, settings.head_width
    found = []
    for part, count, dimension in (
        ("query", heads, "heads"),
        ("key", groups, "kv_heads"),
        ("value", groups, "kv_heads"),
    ):
        shape, dimensions = (embed, count, width), ("embed", dimension, "head_dim")
        std = embed**-0.5
        if part == "query" and settings.attention_scale is not None:
            std *= width**-0.5 / settings.attention_scale  # logits begin alike, whatever scales them (as in T5)
        found.append(Parameter(f"{name}/{part}", shape, dimensions, "kernel", embed, count * width, std=std))
        if settings.projection_bias:
            bias = Parameter(f"{name}/{part}_bias", shape[1:], dimensions[1:], "bias", 1, count * width, std=0.0)
            found.append(bias)
    if settings.qk_norm:
        mean = 0.0 if settings.norm_centred else 1.0
        for part in ("query_norm", "key_norm"):
            found.append(Parameter(f"{name}/{part}", (width,), ("head_dim",), "norm", 1, 1, std=0.0, mean=mean))
    inner = heads * width
    # Residual branches start small, so that the variance does not grow with depth (Radford et al. 2019, section 2.3).
    std = (inner * 2 * num_layers) ** -0.5
    found.append(
        Parameter(f"{name}/out", (heads, width, embed), ("heads", "head_dim", "embed"), "kernel", inner, embed, std=std)
    )
    if settings.use_bias:
        found.append(Parameter(f"{name}/out_bias", (embed,), ("embed",), "bias", 1, embed, std=0.0))
    return found


class Attention(nn.Module):
    """Attention of one block over its own sequence.

    Attributes:
      settings: shape and numerics.
      kernels: the implementation.
      constrain: pins layouts.
      local: this layer sees `attention_window` alone.
    """

    settings: ModelSettings
    kernels: Kernels
    constrain: layers.Constrain
    local: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch seq embed"],
        places: Places,
        pattern: Pattern,
        bias: Float[Array, "heads seq key"] | None = None,
        cache: Filled | None = None,
    ) -> tuple[Float[Array, "batch seq embed"], Float[Array, ""] | None, tuple[Array, Array] | None]:
        """The output, the largest attention logit where the kernel knows it, and the cache's new keys and values."""
        settings = self.settings
        weights = layers.declare(self, attention_parameters(settings, 1), x.dtype)
        query, key, value = (projected(self.kernels, settings, x, weights, n) for n in ("query", "key", "value"))
        if settings.position == "rotary":
            frequencies, factor = positions.rotary_frequencies(settings, self.local)
            query = positions.rotary(query, places.positions, frequencies, factor)
            key = positions.rotary(key, places.positions, frequencies, factor)
        query = self.constrain(query, ("batch", "sequence", "heads", "head_dim"))
        key_segments, prefix, offset, kept = places.segment_ids, places.prefix, jnp.zeros((), jnp.int32), None
        if cache is not None:
            offset, key_segments = cache.offset, cache.segment_ids
            key = jax.lax.dynamic_update_slice_in_dim(cache.keys, key.astype(cache.keys.dtype), offset, axis=1)
            value = jax.lax.dynamic_update_slice_in_dim(cache.values, value.astype(cache.values.dtype), offset, axis=1)
            kept = (key, value)
            if prefix is not None:  # what was decoded before is seen in any case
                prefix = jax.lax.dynamic_update_slice_in_dim(jnp.zeros_like(key_segments), prefix, offset, axis=1)
        query, key, value = (checkpoint_name(x, layers.HEADS) for x in (query, key, value))
        out, logit_max = self.kernels.attention(
            Operands(
                query,
                key,
                value,
                places.segment_ids,
                key_segments,
                query_offset=offset if cache is not None else 0,
                key_prefix=prefix,
                bias=bias,
            ),
            Form(
                pattern.within(settings.attention_window) if self.local else pattern,
                settings.attention_scale,
                settings.attention_softcap,
            ),
        )
        return returned(self.kernels, out, weights), logit_max, kept


class CrossAttention(nn.Module):
    """Attention of a decoder's block over the encoder: each document of the decoder sees its own in the encoder."""

    settings: ModelSettings
    kernels: Kernels
    constrain: layers.Constrain

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch seq embed"], segment_ids: Int[Array, "batch seq"], memory: Memory
    ) -> tuple[Float[Array, "batch seq embed"], Float[Array, ""] | None]:
        """The output, and the largest attention logit where the kernel knows it."""
        weights = layers.declare(self, attention_parameters(self.settings, 1), x.dtype)
        query = projected(self.kernels, self.settings, x, weights, "query")
        query = self.constrain(query, ("batch", "sequence", "heads", "head_dim"))
        key, value = memory.kept or remembered(self.kernels, self.settings, memory.hidden, weights)
        query, key, value = (checkpoint_name(x, layers.HEADS) for x in (query, key, value))
        out, logit_max = self.kernels.attention(
            Operands(query, key, value, segment_ids, memory.segment_ids),
            Form(EVERYTHING, self.settings.attention_scale, self.settings.attention_softcap),
        )
        return returned(self.kernels, out, weights), logit_max


def remembered(
    kernels: Kernels, settings: ModelSettings, hidden: Float[Array, "batch memory embed"] | None, weights: dict
) -> tuple[Array, Array]:
    """Keys and values `[batch, memory, kv_heads, head_dim]` of an encoder's hidden states."""
    assert hidden is not None
    weights = {name: weight.astype(hidden.dtype) for name, weight in weights.items()}
    return projected(kernels, settings, hidden, weights, "key"), projected(kernels, settings, hidden, weights, "value")


def projected(
    kernels: Kernels, settings: ModelSettings, x: Array, weights: dict[str, Array], name: str
) -> Float[Array, "batch seq heads head_dim"]:
    """Queries, keys or values by head, normalised where the settings say so (Dehghani et al. 2023, section 3.1)."""
    weight = weights[name]
    flat = kernels.product(x, weight.reshape(weight.shape[0], -1))
    if settings.projection_bias:
        flat = layers.biased(flat, weights[f"{name}_bias"].reshape(-1))
    heads = flat.reshape(*x.shape[:2], *weight.shape[1:])
    if settings.qk_norm and name != "value":
        heads = layers.root_mean_square(heads, weights[f"{name}_norm"], settings)
    return heads


def returned(kernels: Kernels, out: Array, weights: dict[str, Array]) -> Float[Array, "batch seq embed"]:
    """The heads' outputs, projected back to the residual stream."""
    flat = out.reshape(*out.shape[:2], -1)
    result = kernels.product(flat, weights["out"].reshape(flat.shape[-1], -1))
    return layers.biased(result, weights["out_bias"]) if "out_bias" in weights else result

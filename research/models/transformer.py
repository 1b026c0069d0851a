"""The transformer: embeddings, one stack, a head. The attention pattern makes it encoder or decoder."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.kernels import Pattern
from research.models import layers, positions
from research.models.attention import Filled, Places
from research.models.model import Model, Outputs, Params
from research.models.stack import Stack
from research.parameters import Parameter
from research.settings import ModelSettings


class Cache(NamedTuple):
    """Keys and values of what was decoded so far, as a value; `length` places are filled."""

    keys: Float[Array, "layers batch length kv_heads head_dim"]
    values: Float[Array, "layers batch length kv_heads head_dim"]
    segment_ids: Int[Array, "batch length"]
    length: Int[Array, ""]

    def with_segments(self, segment_ids: Int[Array, "batch seq"]) -> Filled:
        """The cache with the documents of the next tokens."""
        whole = jax.lax.dynamic_update_slice_in_dim(self.segment_ids, segment_ids, self.length, axis=1)
        return Filled(self.keys, self.values, whole, self.length)


def embedding_parameters(settings: ModelSettings, max_positions: int) -> list[Parameter]:
    """The tables beside that of the tokens, and the norm over their sum."""
    embed, std, found = settings.embed_dim, settings.embedding_std, []
    if settings.position == "learned":
        shape, dimensions = (max_positions + settings.position_offset, embed), ("positions", "embed")
        found.append(Parameter("embedding/positions", shape, dimensions, "embedding", 1, embed, std=std))
    if settings.token_types:
        shape, dimensions = (settings.token_types, embed), ("types", "embed")
        found.append(Parameter("embedding/types", shape, dimensions, "embedding", 1, embed, std=std))
    return found + (layers.norm_parameters("embedding/norm", settings) if settings.embedding_norm else [])


def embedded(
    model: Model, params: Params, tokens: Array, places: Places, types: Int[Array, "batch seq"] | None = None
) -> Float[Array, "batch seq embed"]:
    """The sum of the embeddings of tokens, positions and types, normalised where the model does so."""
    settings, weights = model.settings, params["embedding"]
    x = model.embed(params, tokens)
    if settings.position == "learned":
        rows = places.positions + settings.position_offset
        x += model.kernels.embedding(weights["positions"], rows, x.dtype, ("positions", "embed"))
    elif settings.position == "sinusoidal":
        x += positions.sinusoids(places.positions, settings.embed_dim).astype(x.dtype)
    if settings.token_types:
        rows = jnp.zeros_like(tokens) if types is None else types
        x += model.kernels.embedding(weights["types"], rows, x.dtype, ("types", "embed"))
    if settings.embedding_norm:
        x = layers.normalise(x, weights["norm"], settings)
    return model.constrain(x, ("batch", "sequence", "embed"))


def drops(model: Model, key: Array | None, rate: Array | None) -> tuple[Array | None, Array | None]:
    """Key and rate of dropout, or twice none where the settings or the caller want none."""
    return (key, rate) if key is not None and rate is not None and model.settings.dropout > 0.0 else (None, None)


@dataclasses.dataclass(frozen=True)
class Transformer(Model):
    """GPT, Llama, BERT and their relatives."""

    @property
    def stack(self) -> Stack:
        """The blocks."""
        return Stack(self.settings, self.kernels, self.constrain, self.settings.num_layers, self.scan, self.remat)

    def _stack(self, pattern: Pattern) -> Stack:
        return dataclasses.replace(self.stack, causal=pattern.causal and not pattern.prefix)

    def body_parameters(self) -> list[Parameter]:
        """The other embeddings and the stack."""
        return [*embedding_parameters(self.settings, self.max_positions), *self.stack.parameters()]

    def apply(
        self,
        params: Params,
        inputs: Mapping[str, Array],
        *,
        pattern: Pattern,
        key: Array | None = None,
        dropout: Float[Array, ""] | None = None,
    ) -> Outputs:
        """Hidden states of `inputs`; see `Model.apply`."""
        key, rate = drops(self, key, dropout)
        places = Places(inputs["segment_ids"], inputs["positions"], inputs.get("prefix"))
        x = embedded(self, params, inputs["tokens"], places, inputs.get("types"))
        x = layers.dropout(x, rate, None if key is None else jax.random.fold_in(key, 0))
        x, measured = self._stack(pattern).run(params, x, places, pattern, key, rate)
        return Outputs(x, measured.aux, measured.losses)

    def init_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `length` places."""
        settings = self.settings
        shape = (settings.num_layers, batch, length, settings.kv_heads, settings.head_width)
        keys, values = (jnp.zeros(shape, settings.compute_dtype) for _ in range(2))
        return Cache(keys, values, jnp.zeros((batch, length), jnp.int32), jnp.zeros((), jnp.int32))

    def decode(
        self, params: Params, cache: Cache, inputs: Mapping[str, Array], *, pattern: Pattern
    ) -> tuple[Float[Array, "batch seq embed"], Cache]:
        """Hidden states of the next `seq` tokens, which see the cache and one another, and the cache with them."""
        tokens = inputs["tokens"]
        places = Places(inputs["segment_ids"], inputs["positions"], inputs.get("prefix"))
        x = embedded(self, params, tokens, places, inputs.get("types"))
        filled = cache.with_segments(places.segment_ids)
        x, (keys, values) = self._stack(pattern).decode(params, x, places, pattern, filled)
        return x, Cache(keys, values, filled.segment_ids, cache.length + tokens.shape[1])

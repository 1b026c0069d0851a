"""An encoder and a decoder (Vaswani et al. 2017; Raffel et al. 2020): two stacks that share the embedding."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.kernels import Pattern
from research.models import layers
from research.models.attention import EVERYTHING, Memory, Places, remembered
from research.models.model import Model, Outputs, Params
from research.models.stack import Stack
from research.models.transformer import Cache, drops, embedded, embedding_parameters
from research.parameters import Parameter


class CrossCache(NamedTuple):
    """A decoder's cache, and keys and values of what the encoder read."""

    decoder: Cache
    cross_keys: Float[Array, "layers batch memory kv_heads head_dim"]
    cross_values: Float[Array, "layers batch memory kv_heads head_dim"]
    memory_segments: Int[Array, "batch memory"]

    @property
    def length(self) -> Int[Array, ""]:
        """Places of the decoder that are filled."""
        return self.decoder.length


@dataclasses.dataclass(frozen=True)
class EncoderDecoder(Model):
    """T5, and the original Transformer."""

    @property
    def encoder(self) -> Stack:
        """The blocks that read from both sides."""
        layers = self.settings.encoder_layers
        return Stack(self.settings, self.kernels, self.constrain, layers, self.scan, self.remat, causal=False)

    @property
    def decoder(self) -> Stack:
        """The blocks that also attend to the encoder."""
        layers = self.settings.num_layers
        return Stack(self.settings, self.kernels, self.constrain, layers, self.scan, self.remat, cross=True)

    def body_parameters(self) -> list[Parameter]:
        """The other embeddings, which both stacks use, the encoder's and the decoder's stack."""
        encoder = [
            dataclasses.replace(parameter, path=f"encoder/{parameter.path}") for parameter in self.encoder.parameters()
        ]
        return [*embedding_parameters(self.settings, self.max_positions), *encoder, *self.decoder.parameters()]

    def encode(
        self,
        params: Params,
        inputs: Mapping[str, Array],
        *,
        key: Array | None = None,
        dropout: Float[Array, ""] | None = None,
    ) -> Outputs:
        """Hidden states of the encoder, `[batch, memory, embed]`, from the inputs called `encoder_*`."""
        key, rate = drops(self, key, dropout)
        places = Places(inputs["encoder_segment_ids"], inputs["encoder_positions"])
        x = embedded(self, params, inputs["encoder_tokens"], places)
        x = layers.dropout(x, rate, None if key is None else jax.random.fold_in(key, 0))
        x, measured = self.encoder.run(params["encoder"], x, places, EVERYTHING, key, rate)
        return Outputs(x, measured.aux, measured.losses)

    def apply(
        self,
        params: Params,
        inputs: Mapping[str, Array],
        *,
        pattern: Pattern,
        key: Array | None = None,
        dropout: Float[Array, ""] | None = None,
    ) -> Outputs:
        """Hidden states of the decoder; `pattern` is the decoder's, the encoder sees both sides."""
        key, rate = drops(self, key, dropout)
        keys = (None, None) if key is None else (jax.random.fold_in(key, 0), jax.random.fold_in(key, 1))
        encoded = self.encode(params, inputs, key=keys[0], dropout=rate)
        places = Places(inputs["segment_ids"], inputs["positions"])
        x = embedded(self, params, inputs["tokens"], places)
        x = layers.dropout(x, rate, None if keys[1] is None else jax.random.fold_in(keys[1], 0))
        memory = Memory(encoded.hidden, inputs["encoder_segment_ids"])
        x, measured = self.decoder.run(params, x, places, pattern, keys[1], rate, memory)
        aux = measured.aux | {f"encoder_{name}": value for name, value in encoded.aux.items()}
        return Outputs(x, aux, jax.tree.map(lambda a, b: (a + b) / 2.0, measured.losses, encoded.losses))

    def init_cache(self, batch: int, length: int, memory: int = 0) -> CrossCache:
        """An empty cache for `length` places of the decoder; `remember` fills the encoder's side."""
        settings = self.settings
        own = (settings.num_layers, batch, length, settings.kv_heads, settings.head_width)
        cross = (settings.num_layers, batch, memory, settings.kv_heads, settings.head_width)
        made = [jnp.zeros(shape, settings.compute_dtype) for shape in (own, own, cross, cross)]
        decoder = Cache(made[0], made[1], jnp.zeros((batch, length), jnp.int32), jnp.zeros((), jnp.int32))
        return CrossCache(decoder, made[2], made[3], jnp.zeros((batch, memory), jnp.int32))

    def remember(self, params: Params, cache: CrossCache, inputs: Mapping[str, Array]) -> CrossCache:
        """The cache with the keys and values of what the encoder reads in the inputs called `encoder_*`."""
        hidden = self.encode(params, inputs).hidden

        def project(weights: Any) -> tuple[Array, Array]:
            return remembered(self.kernels, self.settings, hidden, weights)

        keys, values = jax.lax.map(project, params["layers"]["cross_attention"])
        return CrossCache(cache.decoder, keys, values, inputs["encoder_segment_ids"])

    def decode(
        self, params: Params, cache: CrossCache, inputs: Mapping[str, Array], *, pattern: Pattern
    ) -> tuple[Float[Array, "batch seq embed"], CrossCache]:
        """Hidden states of the decoder's next tokens, and the cache with them; `remember` comes first."""
        tokens = inputs["tokens"]
        places = Places(inputs["segment_ids"], inputs["positions"])
        x = embedded(self, params, tokens, places)
        filled = cache.decoder.with_segments(places.segment_ids)
        memory = Memory(None, cache.memory_segments, (cache.cross_keys, cache.cross_values))
        x, (keys, values) = self.decoder.decode(params, x, places, pattern, filled, memory)
        decoder = Cache(keys, values, filled.segment_ids, cache.decoder.length + tokens.shape[1])
        return x, cache._replace(decoder=decoder)

"""The transformer: embeddings, a stack of equal blocks, a head. The attention pattern makes it encoder or decoder."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research import trees
from research.kernels import Kernels, Pattern, vocabulary
from research.models import layers
from research.models.attention import Attention, attention_parameters
from research.models.mlp import Mlp, mlp_parameters
from research.parameters import Parameter
from research.settings import ModelSettings

Params = Mapping[str, Any]


class Outputs(NamedTuple):
    """What a model gives: hidden states before the head, and named values by layer."""

    hidden: Float[Array, "batch seq embed"]
    aux: dict[str, Array]


class Cache(NamedTuple):
    """Keys and values of what was decoded so far, as a value; `length` places are filled."""

    keys: Float[Array, "layers batch length kv_heads head_dim"]
    values: Float[Array, "layers batch length kv_heads head_dim"]
    segment_ids: Int[Array, "batch length"]
    length: Int[Array, ""]


def block_parameters(settings: ModelSettings) -> list[Parameter]:
    """The weights of one block, with paths below the block."""
    return [
        *layers.norm_parameters("attention_norm", settings),
        *attention_parameters(settings),
        *layers.norm_parameters("mlp_norm", settings),
        *mlp_parameters(settings),
    ]


class Block(nn.Module):
    """Attention and MLP, each on a residual branch, normalised before it (pre) or after its sum (post)."""

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
        key: Array | None,
        rate: Float[Array, ""] | None,
        cache: tuple[Array, Array, Array, Array] | None = None,
    ) -> tuple[Float[Array, "batch seq embed"], dict[str, Array], tuple[Array, Array] | None]:
        """The residual stream, what is measured in the block, and the cache's new keys and values."""
        attention_norm = layers.Norm(self.settings, name="attention_norm")
        mlp_norm = layers.Norm(self.settings, name="mlp_norm")
        attention = Attention(self.settings, self.kernels, self.constrain, name="attention")
        mlp = Mlp(self.settings, self.kernels, self.constrain, name="mlp")
        before = self.settings.norm_position == "pre"
        keys = (None, None) if key is None else tuple(jax.random.split(key))

        branch = attention_norm(x) if before else x
        branch, logit_max, kept = attention(branch, segment_ids, positions, pattern, cache)
        x += layers.dropout(branch, rate, keys[0])
        x = x if before else attention_norm(x)
        branch = mlp(mlp_norm(x) if before else x)
        x += layers.dropout(branch, rate, keys[1])
        x = x if before else mlp_norm(x)
        return self.constrain(x, ("batch", "sequence", "embed")), {"attention_logit_max": logit_max}, kept


@dataclasses.dataclass(frozen=True)
class Transformer:
    """A `Model`: its methods are pure functions of the weights, a nested dictionary of float32 arrays.

    Attributes:
      settings: shape and numerics.
      vocab_size: number of token ids.
      max_positions: longest sequence, for learned positions.
      kernels: implementations that depend on the platform.
      constrain: pins the layout of an activation by the names of its dimensions.
      scan: execute the stacked layers as one loop; otherwise one after the other. The numbers are the same.
      remat: what the backward pass computes again: `none`, `dots` (all but matrix products) or `full`.
    """

    settings: ModelSettings
    vocab_size: int
    max_positions: int
    kernels: Kernels
    constrain: layers.Constrain = layers.unconstrained
    scan: bool = True
    remat: str = "none"

    def parameters(self) -> dict[str, Parameter]:
        """Every weight by its path."""
        settings, embed = self.settings, self.settings.embed_dim
        std = settings.embedding_std
        found = [
            Parameter("embedding/tokens", (self.vocab_size, embed), ("vocab", "embed"), "embedding", 1, embed, std=std)
        ]
        if settings.position == "learned":
            shape = (self.max_positions, embed)
            found.append(
                Parameter("embedding/positions", shape, ("positions", "embed"), "embedding", 1, embed, std=std)
            )
        found += [parameter.stacked(settings.num_layers, "layers") for parameter in block_parameters(settings)]
        if settings.norm_position == "pre":
            found += layers.norm_parameters("final_norm", settings)
        if not settings.tied_embeddings:
            shape, dimensions = (self.vocab_size, embed), ("vocab", "embed")
            found.append(Parameter("head/table", shape, dimensions, "head", embed, self.vocab_size, std=embed**-0.5))
        return {parameter.path: parameter for parameter in found}

    def init(self, key: Array) -> dict[str, Any]:
        """Initial weights: each a function of the key and its own path, each layer of its own key."""
        weights = {}
        for path, parameter in self.parameters().items():
            own = jax.random.fold_in(key, _number(path))
            if parameter.dimensions[0] == "layers":
                one = dataclasses.replace(parameter, shape=parameter.shape[1:], dimensions=parameter.dimensions[1:])
                layer_keys = jax.vmap(jax.random.fold_in, (None, 0))(own, jnp.arange(parameter.shape[0]))
                weights[path] = jax.vmap(lambda k, one=one: layers.initialise(one, k))(layer_keys)
            else:
                weights[path] = layers.initialise(parameter, own)
        return trees.unflatten(weights)

    def apply(
        self,
        params: Params,
        inputs: Mapping[str, Array],
        *,
        pattern: Pattern,
        key: Array | None = None,
        dropout: Float[Array, ""] | None = None,
    ) -> Outputs:
        """Hidden states of `inputs`: `tokens`, `segment_ids` (0: padding) and `positions`, int32 `[batch, seq]`.

        Without a key there is no dropout; `dropout` is the (traced) rate.
        """
        tokens, segment_ids, positions = inputs["tokens"], inputs["segment_ids"], inputs["positions"]
        rate = dropout if key is not None and self.settings.dropout > 0.0 else None
        key = None if rate is None else key
        x = self._embed(params, tokens, positions)
        x = layers.dropout(x, rate, None if key is None else jax.random.fold_in(key, 0))

        def run(x: Array, layer: Array, weights: Params) -> tuple[Array, dict[str, Array]]:
            own = None if key is None else jax.random.fold_in(key, layer + 1)
            x, aux, _ = self._block(weights, x, segment_ids, positions, pattern, own, rate)
            return x, aux

        x, aux = self._stack(self._rematerialised(run), x, params["layers"])
        return Outputs(self._finish(params, x), aux)

    def _embed(self, params: Params, tokens: Array, positions: Array) -> Array:
        x = params["embedding"]["tokens"][tokens]
        if self.settings.position == "learned":
            x += params["embedding"]["positions"][positions]
        return self.constrain(x.astype(self.settings.compute_dtype), ("batch", "sequence", "embed"))

    def _block(self, weights: Params, *arguments: Any) -> Any:
        return Block(self.settings, self.kernels, self.constrain).apply({"params": weights}, *arguments)

    def _finish(self, params: Params, x: Array) -> Array:
        if self.settings.norm_position == "pre":
            x = layers.normalise(x, params["final_norm"], self.settings.norm_epsilon)
        return x

    def _rematerialised(self, run: Callable[..., Any]) -> Callable[..., Any]:
        if self.remat == "none":
            return run
        policy = jax.checkpoint_policies.dots_saveable if self.remat == "dots" else None
        return jax.checkpoint(run, policy=policy, prevent_cse=not self.scan)

    def _stack(self, run: Callable[..., Any], x: Array, *stacked: Any) -> tuple[Array, Any]:
        """Runs `run(x, layer, *slices)` over the layers; what it gives beside `x` comes back stacked."""
        numbers = jnp.arange(self.settings.num_layers)
        if self.scan:
            return jax.lax.scan(lambda x, part: run(x, *part), x, (numbers, *stacked))
        found = []
        for layer in range(self.settings.num_layers):
            x, extra = run(x, numbers[layer], *jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked))
            found.append(extra)
        return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)

    # --- head -------------------------------------------------------------------------------------------------------

    def _table(self, params: Params) -> Array:
        table = params["embedding"]["tokens"] if self.settings.tied_embeddings else params["head"]["table"]
        return table.astype(self.settings.compute_dtype)

    def unembed(self, params: Params, hidden: Float[Array, "batch seq embed"]) -> Float[Array, "batch seq vocab"]:
        """Logits in float32: a wish of its own, since a loss never needs them all at once."""
        logits = jnp.einsum("bse,ve->bsv", hidden, self._table(params), preferred_element_type=jnp.float32)
        return self.constrain(logits, ("batch", "sequence", "vocab"))

    def vocabulary_loss(
        self,
        params: Params,
        hidden: Float[Array, "tokens embed"],
        targets: Int[Array, " tokens"],
        weights: Float[Array, " tokens"],
    ) -> Float[Array, ""]:
        """Weighted sum of cross entropies in nats."""
        return self.kernels.vocabulary_loss(hidden, self._table(params), targets, weights)

    def predictions(self, params: Params, hidden: Float[Array, "tokens embed"]) -> Int[Array, " tokens"]:
        """The most probable id at each position."""
        return vocabulary.predictions(hidden, self._table(params))

    # --- decoding ---------------------------------------------------------------------------------------------------

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
        tokens, segment_ids, positions = inputs["tokens"], inputs["segment_ids"], inputs["positions"]
        segments = jax.lax.dynamic_update_slice_in_dim(cache.segment_ids, segment_ids, cache.length, axis=1)

        def run(x: Array, layer: Array, weights: Params, keys: Array, values: Array) -> tuple[Array, Any]:
            del layer
            kept = (keys, values, segments, cache.length)
            x, _, new = self._block(weights, x, segment_ids, positions, pattern, None, None, kept)
            return x, new

        x = self._embed(params, tokens, positions)
        x, (keys, values) = self._stack(run, x, params["layers"], cache.keys, cache.values)
        return self._finish(params, x), Cache(keys, values, segments, cache.length + tokens.shape[1])


def _number(path: str) -> int:
    """A number for a path that no version of a library changes."""
    return zlib.crc32(path.encode())

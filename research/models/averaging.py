"""The plain baseline: an MLP over a token and the average of what it may see (Iyyer et al. 2015), as a `Model`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.kernels import Pattern
from research.models import layers
from research.models.mlp import Mlp, mlp_parameters
from research.models.model import Model, Outputs, Params
from research.models.transformer import drops
from research.parameters import Parameter


class Read(NamedTuple):
    """The embeddings of what was read so far; `length` places are filled."""

    embeddings: Float[Array, "batch places embed"]
    segment_ids: Int[Array, "batch places"]
    length: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Averaging(Model):
    """Each position: its embedding plus the mean of the visible ones, through residual MLPs. It knows no order.

    As a classifier it takes the first position of a row, from which a bidirectional pattern sees the whole document.
    """

    def body_parameters(self) -> list[Parameter]:
        """A norm and an MLP a layer, and the final norm."""
        settings = self.settings
        block = [*layers.norm_parameters("mlp_norm", settings), *mlp_parameters(settings, settings.num_layers)]
        stacked = [parameter.stacked(settings.num_layers, "layers") for parameter in block]
        return stacked + layers.norm_parameters("final_norm", settings)

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
        segments = inputs["segment_ids"]
        visible = pattern.visible(segments, segments, 0, inputs.get("prefix"))
        x = self.embed(params, inputs["tokens"])
        return Outputs(self._hidden(params, x, self._mean(visible, x), key, rate), {})

    def init_cache(self, batch: int, length: int) -> Read:
        """An empty cache for `length` places."""
        embeddings = jnp.zeros((batch, length, self.settings.embed_dim), self.settings.compute_dtype)
        return Read(embeddings, jnp.zeros((batch, length), jnp.int32), jnp.zeros((), jnp.int32))

    def decode(
        self, params: Params, cache: Read, inputs: Mapping[str, Array], *, pattern: Pattern
    ) -> tuple[Float[Array, "batch seq embed"], Read]:
        """Hidden states of the next `seq` tokens, and the cache with them."""
        segments, prefix = inputs["segment_ids"], inputs.get("prefix")
        x = self.embed(params, inputs["tokens"])
        read = jax.lax.dynamic_update_slice_in_dim(cache.embeddings, x, cache.length, axis=1)
        whole = jax.lax.dynamic_update_slice_in_dim(cache.segment_ids, segments, cache.length, axis=1)
        if prefix is not None:
            prefix = jax.lax.dynamic_update_slice_in_dim(jnp.zeros_like(whole), prefix, cache.length, axis=1)
        visible = pattern.visible(segments, whole, cache.length, prefix)
        hidden = self._hidden(params, x, self._mean(visible, read), None, None)
        return hidden, Read(read, whole, cache.length + segments.shape[1])

    def _mean(self, visible: Array, x: Array) -> Array:
        weights = visible.astype(jnp.float32)
        weights /= jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1.0)
        return weights.astype(x.dtype) @ x

    def _hidden(self, params: Params, x: Array, mean: Array, key: Array | None, rate: Array | None) -> Array:
        mlp = Mlp(self.settings, self.kernels, self.constrain)

        def run(x: Array, part: tuple) -> tuple[Array, None]:
            layer, weights = part
            inner = layers.normalise(x, weights["mlp_norm"], self.settings)
            own = None if key is None else jax.random.fold_in(key, layer + 1)
            branch: Any = mlp.apply({"params": weights["mlp"]}, inner)
            return x + layers.dropout(branch, rate, own), None

        numbers = jnp.arange(self.settings.num_layers)
        return layers.normalise(
            jax.lax.scan(run, x + mean, (numbers, params["layers"]))[0], params["final_norm"], self.settings
        )

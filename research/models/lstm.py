"""The recurrent baseline: a stack of LSTM layers (Hochreiter & Schmidhuber 1997; Zaremba et al. 2014) as a `Model`."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.errors import UserError
from research.kernels import Pattern
from research.models import layers
from research.models.model import Model, Outputs, Params
from research.models.transformer import drops
from research.parameters import Parameter


class Recurrence(NamedTuple):
    """The state of every layer after the last token, and that token's document."""

    hidden: Float[Array, "layers batch embed"]
    cell: Float[Array, "layers batch embed"]
    segment_ids: Int[Array, " batch"]
    length: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Lstm(Model):
    """Reads from left to right; the state begins anew with each document. Layers add to a residual stream."""

    def body_parameters(self) -> list[Parameter]:
        """Each layer's norm, its projections of the input and of the last output to four gates, the final norm."""
        embed = self.settings.embed_dim
        shape, dimensions, std = (embed, 4 * embed), ("embed", "mlp"), embed**-0.5
        block = [
            *layers.norm_parameters("norm", self.settings),
            Parameter("lstm/input", shape, dimensions, "kernel", embed, 4 * embed, std=std),
            Parameter("lstm/recurrent", shape, dimensions, "kernel", embed, 4 * embed, std=std),
            Parameter("lstm/bias", (4 * embed,), ("mlp",), "bias", 1, 4 * embed, std=0.0),
        ]
        stacked = [parameter.stacked(self.settings.num_layers, "layers") for parameter in block]
        return stacked + layers.norm_parameters("final_norm", self.settings)

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
        start = self.init_cache(inputs["tokens"].shape[0], 0)
        hidden, _ = self._read(params, start, inputs, pattern, *drops(self, key, dropout))
        return Outputs(hidden, {})

    def init_cache(self, batch: int, length: int) -> Recurrence:
        """The state before the first token; of any `length` it is the same size."""
        del length
        shape = (self.settings.num_layers, batch, self.settings.embed_dim)
        # Two arrays, not one twice: a cache is donated.
        hidden, cell = (jnp.zeros(shape, jnp.float32) for _ in range(2))
        return Recurrence(hidden, cell, jnp.zeros(batch, jnp.int32), jnp.zeros((), jnp.int32))

    def decode(
        self, params: Params, cache: Recurrence, inputs: Mapping[str, Array], *, pattern: Pattern
    ) -> tuple[Float[Array, "batch seq embed"], Recurrence]:
        """Hidden states of the next `seq` tokens, and the state behind them."""
        return self._read(params, cache, inputs, pattern, None, None)

    def _read(
        self,
        params: Params,
        cache: Recurrence,
        inputs: Mapping[str, Array],
        pattern: Pattern,
        key: Array | None,
        rate: Array | None,
    ) -> tuple[Array, Recurrence]:
        if not pattern.causal or pattern.prefix or pattern.window is not None:
            raise UserError("model.architecture=lstm reads from left to right alone: use objective.name=causal")
        segments = inputs["segment_ids"]
        before = jnp.concatenate([cache.segment_ids[:, None], segments[:, :-1]], axis=1)
        begins = (before != segments).T
        x = self.embed(params, inputs["tokens"])
        x = layers.dropout(x, rate, None if key is None else jax.random.fold_in(key, 0))

        def run(x: Array, part: tuple) -> tuple[Array, tuple[Array, Array]]:
            layer, weights, hidden, cell = part
            out, state = self._layer(weights, layers.normalise(x, weights["norm"], self.settings), begins, hidden, cell)
            own = None if key is None else jax.random.fold_in(key, layer + 1)
            return x + layers.dropout(out, rate, own), state

        numbers = jnp.arange(self.settings.num_layers)
        x, (hidden, cell) = jax.lax.scan(run, x, (numbers, params["layers"], cache.hidden, cache.cell))
        x = layers.normalise(x, params["final_norm"], self.settings)
        return x, Recurrence(hidden, cell, segments[:, -1], cache.length + segments.shape[1])

    def _layer(
        self, weights: Params, x: Array, begins: Array, hidden: Array, cell: Array
    ) -> tuple[Array, tuple[Array, Array]]:
        """One layer over time; its state is float32, and zero where a document begins."""
        own = {name: weight.astype(x.dtype) for name, weight in weights["lstm"].items()}
        entered = self.kernels.product(x, own["input"]) + own["bias"][None, None, :]

        def step(state: tuple[Array, Array], part: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
            now, begin = part
            hidden, cell = (jnp.where(begin[:, None], 0.0, value) for value in state)
            gates = (now + hidden.astype(x.dtype) @ own["recurrent"]).astype(jnp.float32)
            enter, forget, new, leave = jnp.split(gates, 4, axis=-1)
            # The forget gate begins open (Jozefowicz et al. 2015, section 5).
            cell = jax.nn.sigmoid(forget + 1.0) * cell + jax.nn.sigmoid(enter) * jnp.tanh(new)
            hidden = jax.nn.sigmoid(leave) * jnp.tanh(cell)
            return (hidden, cell), hidden.astype(x.dtype)

        state, out = jax.lax.scan(step, (hidden, cell), (entered.swapaxes(0, 1), begins))
        return out.swapaxes(0, 1), state

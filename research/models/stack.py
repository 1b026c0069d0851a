"""A stack of blocks that repeats a period: the transformer's body, of an encoder and of a decoder alike."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from research.kernels import ATTENTION, Kernels, Pattern
from research.models import layers, positions
from research.models.attention import Attention, CrossAttention, Filled, Memory, Places, attention_parameters
from research.models.experts import Experts, expert_parameters
from research.models.mlp import Mlp, mlp_parameters
from research.parameters import Parameter
from research.settings import ModelSettings

Params = Mapping[str, Any]

_keeping = jax.checkpoint_policies.save_only_these_names
# What the backward pass finds, by `parallel.remat`; the input of each block besides.
POLICIES: dict[str, Any] = {
    "dots": _keeping(layers.HEADS, ATTENTION, layers.STREAM, layers.WIDE),
    "most": _keeping(layers.HEADS, ATTENTION, layers.WIDE),
    "narrow": _keeping(layers.HEADS, ATTENTION, layers.STREAM),
    "heads": _keeping(layers.HEADS),
    "full": None,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[layers.HEADS, ATTENTION],
        names_which_can_be_offloaded=[layers.STREAM, layers.WIDE],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


class Measured(NamedTuple):
    """What a pass measures beside its hidden states, by name: statistics, and losses summed over sequences."""

    aux: dict[str, Array]
    losses: dict[str, Array]


def block_parameters(settings: ModelSettings, num_layers: int, cross: bool) -> list[Parameter]:
    """The weights of one block, with paths below the block."""

    def sublayer(name: str, inner: list[Parameter]) -> list[Parameter]:
        found = [*layers.norm_parameters(f"{name}_norm", settings), *inner]
        if settings.norm_position == "both":
            found += layers.norm_parameters(f"{name}_post_norm", settings)
        return found

    found = sublayer("attention", attention_parameters(settings, num_layers))
    if cross:
        found += sublayer("cross", attention_parameters(settings, num_layers, "cross_attention"))
    routed = settings.num_experts > 0
    return found + sublayer("mlp", (expert_parameters if routed else mlp_parameters)(settings, num_layers))


class Block(nn.Module):
    """Attention, attention over an encoder where there is one, and an MLP, each on a residual branch.

    A branch is normalised before it (pre), after its sum (post), or before and after itself (both).
    """

    settings: ModelSettings
    kernels: Kernels
    constrain: layers.Constrain
    local: bool
    cross: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch seq embed"],
        layer: Int[Array, ""],
        places: Places,
        pattern: Pattern,
        bias: Float[Array, "heads seq key"] | None,
        key: Array | None,
        rate: Float[Array, ""] | None,
        cache: Filled | None = None,
        memory: Memory | None = None,
    ) -> tuple[Float[Array, "batch seq embed"], Measured, tuple[Array, Array] | None]:
        """The residual stream, what is measured in the block, and the cache's new keys and values."""
        settings, parts = self.settings, (self.settings, self.kernels, self.constrain)
        before, after = settings.norm_position != "post", settings.norm_position == "both"
        keys = iter((None,) * 3 if key is None else jax.random.split(key, 3 if self.cross else 2))

        def norm(name: str, x: Array) -> Array:
            return layers.Norm(settings, name=name)(x)

        def entered(name: str, x: Array) -> Array:
            return norm(f"{name}_norm", x) if before else x

        def added(name: str, x: Array, branch: Array) -> Array:
            branch = norm(f"{name}_post_norm", branch) if after else branch
            x = x + layers.dropout(branch, rate, next(keys))
            return x if before else norm(f"{name}_norm", x)

        inner = entered("attention", x)
        if not settings.first_norm:
            inner = jnp.where(layer == 0, x, inner)
        attention = Attention(*parts, local=self.local, name="attention")
        branch, logit_max, kept = attention(inner, places, pattern, bias, cache)
        x = checkpoint_name(added("attention", x, branch), layers.STREAM)
        if self.cross:
            assert memory is not None
            cross = CrossAttention(*parts, name="cross_attention")
            branch, cross_max = cross(entered("cross", x), places.segment_ids, memory)
            x = checkpoint_name(added("cross", x, branch), layers.STREAM)
            logit_max = None if logit_max is None or cross_max is None else jnp.maximum(logit_max, cross_max)
        inner = entered("mlp", x)
        losses: dict[str, Array] = {}
        if settings.num_experts:
            branch, losses = Experts(*parts, name="experts")(inner, places.segment_ids > 0)
        else:
            branch = Mlp(*parts, name="mlp")(inner)
        x = self.constrain(added("mlp", x, branch), ("batch", "sequence", "embed"))
        aux = {} if logit_max is None else {"attention_logit_max": logit_max}
        return x, Measured(aux, losses), kept


@dataclasses.dataclass(frozen=True)
class Stack:
    """`num_layers` blocks whose weights are stacked, and the norm behind them.

    Attributes:
      settings: shape and numerics.
      kernels: implementations that depend on the platform.
      constrain: pins the layout of an activation.
      num_layers: blocks.
      scan: execute the periods as a loop of so many a turn, the remainder one after the other; 0: no loop.
      remat: what the backward pass computes again.
      cross: the blocks attend to an encoder.
      causal: distances of relative biases are measured backwards alone.
    """

    settings: ModelSettings
    kernels: Kernels
    constrain: layers.Constrain
    num_layers: int
    scan: int
    remat: str
    cross: bool = False
    causal: bool = True

    def parameters(self) -> list[Parameter]:
        """The stacked blocks, the relative bias that they share, the final norm."""
        settings, count = self.settings, self.num_layers
        found = []
        for parameter in block_parameters(settings, count, self.cross):
            unused = not settings.first_norm and parameter.path.startswith("attention_norm/")
            found.append(parameter.stacked(count - 1 if unused else count, "layers"))
        found += positions.bias_parameters(settings)
        if settings.norm_position != "post":
            found += layers.norm_parameters("final_norm", settings)
        return found

    def run(
        self,
        params: Params,
        x: Float[Array, "batch seq embed"],
        places: Places,
        pattern: Pattern,
        key: Array | None = None,
        rate: Float[Array, ""] | None = None,
        memory: Memory | None = None,
    ) -> tuple[Float[Array, "batch seq embed"], Measured]:
        """The residual stream behind all blocks, normalised. Losses are means over the layers."""
        bias = self._bias(params, x.shape[1], x.shape[1], 0)

        def block(x: Array, layer: Array, local: bool, weights: Params) -> tuple[Array, Measured]:
            own = None if key is None else jax.random.fold_in(key, layer + 1)
            x, measured, _ = self._block(local, weights, x, layer, places, pattern, bias, own, rate, None, memory)
            return x, measured

        x, measured = self._repeat(block, x, self._weights(params))
        losses = {name: jnp.mean(values) for name, values in measured.losses.items()}
        return self._finish(params, x), Measured(measured.aux, losses)

    def decode(
        self,
        params: Params,
        x: Float[Array, "batch seq embed"],
        places: Places,
        pattern: Pattern,
        cache: Filled,
        memory: Memory | None = None,
    ) -> tuple[Float[Array, "batch seq embed"], tuple[Array, Array]]:
        """The same for the next tokens; `cache` and `memory` hold keys and values of all layers, stacked."""
        bias = self._bias(params, x.shape[1], cache.segment_ids.shape[1], cache.offset)
        crossed = None if memory is None else memory.kept

        def block(x: Array, layer: Array, local: bool, weights: Params, *kept: Any) -> tuple[Array, Any]:
            own = Filled(kept[0], kept[1], cache.segment_ids, cache.offset)
            seen = None if memory is None else Memory(None, memory.segment_ids, kept[2])
            x, _, new = self._block(local, weights, x, layer, places, pattern, bias, None, None, own, seen)
            return x, new

        stacked = (cache.keys, cache.values) + (() if crossed is None else (crossed,))
        x, new = self._repeat(block, x, self._weights(params), *stacked)
        return self._finish(params, x), new

    def _block(self, local: bool, weights: Params, *arguments: Any) -> Any:
        block = Block(self.settings, self.kernels, self.constrain, local, self.cross)
        return block.apply({"params": weights}, *arguments)

    def _weights(self, params: Params) -> Params:
        """The stacked weights; the norm that the first layer lacks gets a row that is never used."""
        stacked = params["layers"]
        if self.settings.first_norm:
            return stacked
        norm = {
            name: jnp.concatenate([jnp.ones((1, *leaf.shape[1:]), leaf.dtype), leaf])
            for name, leaf in stacked["attention_norm"].items()
        }
        return {**stacked, "attention_norm": norm}

    def _bias(self, params: Params, queries: int, keys: int, offset: Array | int) -> Array | None:
        table = params["relative_bias"]["table"] if self.settings.position == "relative" else None
        return positions.attention_bias(self.settings, table, queries, keys, offset, causal=self.causal)

    def _finish(self, params: Params, x: Array) -> Array:
        return x if self.settings.norm_position == "post" else layers.normalise(x, params["final_norm"], self.settings)

    def _rematerialised(self, run: Callable[..., Any]) -> Callable[..., Any]:
        if self.remat == "none":
            return run
        return jax.checkpoint(run, policy=POLICIES[self.remat], prevent_cse=not self.scan)

    def _repeat(self, block: Callable[..., Any], x: Array, *stacked: Any) -> tuple[Array, Any]:
        """Runs `block(x, layer, local, *slices)` over the layers; what it gives beside `x` comes back stacked."""
        kinds = [letter == "l" for letter in self.settings.attention_period]
        size, count = len(kinds), self.num_layers
        runs = [
            self._rematerialised(lambda x, layer, *slices, local=local: block(x, layer, local, *slices))
            for local in kinds
        ]
        numbers = jnp.arange(count)
        found: list[Any] = []
        periods = count // size if self.scan else 0

        def one(x: Array, part: Any) -> tuple[Array, Any]:
            extras = []
            for place, run in enumerate(runs):
                x, extra = run(x, *(part if size == 1 else jax.tree.map(lambda leaf, place=place: leaf[place], part)))
                extras.append(extra)
            return x, extras[0] if size == 1 else jax.tree.map(lambda *leaves: jnp.stack(leaves), *extras)

        if periods:
            whole = jax.tree.map(lambda leaf: leaf[: periods * size], (numbers, *stacked))
            if size > 1:
                whole = jax.tree.map(lambda leaf: leaf.reshape(periods, size, *leaf.shape[1:]), whole)
            x, extra = jax.lax.scan(one, x, whole, unroll=self.scan)
            found.append(extra if size == 1 else jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), extra))
        rest = jax.tree.map(lambda leaf: leaf[periods * size :], (numbers, *stacked))
        for place, part in enumerate(unstacked(rest, count - periods * size)):
            x, extra = runs[place % size](x, *part)
            found.append(jax.tree.map(lambda leaf: leaf[None], extra))
        return x, found[0] if len(found) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *found)


def unstacked(tree: Any, count: int) -> list[Any]:
    """The layers of stacked leaves, cut in one operation, whose gradient is one concatenation."""
    if count == 0:
        return []
    leaves, structure = jax.tree.flatten(tree)
    rows = [jax.lax.split(leaf, (1,) * count) for leaf in leaves]
    return [jax.tree.unflatten(structure, [row[layer][0] for row in rows]) for layer in range(count)]

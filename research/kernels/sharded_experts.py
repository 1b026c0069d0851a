"""A mixture of experts over a mesh: experts over `expert`, their width over `tensor`, tokens as everywhere.

Without places (dropless), the devices that share the experts exchange all their tokens, each computes those that chose
its experts, and the outputs are added up where the tokens came from: exact for any choice, at the price of buffers for
the worst one. With places (Lepikhin et al. 2021, section 3.2) tokens travel to their experts' devices and back.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from research.kernels import experts
from research.kernels.experts import Experts, Nonlinearity, Routed, Weights
from research.kernels.layout import Axes, Layout, spec


@dataclasses.dataclass(frozen=True)
class _Cut:
    """The axes that split a call: rows, positions, experts, the experts' width, and weights as they are stored."""

    rows: Axes
    positions: Axes
    experts: Axes
    width: Axes
    gathered: tuple[Axes, Axes]

    @property
    def tokens(self) -> PartitionSpec:
        return spec(self.rows, self.positions, ())

    @property
    def weights(self) -> tuple[PartitionSpec, PartitionSpec, PartitionSpec]:
        """As `Weights` has them."""
        embed, mlp = self.gathered
        into = spec(self.experts, embed, self.width + mlp)
        return into, into, spec(self.experts, self.width + mlp, embed)

    def whole(self, weights: Weights) -> Weights:
        """The weights of this device's experts, gathered over the axes that merely store them in parts."""
        gate, up, down = weights
        for place, axes in enumerate(self.gathered):
            for axis in reversed(axes):
                gate, up = (jax.lax.all_gather(part, axis, axis=1 + place, tiled=True) for part in (gate, up))
                down = jax.lax.all_gather(down, axis, axis=2 - place, tiled=True)
        return Weights(gate, up, down)


def _cut(layout: Layout, x: Array, gate: Array, whole_sequences: bool) -> _Cut:
    stored = layout.stored(gate.shape, ("experts", "embed", "mlp"))
    of_experts = layout.split((layout.expert,), gate.shape[0])
    width = layout.split((layout.tensor,), gate.shape[2])
    kept = tuple(tuple(axis for axis in axes if axis not in of_experts + width) for axes in stored[1:])
    positions = () if whole_sequences else layout.split((layout.sequence,), x.shape[1])
    return _Cut(layout.split(layout.batch, x.shape[0]), positions, of_experts, width, (kept[0], kept[1]))


def _over(layout: Layout, cut: _Cut, local: Callable[[Routed, Weights], Array]) -> Callable[[Routed, Weights], Array]:
    """What the devices of a mesh compute of their parts, as one function of the whole."""
    tokens: Any = cut.tokens
    weights: Any = cut.weights
    given = (Routed(tokens, tokens, tokens), Weights(*weights))
    return jax.shard_map(local, mesh=layout.mesh, in_specs=given, out_specs=tokens, check_vma=False)


@dataclasses.dataclass(frozen=True)
class ShardedExperts:
    """Dropless experts.

    Attributes:
      inner: the experts of one device, to which choices of others' experts add nothing.
      layout: the mesh.
    """

    inner: Experts
    layout: Layout

    def __call__(self, tokens: Routed, weights: Weights, nonlinearity: Nonlinearity) -> Float[Array, "batch seq embed"]:
        """See `experts.reference`."""
        layout, cut = self.layout, _cut(self.layout, tokens.x, weights.gate, whole_sequences=False)
        exchanged = tuple(axis for axis in cut.experts if axis in cut.rows)

        def local(tokens: Routed, weights: Weights) -> Array:
            weights = cut.whole(weights)
            for axis in exchanged:
                tokens = Routed(*(jax.lax.all_gather(part, axis, tiled=True) for part in tokens))
            if cut.experts:
                first = jax.lax.axis_index(layout.expert) * weights.gate.shape[0]
                tokens = tokens._replace(chosen=tokens.chosen - first)
            out = self.inner(tokens, weights, nonlinearity)
            if added := tuple(axis for axis in cut.experts + cut.width if axis not in exchanged):
                out = jax.lax.psum(out, added)
            for axis in exchanged:
                out = jax.lax.psum_scatter(out, axis, tiled=True)
            return out

        return _over(layout, cut, local)(tokens, weights)


@dataclasses.dataclass(frozen=True)
class ShardedCapacity:
    """Experts with places: every sequence lies whole on one device of its row.

    Attributes:
      layout: the mesh.
    """

    layout: Layout

    def __call__(
        self, tokens: Routed, weights: Weights, nonlinearity: Nonlinearity, places: int
    ) -> Float[Array, "batch seq embed"]:
        """See `experts.capacity`."""
        layout, cut = self.layout, _cut(self.layout, tokens.x, weights.gate, whole_sequences=True)
        exchanged, count, axis = bool(set(cut.experts) & set(cut.rows)), weights.gate.shape[0], layout.expert

        def local(tokens: Routed, weights: Weights) -> Array:
            weights = cut.whole(weights)
            slots = experts.slotted(tokens.chosen, count, places, tokens.x.dtype)
            inputs = experts.dispatched(slots, tokens.x)
            if exchanged:
                inputs = jax.lax.all_to_all(inputs, axis, split_axis=0, concat_axis=1, tiled=True)
            elif cut.experts:
                here = weights.gate.shape[0]
                inputs = jax.lax.dynamic_slice_in_dim(inputs, jax.lax.axis_index(axis) * here, here, axis=0)
            outputs = experts.processed(inputs, weights, nonlinearity)
            outputs = jax.lax.psum(outputs, cut.width) if cut.width else outputs
            if exchanged:
                outputs = jax.lax.all_to_all(outputs, axis, split_axis=1, concat_axis=0, tiled=True)
            elif cut.experts:
                outputs = jax.lax.all_gather(outputs, axis, tiled=True)
            return experts.combined(slots, tokens.shares, outputs)

        return _over(layout, cut, local)(tokens, weights)

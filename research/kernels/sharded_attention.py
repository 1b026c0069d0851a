"""Attention over a mesh: rows over the batch axes, heads over `tensor`, positions over `sequence`."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float

from research.kernels import ring
from research.kernels.attention import Attention, Form, Operands
from research.kernels.layout import Axes, Layout, spec

# Of each operand: `r`ows, `h`eads, `q`ueries, `k`eys, or `-` for what is never cut.
DIMENSIONS = {
    "query": "rqh-",
    "key": "rkh-",
    "value": "rkh-",
    "query_segments": "rq",
    "key_segments": "rk",
    "query_offset": "",
    "key_prefix": "rk",
    "bias": "hq-",
}


@dataclasses.dataclass(frozen=True)
class Cut:
    """The axes that split the dimensions of one call; none for what they do not divide (a batch of one prompt)."""

    rows: Axes
    heads: Axes
    queries: Axes
    keys: Axes

    def of(self, names: str) -> Any:
        """The partition of an array with these `DIMENSIONS`."""
        axes = {"r": self.rows, "h": self.heads, "q": self.queries, "k": self.keys, "-": ()}
        return spec(*(axes[name] for name in names))


def cut(layout: Layout, query: Array, key: Array) -> Cut:
    """How a mesh splits queries and keys, `[batch, seq, heads, head_dim]` each."""
    sequence = (layout.sequence,)
    return Cut(
        layout.split(layout.batch, query.shape[0]),
        layout.split((layout.tensor,), query.shape[2], key.shape[2]),
        layout.split(sequence, query.shape[1]),
        layout.split(sequence, key.shape[1]),
    )


@dataclasses.dataclass(frozen=True)
class ShardedAttention:
    """A device's attention on every device of a mesh, each on its own rows, heads and queries.

    Where the sequence is split, the keys of its other parts are gathered (exact with every kernel, the memory of all
    keys and values of one layer), or travel around (`kernels.ring`: with the kernel of that name alone).

    Attributes:
      inner: the attention of one device.
      layout: the mesh.
      around: keys travel around in place of being gathered.
    """

    inner: Attention
    layout: Layout
    around: bool = False

    def __call__(
        self, of: Operands, form: Form
    ) -> tuple[Float[Array, "batch query heads head_dim"], Float[Array, ""] | None]:
        """See `kernels.attention`."""
        layout, offset = self.layout, of.query_offset
        split = cut(layout, of.query, of.key)
        parts = {name: array for name, array in of._asdict().items() if isinstance(array, jax.Array)}
        travels = self.around and bool(split.queries) and bool(split.keys) and isinstance(offset, int)

        def local(own: dict[str, Array]) -> tuple[Array, Array | None]:
            largest: Array | None
            if travels:
                around = ring.Around(layout.sequence, layout.size(layout.sequence), form)
                out, largest = ring.ring(around, Operands(**own))
            else:
                own = dict(own)
                first = own.pop("query_offset", offset)
                if split.queries:
                    first += jax.lax.axis_index(layout.sequence) * own["query"].shape[1]
                if split.keys:
                    of_keys = {name: part for name, part in own.items() if "k" in DIMENSIONS[name]}
                    own |= {name: gathered(part, layout.sequence) for name, part in of_keys.items()}
                out, largest = self.inner(Operands(**own, query_offset=first), form)
            return out, None if largest is None else jax.lax.pmax(jax.lax.stop_gradient(largest), layout.axes)

        return jax.shard_map(
            local,
            mesh=layout.mesh,
            in_specs=({name: split.of(DIMENSIONS[name]) for name in parts},),
            out_specs=(split.of("rqh-"), spec()),
            check_vma=False,
        )(parts)


def gathered(part: Array, axis: str) -> Array:
    """All parts of the second dimension, positions."""
    return jax.lax.all_gather(part, axis, axis=1, tiled=True)

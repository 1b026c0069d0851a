"""Attention over a mesh: rows over the batch axes, heads over `tensor`, positions over `sequence`."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from research.kernels import ring
from research.kernels.attention import Attention
from research.kernels.layout import Axes, Layout, spec
from research.kernels.patterns import Pattern


@dataclasses.dataclass(frozen=True)
class Cut:
    """The axes that split the dimensions of one call; none for what they do not divide (a batch of one prompt)."""

    rows: Axes
    heads: Axes
    queries: Axes
    keys: Axes

    def of(self, names: str) -> Any:
        """The partition of an array: a letter a dimension, `r`ows, `h`eads, `q`ueries, `k`eys or `-`."""
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
        self,
        query: Float[Array, "batch query heads head_dim"],
        key: Float[Array, "batch key kv_heads head_dim"],
        value: Float[Array, "batch key kv_heads head_dim"],
        *,
        pattern: Pattern,
        query_segments: Int[Array, "batch query"],
        key_segments: Int[Array, "batch key"],
        query_offset: Int[Array, ""] | int = 0,
        key_prefix: Int[Array, "batch key"] | None = None,
        bias: Float[Array, "heads query key"] | None = None,
        scale: float | None = None,
        softcap: float | None = None,
    ) -> tuple[Float[Array, "batch query heads head_dim"], Float[Array, ""] | None]:
        """See `kernels.attention`."""
        layout, form = self.layout, {"scale": scale, "softcap": softcap}
        split = cut(layout, query, key)
        given = {
            "query": (query, "rqh-"),
            "key": (key, "rkh-"),
            "value": (value, "rkh-"),
            "query_segments": (query_segments, "rq"),
            "key_segments": (key_segments, "rk"),
            "key_prefix": (key_prefix, "rk"),
            "bias": (bias, "hq-"),
            "query_offset": (None if isinstance(query_offset, int) else query_offset, ""),
        }
        parts = {name: (array, names) for name, (array, names) in given.items() if array is not None}
        travels = self.around and bool(split.queries) and bool(split.keys) and isinstance(query_offset, int)

        def local(of: dict[str, Array]) -> tuple[Array, Array | None]:
            largest: Array | None
            if travels:
                static = ring.Form(layout.sequence, layout.size(layout.sequence), pattern, **form)
                out, largest = ring.ring(static, ring.Operands(**of))
            else:
                of = dict(of)
                offset = of.pop("query_offset", query_offset)
                if split.queries:
                    offset += jax.lax.axis_index(layout.sequence) * of["query"].shape[1]
                if split.keys:
                    of |= {name: gathered(part, layout.sequence) for name, part in of.items() if "k" in parts[name][1]}
                out, largest = self.inner(**of, pattern=pattern, query_offset=offset, **form)
            return out, None if largest is None else jax.lax.pmax(jax.lax.stop_gradient(largest), layout.axes)

        return jax.shard_map(
            local,
            mesh=layout.mesh,
            in_specs=({name: split.of(names) for name, (_, names) in parts.items()},),
            out_specs=(split.of("rqh-"), spec()),
            check_vma=False,
        )({name: array for name, (array, _) in parts.items()})


def gathered(part: Array, axis: str) -> Array:
    """All parts of the second dimension, positions."""
    return jax.lax.all_gather(part, axis, axis=1, tiled=True)

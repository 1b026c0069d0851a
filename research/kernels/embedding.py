"""Rows of a table by id: the lookup of tokens, positions and types, and its gradient."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.kernels.layout import Layout, index, spec

Embedding = Callable[..., Float[Array, "batch seq embed"]]


def reference(
    table: Float[Array, "entries embed"],
    ids: Int[Array, "batch seq"],
    dtype: jnp.dtype,
    dimensions: tuple[str, str] = ("vocab", "embed"),
) -> Float[Array, "batch seq embed"]:
    """`table[ids]` in the type that is computed in; gradients are added up in the table's own."""
    del dimensions
    return table[ids].astype(dtype)


@dataclasses.dataclass(frozen=True)
class ShardedEmbedding:
    """The same over a mesh, without ever gathering the table.

    Devices that share a table's width look up each other's ids in their own columns and exchange the columns for the
    tokens (all-to-all); those that share its rows add up what each of them has. Left to the compiler, a lookup whose
    positions are split computes the embeddings of all tokens on every device.

    Attributes:
      layout: the mesh.
    """

    layout: Layout

    def __call__(
        self,
        table: Float[Array, "entries embed"],
        ids: Int[Array, "batch seq"],
        dtype: jnp.dtype,
        dimensions: tuple[str, str] = ("vocab", "embed"),
    ) -> Float[Array, "batch seq embed"]:
        """See `reference`; `dimensions` are those of the table."""
        layout = self.layout
        rows = layout.split(layout.batch, ids.shape[0])
        positions = layout.split((layout.sequence,), ids.shape[1])
        entries, width = layout.stored(table.shape, dimensions)
        # Where the axes of the width split nothing of this call, every device looks up the same ids.
        places = {axis: 0 if axis in rows else 1 for axis in width if axis in rows + positions}

        def local(table: Array, ids: Array) -> Array:
            for axis, place in places.items():
                ids = jax.lax.all_gather(ids, axis, axis=place, tiled=True)
            if entries:
                ids = ids - index(layout, entries) * table.shape[0]
                here = (ids >= 0) & (ids < table.shape[0])
                found = table[jnp.where(here, ids, 0)].astype(dtype)
                found = jax.lax.psum(jnp.where(here[:, :, None], found, jnp.zeros_like(found)), entries)
            else:
                found = table[ids].astype(dtype)
            for axis in reversed(width):
                if axis in places:
                    found = jax.lax.all_to_all(found, axis, split_axis=places[axis], concat_axis=2, tiled=True)
                else:
                    found = jax.lax.all_gather(found, axis, axis=2, tiled=True)
            return found

        return jax.shard_map(
            local,
            mesh=layout.mesh,
            in_specs=(spec(entries, width), spec(rows, positions)),
            out_specs=spec(rows, positions, ()),
            check_vma=False,
        )(table, ids)

"""Experts whose tokens lie together (Gale et al. 2023, section 5): each expert computes those that chose it alone.

Rows are sorted by expert. On accelerators a ragged product multiplies each group by its expert's weights. XLA's CPU
backend would compute every row with every expert; there a group fills whole blocks, and a loop multiplies block by
block: what is computed in vain is less than one block an expert.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm
from jaxtyping import Array, Float, Int

from research.kernels.experts import Nonlinearity, Routed, Weights, weighted

TILE = 128  # rows that a TPU's kernel takes at least
BLOCK = 64  # rows of a block; more make larger products, and more rows of nothing

Product = Callable[[Array, Array, Array], Array]


class Grouping(NamedTuple):
    """Where the picks of tokens lie among the rows that experts compute.

    Attributes:
      source: the token of each row; `tokens` where it has none.
      place: the row of each pick; `rows` where its expert is not here.
      sizes: rows of each expert, one group behind the other, those that fill its last block included.
    """

    source: Int[Array, " rows"]
    place: Int[Array, "tokens picks"]
    sizes: Int[Array, " experts"]


def arrange(chosen: Int[Array, "tokens picks"], experts: int, block: int) -> Grouping:
    """Sorts picks by expert; a choice outside of `0 ... experts - 1` belongs to nobody here."""
    tokens, picks = chosen.shape
    count = tokens * picks
    flat = jnp.where((chosen >= 0) & (chosen < experts), chosen, experts).reshape(-1)
    order = jnp.argsort(flat, stable=True).astype(jnp.int32)
    sizes = jnp.bincount(flat, length=experts + 1).astype(jnp.int32)
    filled = (-(-sizes // block) * block).at[experts].set(0)
    rows = count if block == 1 else (count // block + experts) * block
    sorted_picks = flat[order]
    behind = jnp.arange(count, dtype=jnp.int32) - (jnp.cumsum(sizes) - sizes)[sorted_picks]
    row = jnp.where(sorted_picks < experts, (jnp.cumsum(filled) - filled)[sorted_picks] + behind, rows)
    source = jnp.full(rows, tokens, jnp.int32).at[row].set(order // picks, mode="drop")
    place = jnp.zeros(count, jnp.int32).at[order].set(row.astype(jnp.int32))
    return Grouping(source, place.reshape(tokens, picks), filled[:experts])


def grouped(
    tokens: Routed, weights: Weights, nonlinearity: Nonlinearity, *, product: Product, block: int = 1
) -> Float[Array, "batch seq embed"]:
    """`experts.reference` without the work that it wastes; choices of experts that are not here add nothing."""
    x, chosen, shares = tokens
    embed, picks = x.shape[-1], chosen.shape[-1]
    group = arrange(chosen.reshape(-1, picks), weights.gate.shape[0], block)
    rows = x.reshape(-1, embed).at[group.source].get(mode="fill", fill_value=0)
    hidden = nonlinearity(product(rows, weights.gate, group.sizes)) * product(rows, weights.up, group.sizes)
    out = product(hidden, weights.down, group.sizes).at[group.place].get(mode="fill", fill_value=0)
    return jnp.sum(weighted(out, shares.reshape(-1, picks)), axis=1).reshape(x.shape).astype(x.dtype)


def ragged(
    rows: Float[Array, "rows inputs"], weights: Float[Array, "experts inputs outputs"], sizes: Int[Array, " experts"]
) -> Float[Array, "rows outputs"]:
    """Each row times the weights of its group, by the compiler's ragged product; 0 behind the last group."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        out = jax.lax.ragged_dot(rows, weights, sizes)
    used = jnp.arange(rows.shape[0]) < jnp.sum(sizes)
    return jnp.where(used[:, None], out, jnp.zeros_like(out))


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def blocks(
    rows: Float[Array, "rows inputs"],
    weights: Float[Array, "experts inputs outputs"],
    sizes: Int[Array, " experts"],
    block: int = BLOCK,
) -> Float[Array, "rows outputs"]:
    """The same for groups of whole blocks, one block after the other; rows behind the last group are the last's."""

    def one(_: None, part: tuple[Array, Array]) -> tuple[None, Array]:
        return None, part[0] @ weights[part[1]]

    out = jax.lax.scan(one, None, (_blocks(rows, block), _owners(rows, sizes, block)))[1]
    return out.reshape(rows.shape[0], -1)


def _blocks(rows: Array, block: int) -> Array:
    return rows.reshape(-1, block, rows.shape[-1])


def _owners(rows: Array, sizes: Array, block: int) -> Array:
    """The expert of each block."""
    starts = jnp.arange(0, rows.shape[0], block, dtype=jnp.int32)
    return jnp.minimum(jnp.searchsorted(jnp.cumsum(sizes), starts, side="right"), sizes.shape[0] - 1)


def _blocks_forward(rows: Array, weights: Array, sizes: Array, block: int) -> tuple[Array, tuple[Array, Array, Array]]:
    return blocks(rows, weights, sizes, block), (rows, weights, sizes)


def _blocks_backward(block: int, kept: tuple[Array, Array, Array], cotangent: Array) -> tuple[Array, Array, None]:
    """The weights' gradient is added up in place, one expert's part a block."""
    rows, weights, sizes = kept

    def one(gradient: Array, part: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        inputs, errors, owner = part
        found = jax.lax.dot_general(inputs, errors, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        return gradient.at[owner].add(found), errors @ weights[owner].T

    parts = (_blocks(rows, block), _blocks(cotangent, block), _owners(rows, sizes, block))
    gradient, errors = jax.lax.scan(one, jnp.zeros(weights.shape, jnp.float32), parts)
    return errors.reshape(rows.shape), gradient.astype(weights.dtype), None


blocks.defvjp(_blocks_forward, _blocks_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def tiled(
    rows: Float[Array, "rows inputs"],
    weights: Float[Array, "experts inputs outputs"],
    sizes: Int[Array, " experts"],
    interpret: bool = False,
) -> Float[Array, "rows outputs"]:
    """`ragged` for TPUs, whose compiler would multiply every row for every expert in the weights' gradient.

    That gradient is a kernel's (Gale et al. 2023), where 128 divides the rows. Rows behind the last group are zero.
    """
    del interpret
    return ragged(rows, weights, sizes)


def _tiled_forward(
    rows: Array, weights: Array, sizes: Array, interpret: bool
) -> tuple[Array, tuple[Array, Array, Array]]:
    return tiled(rows, weights, sizes, interpret), (rows, weights, sizes)


def _tiled_backward(interpret: bool, kept: tuple[Array, Array, Array], cotangent: Array) -> tuple[Array, Array, None]:
    rows, weights, sizes = kept
    errors = ragged(cotangent, weights.swapaxes(1, 2), sizes)
    count = rows.shape[0]
    if count % TILE:
        return errors, jax.vjp(lambda weights: ragged(rows, weights, sizes), weights)[1](cotangent)[0], None
    used = (jnp.arange(count) < jnp.sum(sizes))[:, None]
    cotangent = jnp.where(used, cotangent, jnp.zeros_like(cotangent))
    whole = sizes.at[-1].add(count - jnp.sum(sizes))  # what is behind the last group is zero, and adds nothing to it
    tile = next(size for size in (4 * TILE, 2 * TILE, TILE) if count % size == 0)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        gradient = tgmm(
            rows.swapaxes(0, 1), cotangent, whole, jnp.float32, (tile, 4 * TILE, 4 * TILE), interpret=interpret
        )
    # An expert without rows has nothing written to its part.
    gradient = jnp.where((whole > 0)[:, None, None], gradient, jnp.zeros_like(gradient))
    return errors, gradient.astype(weights.dtype), None


tiled.defvjp(_tiled_forward, _tiled_backward)

# The mixture on a CPU, on accelerators, and on a TPU.
in_blocks = partial(grouped, product=blocks, block=BLOCK)
in_groups = partial(grouped, product=ragged)
in_tiles = partial(grouped, product=tiled)

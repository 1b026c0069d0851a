"""A mixture of experts' MLPs: each token through the few experts that its router chose."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Experts = Callable[..., Float[Array, "batch seq embed"]]
Nonlinearity = Callable[[Array], Array]


def reference(
    x: Float[Array, "batch seq embed"],
    chosen: Int[Array, "batch seq picks"],
    shares: Float[Array, "batch seq picks"],
    gate: Float[Array, "experts embed mlp"],
    up: Float[Array, "experts embed mlp"],
    down: Float[Array, "experts mlp embed"],
    nonlinearity: Nonlinearity,
) -> Float[Array, "batch seq embed"]:
    """Gated MLPs of the chosen experts, added by their shares; every token reaches its experts.

    Each expert computes all tokens and counts for those that chose it: exact, and the other experts' work is wasted.
    """

    def one(total: Array, expert: tuple[Array, Array, Array, Array]) -> tuple[Array, None]:
        number, gate, up, down = expert
        share = jnp.sum(jnp.where(chosen == number, shares, jnp.zeros_like(shares)), axis=-1)
        out = (nonlinearity(x @ gate) * (x @ up)) @ down
        return total + share[:, :, None].astype(out.dtype) * out, None

    return jax.lax.scan(one, jnp.zeros_like(x), (jnp.arange(gate.shape[0]), gate, up, down))[0]


def capacity(
    x: Float[Array, "batch seq embed"],
    chosen: Int[Array, "batch seq picks"],
    shares: Float[Array, "batch seq picks"],
    gate: Float[Array, "experts embed mlp"],
    up: Float[Array, "experts embed mlp"],
    down: Float[Array, "experts mlp embed"],
    nonlinearity: Nonlinearity,
    places: int,
) -> Float[Array, "batch seq embed"]:
    """The same with `places` of each expert a sequence (Lepikhin et al. 2021, algorithm 1).

    First choices come before second ones, earlier tokens before later ones; what finds no place adds nothing.
    """
    batch, length, picks = chosen.shape
    experts = gate.shape[0]
    hot = jax.nn.one_hot(chosen.swapaxes(1, 2).reshape(batch, picks * length), experts, dtype=jnp.int32)
    place = jnp.cumsum(hot, axis=1) - hot
    kept = (hot > 0) & (place < places)
    slots = jax.nn.one_hot(place, places, dtype=x.dtype) * kept[..., None].astype(x.dtype)
    slots = slots.reshape(batch, picks, length, experts, places)
    inputs = jnp.einsum("bplxc,ble->xbce", slots, x)
    hidden = nonlinearity(jnp.einsum("xbce,xem->xbcm", inputs, gate)) * jnp.einsum("xbce,xem->xbcm", inputs, up)
    outputs = jnp.einsum("xbcm,xme->xbce", hidden, down)
    weighted = slots * shares.swapaxes(1, 2)[..., None, None].astype(x.dtype)
    return jnp.einsum("bplxc,xbce->ble", weighted, outputs)

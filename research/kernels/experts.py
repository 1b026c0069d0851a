"""A mixture of experts' MLPs: each token through the few experts that its router chose."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Experts = Callable[..., Float[Array, "batch seq embed"]]
Nonlinearity = Callable[[Array], Array]


class Routed(NamedTuple):
    """Tokens and what the router decided.

    Attributes:
      x: the tokens.
      chosen: experts of each token, the first choice first.
      shares: by which the outputs of the chosen experts are added.
    """

    x: Float[Array, "batch seq embed"]
    chosen: Int[Array, "batch seq picks"]
    shares: Float[Array, "batch seq picks"]


class Weights(NamedTuple):
    """The gated MLPs of the experts."""

    gate: Float[Array, "experts embed mlp"]
    up: Float[Array, "experts embed mlp"]
    down: Float[Array, "experts mlp embed"]


def reference(tokens: Routed, weights: Weights, nonlinearity: Nonlinearity) -> Float[Array, "batch seq embed"]:
    """Gated MLPs of the chosen experts, added by their shares; every token reaches its experts.

    Each expert computes all tokens and counts for those that chose it: exact, and the other experts' work is wasted.
    """

    x, chosen, shares = tokens

    def one(total: Array, expert: tuple[Array, Weights]) -> tuple[Array, None]:
        number, (gate, up, down) = expert
        share = jnp.sum(jnp.where(chosen == number, shares, jnp.zeros_like(shares)), axis=-1)
        out = (nonlinearity(x @ gate) * (x @ up)) @ down
        return total + weighted(out, share), None

    start = jnp.zeros(x.shape, jnp.float32)
    return jax.lax.scan(one, start, (jnp.arange(weights.gate.shape[0]), weights))[0].astype(x.dtype)


def weighted(out: Float[Array, "*rows embed"], share: Float[Array, "*rows"]) -> Float[Array, "*rows embed"]:
    """Outputs times their shares, in float32: eight bits would shift what the router's gradient rests on."""
    return out.astype(jnp.float32) * jnp.expand_dims(share, -1).astype(jnp.float32)


def capacity(
    tokens: Routed, weights: Weights, nonlinearity: Nonlinearity, places: int
) -> Float[Array, "batch seq embed"]:
    """The same with `places` of each expert a sequence (Lepikhin et al. 2021, algorithm 1).

    First choices come before second ones, earlier tokens before later ones; what finds no place adds nothing.
    """
    slots = slotted(tokens.chosen, weights.gate.shape[0], places, tokens.x.dtype)
    return combined(slots, tokens.shares, processed(dispatched(slots, tokens.x), weights, nonlinearity))


def slotted(
    chosen: Int[Array, "batch seq picks"], experts: int, places: int, dtype: jnp.dtype
) -> Float[Array, "batch picks seq experts places"]:
    """1 where a token's pick has a place of an expert."""
    batch, length, picks = chosen.shape
    hot = jax.nn.one_hot(chosen.swapaxes(1, 2).reshape(batch, picks * length), experts, dtype=jnp.int32)
    place = jnp.cumsum(hot, axis=1) - hot
    kept = (hot > 0) & (place < places)
    slots = jax.nn.one_hot(place, places, dtype=dtype) * kept[..., None].astype(dtype)
    return slots.reshape(batch, picks, length, experts, places)


def dispatched(
    slots: Float[Array, "batch picks seq experts places"], x: Float[Array, "batch seq embed"]
) -> Float[Array, "experts batch places embed"]:
    """The tokens at their places."""
    return jnp.einsum("bplxc,ble->xbce", slots, x)


def processed(
    inputs: Float[Array, "experts batch places embed"], weights: Weights, nonlinearity: Nonlinearity
) -> Float[Array, "experts batch places embed"]:
    """Each expert's MLP over its places."""
    gate, up = (jnp.einsum("xbce,xem->xbcm", inputs, into) for into in (weights.gate, weights.up))
    return jnp.einsum("xbcm,xme->xbce", nonlinearity(gate) * up, weights.down)


def combined(
    slots: Float[Array, "batch picks seq experts places"],
    shares: Float[Array, "batch seq picks"],
    outputs: Float[Array, "experts batch places embed"],
) -> Float[Array, "batch seq embed"]:
    """What each token gets back from its places, each of which holds one token at most."""
    share = jnp.einsum("bplxc,blp->xbc", slots.astype(shares.dtype), shares)
    return jnp.einsum("bplxc,xbce->ble", slots, weighted(outputs, share).astype(outputs.dtype))

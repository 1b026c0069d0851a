"""A mixture of experts in the place of the MLP (Shazeer et al. 2017; Jiang et al. 2024, section 2.1).

All that is not a token's own is defined within its sequence: the balance loss, the z-loss and the places of an expert.
So accumulation and meshes change nothing. With `expert_capacity` a token can lose its place to a later one of its
sequence, which is why causality, packing and the cache are exact without it alone.
"""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from research.kernels import Kernels
from research.kernels.experts import Routed, Weights
from research.models import layers
from research.parameters import Parameter
from research.settings import ModelSettings

LOSSES = ("router_balance", "router_z")


def expert_parameters(settings: ModelSettings, num_layers: int) -> list[Parameter]:
    """The router and the experts' projections."""
    embed, hidden, count = settings.embed_dim, settings.mlp_width, settings.num_experts
    down_std = (hidden * 2 * num_layers) ** -0.5
    router = Parameter("experts/router", (embed, count), ("embed", "router"), "kernel", embed, count, std=embed**-0.5)
    up = [
        Parameter(
            f"experts/{name}", (count, embed, hidden), ("experts", "embed", "mlp"), "kernel", embed, hidden, embed**-0.5
        )
        for name in ("gate", "up")
    ]
    shape, dimensions = (count, hidden, embed), ("experts", "mlp", "embed")
    return [router, *up, Parameter("experts/down", shape, dimensions, "kernel", hidden, embed, down_std)]


class Experts(nn.Module):
    """The experts of one block and their router."""

    settings: ModelSettings
    kernels: Kernels
    constrain: layers.Constrain

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch seq embed"], real: Bool[Array, "batch seq"]
    ) -> tuple[Float[Array, "batch seq embed"], dict[str, Float[Array, ""]]]:
        """What the block adds to the residual stream, and the router's losses summed over sequences.

        The router's probabilities are float32; the shares of the chosen experts add up to one.
        """
        settings = self.settings
        weights = layers.declare(self, expert_parameters(settings, 1), x.dtype)
        logits = jnp.einsum("bse,ex->bsx", x, weights["router"], preferred_element_type=jnp.float32)
        probabilities = jax.nn.softmax(logits, axis=-1)
        best, chosen = jax.lax.top_k(probabilities, settings.experts_per_token)
        shares = best / jnp.sum(best, axis=-1, keepdims=True)
        route = self.kernels.experts
        if settings.expert_capacity is not None:
            even = x.shape[1] * settings.experts_per_token / settings.num_experts
            route = partial(self.kernels.capacity, places=math.ceil(settings.expert_capacity * even))
        act = layers.NONLINEARITIES[settings.nonlinearity]
        out = route(Routed(x, chosen, shares), Weights(weights["gate"], weights["up"], weights["down"]), act)
        return out, self._losses(logits, probabilities, chosen, real)

    def _losses(self, logits: Array, probabilities: Array, chosen: Array, real: Array) -> dict[str, Array]:
        """Load balance (Fedus et al. 2022, eq. 4; 1 where even) and z-loss (Zoph et al. 2022, eq. 5)."""
        count = self.settings.num_experts
        one = real[:, :, None].astype(jnp.float32)
        tokens = jnp.maximum(jnp.sum(one, axis=1), 1.0)
        sent = jnp.sum(jax.nn.one_hot(chosen, count, dtype=jnp.float32), axis=2) / self.settings.experts_per_token
        share = jnp.sum(sent * one, axis=1) / tokens
        mean = jnp.sum(probabilities * one, axis=1) / tokens
        z = jnp.sum(jax.nn.logsumexp(logits, axis=-1) ** 2 * one[:, :, 0], axis=1) / tokens[:, 0]
        return {"router_balance": count * jnp.sum(share * mean), "router_z": jnp.sum(z)}

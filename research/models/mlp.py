"""The position-wise MLP: plain, or multiplied by a gate (Shazeer 2020)."""

import functools
from collections.abc import Callable

import flax.linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from research.kernels import Kernels
from research.models import layers
from research.parameters import Parameter
from research.settings import ModelSettings


def mlp_parameters(settings: ModelSettings, num_layers: int) -> list[Parameter]:
    """Projections up (and gate) and down, with biases where the settings ask for them."""
    embed, hidden = settings.embed_dim, settings.mlp_width
    names = ("gate", "up") if settings.gated else ("up",)
    found = []
    for name in names:
        found.append(
            Parameter(f"mlp/{name}", (embed, hidden), ("embed", "mlp"), "kernel", embed, hidden, std=embed**-0.5)
        )
        if settings.use_bias:
            found.append(Parameter(f"mlp/{name}_bias", (hidden,), ("mlp",), "bias", 1, hidden, std=0.0))
    std = (hidden * 2 * num_layers) ** -0.5
    found.append(Parameter("mlp/down", (hidden, embed), ("mlp", "embed"), "kernel", hidden, embed, std=std))
    if settings.use_bias:
        found.append(Parameter("mlp/down_bias", (embed,), ("embed",), "bias", 1, embed, std=0.0))
    return found


class Mlp(nn.Module):
    """The MLP of one block."""

    settings: ModelSettings
    kernels: Kernels
    constrain: layers.Constrain

    @nn.compact
    def __call__(self, x: Float[Array, "batch seq embed"]) -> Float[Array, "batch seq embed"]:
        """What the block adds to the residual stream."""
        weights = layers.declare(self, mlp_parameters(self.settings, 1), x.dtype)
        names = ("gate", "up") if self.settings.gated else ("up",)
        inner = tuple(self._wide(self.kernels.product(x, weights[name]), weights, name) for name in names)
        act = layers.NONLINEARITIES[self.settings.nonlinearity]
        out = self.kernels.activated(
            self.kernels.product, gated(act) if len(inner) > 1 else act, inner, weights["down"]
        )
        return self._biased(out, weights, "down")

    def _wide(self, x: Array, weights: dict[str, Array], name: str) -> Array:
        pinned = self.constrain(self._biased(x, weights, name), ("batch", "sequence", "mlp"))
        return checkpoint_name(pinned, layers.WIDE)

    def _biased(self, x: Array, weights: dict[str, Array], name: str) -> Array:
        return layers.biased(x, weights[f"{name}_bias"]) if self.settings.use_bias else x


@functools.cache
def gated(act: Callable[[Array], Array]) -> Callable[[Array, Array], Array]:
    """The non-linearity of a gate times what it lets through; the same function for the same non-linearity."""
    return lambda gate, up: act(gate) * up

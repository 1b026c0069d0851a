"""The position-wise MLP: plain with GELU, or gated with SiLU (Shazeer 2020)."""

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from research.kernels import Kernels
from research.models import layers
from research.parameters import Parameter
from research.settings import ModelSettings


def mlp_parameters(settings: ModelSettings) -> list[Parameter]:
    """Projections up (and gate) and down, with biases where the settings ask for them."""
    embed, hidden = settings.embed_dim, settings.mlp_width
    names = ("gate", "up") if settings.activation == "swiglu" else ("up",)
    found = []
    for name in names:
        found.append(
            Parameter(f"mlp/{name}", (embed, hidden), ("embed", "mlp"), "kernel", embed, hidden, std=embed**-0.5)
        )
        if settings.use_bias:
            found.append(Parameter(f"mlp/{name}_bias", (hidden,), ("mlp",), "bias", 1, hidden, std=0.0))
    std = (hidden * 2 * settings.num_layers) ** -0.5
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
        weights = layers.declare(self, mlp_parameters(self.settings), x.dtype)
        up = self._project(x, weights, "up")
        if self.settings.activation == "swiglu":
            hidden = jax.nn.silu(self._project(x, weights, "gate")) * up
        else:
            hidden = jax.nn.gelu(up, approximate=True)
        hidden = self.constrain(hidden, ("batch", "sequence", "mlp"))
        return self._project(hidden, weights, "down")

    def _project(self, x: Array, weights: dict[str, Array], name: str) -> Array:
        out = self.kernels.product(x, weights[name])
        return out + weights[f"{name}_bias"][None, None, :] if self.settings.use_bias else out

"""Norms, projections, position encodings and dropout: what blocks are made of."""

from collections.abc import Callable, Iterable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.parameters import Parameter
from research.settings import ModelSettings

Constrain = Callable[[Array, tuple[str | None, ...]], Array]


def unconstrained(x: Array, names: tuple[str | None, ...]) -> Array:
    """For one device: leaves the layout to the compiler."""
    del names
    return x


def initialise(parameter: Parameter, key: Array) -> Array:
    """Normal values of the declared mean and deviation, float32."""
    if parameter.std == 0.0:
        return jnp.full(parameter.shape, parameter.mean, jnp.float32)
    return parameter.mean + parameter.std * jax.random.normal(key, parameter.shape, jnp.float32)


def declare(module: nn.Module, parameters: Iterable[Parameter], dtype: jnp.dtype) -> dict[str, Array]:
    """The weights of a module by their last name, in the type that is computed in."""
    return {
        parameter.path.rsplit("/", 1)[-1]: module.param(
            parameter.path.rsplit("/", 1)[-1], lambda key, parameter=parameter: initialise(parameter, key)
        ).astype(dtype)
        for parameter in parameters
    }


def norm_parameters(name: str, settings: ModelSettings) -> list[Parameter]:
    """The scale of a norm over the residual stream, and the bias of a LayerNorm."""
    width = settings.embed_dim
    scale = Parameter(f"{name}/scale", (width,), ("embed",), "norm", 1, 1, std=0.0, mean=1.0)
    bias = Parameter(f"{name}/bias", (width,), ("embed",), "bias", 1, 1, std=0.0)
    return [scale, bias] if settings.norm == "layernorm" else [scale]


def root_mean_square(x: Float[Array, "*rows width"], scale: Float[Array, " width"], epsilon: float) -> Array:
    """RMSNorm (Zhang & Sennrich 2019) over the last dimension, in float32."""
    wide = x.astype(jnp.float32)
    normal = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + epsilon)
    return (normal * _last(scale, x.ndim)).astype(x.dtype)


def normalise(
    x: Float[Array, "batch seq embed"], weights: Mapping[str, Array], epsilon: float
) -> Float[Array, "batch seq embed"]:
    """RMSNorm, or LayerNorm (Ba et al. 2016) where there is a bias; in float32."""
    if "bias" not in weights:
        return root_mean_square(x, weights["scale"], epsilon)
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    normal = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + epsilon)
    return (normal * _last(weights["scale"], x.ndim) + _last(weights["bias"], x.ndim)).astype(x.dtype)


def _last(vector: Array, rank: int) -> Array:
    """The vector along the last of `rank` dimensions, float32."""
    return vector.astype(jnp.float32).reshape((1,) * (rank - 1) + vector.shape)


class Norm(nn.Module):
    """One norm of a block."""

    settings: ModelSettings

    @nn.compact
    def __call__(self, x: Float[Array, "batch seq embed"]) -> Float[Array, "batch seq embed"]:
        """The normalised residual stream."""
        weights = declare(self, norm_parameters("norm", self.settings), jnp.dtype(jnp.float32))
        return normalise(x, weights, self.settings.norm_epsilon)


def rotary(
    x: Float[Array, "batch seq heads head_dim"], positions: Int[Array, "batch seq"], base: float
) -> Float[Array, "batch seq heads head_dim"]:
    """Rotary position encoding (Su et al. 2021, section 3.4.2), the two halves of a head paired, in float32."""
    half = x.shape[-1] // 2
    frequencies = base ** -(jnp.arange(half, dtype=jnp.float32) / half)
    angles = (positions.astype(jnp.float32)[:, :, None] * frequencies[None, None, :])[:, :, None, :]
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1).astype(x.dtype)


def dropout(x: Array, rate: Float[Array, ""] | None, key: Array | None) -> Array:
    """Zeroes a share `rate` of the values and scales up the rest; the identity without a key."""
    if key is None or rate is None:
        return x
    kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate).astype(x.dtype), jnp.zeros_like(x))

"""Norms, non-linearities, dropout and the declaration of weights: what blocks are made of."""

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.parameters import Parameter
from research.settings import ModelSettings

# Names of what a block computes, for policies of rematerialisation: queries, keys and values, the residual stream
# between its branches, and what is as wide as the MLP. What attention makes of its heads is named by its kernel.
HEADS, STREAM, WIDE = "heads", "stream", "wide"

Constrain = Callable[[Array, tuple[str | None, ...]], Array]

NONLINEARITIES: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
}


def unconstrained(x: Array, names: tuple[str | None, ...]) -> Array:
    """For one device: leaves the layout to the compiler."""
    del names
    return x


def initialise(parameter: Parameter, key: Array, dtype: str = "float32") -> Array:
    """Normal values of the declared mean and deviation."""
    if parameter.std == 0.0:
        return jnp.full(parameter.shape, parameter.mean, dtype)
    return (parameter.mean + parameter.std * jax.random.normal(key, parameter.shape, jnp.float32)).astype(dtype)


def initial_weight(parameter: Parameter, key: Array, dtype: str) -> Array:
    """A weight as a function of the run's key and its own path; each stacked layer has a key of its own.

    No library names anything here, so that no version of one moves the initial values.
    """
    own = jax.random.fold_in(key, zlib.crc32(parameter.path.encode()))
    if parameter.dimensions[0] != "layers":
        return initialise(parameter, own, dtype)
    one = dataclasses.replace(parameter, shape=parameter.shape[1:], dimensions=parameter.dimensions[1:])
    layer_keys = jax.vmap(jax.random.fold_in, (None, 0))(own, jnp.arange(parameter.shape[0]))
    return jax.vmap(lambda key: initialise(one, key, dtype))(layer_keys)


def declare(module: nn.Module, parameters: Iterable[Parameter], dtype: jnp.dtype) -> dict[str, Array]:
    """The weights of a module by their last name, in the type that is computed in."""
    return {
        parameter.path.rsplit("/", 1)[-1]: module.param(
            parameter.path.rsplit("/", 1)[-1], lambda key, parameter=parameter: initialise(parameter, key)
        ).astype(dtype)
        for parameter in parameters
    }


def norm_parameters(name: str, settings: ModelSettings) -> list[Parameter]:
    """The scale of a norm over the residual stream, and the bias of a LayerNorm that has one."""
    width, mean = settings.embed_dim, 0.0 if settings.norm_centred else 1.0
    scale = Parameter(f"{name}/scale", (width,), ("embed",), "norm", 1, 1, std=0.0, mean=mean)
    bias = Parameter(f"{name}/bias", (width,), ("embed",), "bias", 1, 1, std=0.0)
    return [scale, bias] if settings.norm == "layernorm" and settings.norm_bias else [scale]


def root_mean_square(
    x: Float[Array, "*rows width"], scale: Float[Array, " width"], settings: ModelSettings
) -> Float[Array, "*rows width"]:
    """RMSNorm (Zhang & Sennrich 2019) over the last dimension, in float32."""
    wide = x.astype(jnp.float32)
    normal = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + settings.norm_epsilon)
    return (normal * _factor(scale, x.ndim, settings)).astype(x.dtype)


def normalise(
    x: Float[Array, "*rows embed"], weights: Mapping[str, Array], settings: ModelSettings
) -> Float[Array, "*rows embed"]:
    """RMSNorm or LayerNorm (Ba et al. 2016), as the settings say; in float32."""
    if settings.norm == "rmsnorm":
        return root_mean_square(x, weights["scale"], settings)
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    normal = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + settings.norm_epsilon)
    normal *= _factor(weights["scale"], x.ndim, settings)
    if "bias" in weights:
        normal += _last(weights["bias"], x.ndim)
    return normal.astype(x.dtype)


def _factor(scale: Array, rank: int, settings: ModelSettings) -> Array:
    factor = _last(scale, rank)
    return 1.0 + factor if settings.norm_centred else factor


def _last(vector: Array, rank: int) -> Array:
    """The vector along the last of `rank` dimensions, float32."""
    return vector.astype(jnp.float32).reshape((1,) * (rank - 1) + vector.shape)


def biased(x: Float[Array, "*rows width"], bias: Float[Array, " width"]) -> Float[Array, "*rows width"]:
    """`x + bias`, added in float32, so that the bias's gradient, a sum over all tokens, is summed in float32."""
    return (x.astype(jnp.float32) + _last(bias, x.ndim)).astype(x.dtype)


class Norm(nn.Module):
    """One norm of a block."""

    settings: ModelSettings

    @nn.compact
    def __call__(self, x: Float[Array, "batch seq embed"]) -> Float[Array, "batch seq embed"]:
        """The normalised residual stream."""
        weights = declare(self, norm_parameters("norm", self.settings), jnp.dtype(jnp.float32))
        return normalise(x, weights, self.settings)


def dropout(x: Array, rate: Float[Array, ""] | None, key: Array | None) -> Array:
    """Zeroes a share `rate` of the values and scales up the rest; the identity without a key."""
    if key is None or rate is None:
        return x
    kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate).astype(x.dtype), jnp.zeros_like(x))

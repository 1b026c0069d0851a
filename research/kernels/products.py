"""The product of activations with a weight matrix, and its gradients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Product = Callable[[Array, Array], Array]


def reference(x: Float[Array, "*rows inputs"], weight: Float[Array, "inputs outputs"]) -> Float[Array, "*rows outputs"]:
    """`x @ weight`, differentiated by JAX."""
    return x @ weight


@jax.custom_vjp
def untransposed(
    x: Float[Array, "*rows inputs"], weight: Float[Array, "inputs outputs"]
) -> Float[Array, "*rows outputs"]:
    """`x @ weight` whose weight gradient contracts the rows of both operands where they lie.

    XLA's CPU backend otherwise writes a transposed copy of the cotangent before each such product.
    """
    return x @ weight


def _forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ weight, (x, weight)


def _backward(kept: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, weight = kept
    rows, errors = x.reshape(-1, x.shape[-1]), cotangent.reshape(-1, cotangent.shape[-1])
    gradient = jax.lax.dot_general(rows, errors, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return cotangent @ weight.T, gradient.astype(weight.dtype)


untransposed.defvjp(_forward, _backward)

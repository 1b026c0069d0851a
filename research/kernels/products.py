"""The product of activations with a weight matrix, plain or behind a non-linearity, and its gradients."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Product = Callable[[Array, Array], Array]
Nonlinearity = Callable[..., Array]
Activated = Callable[[Product, Nonlinearity, tuple[Array, ...], Array], Array]


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


def activated(
    product: Product,
    nonlinearity: Nonlinearity,
    inputs: tuple[Float[Array, "*rows inputs"], ...],
    weight: Float[Array, "inputs outputs"],
) -> Float[Array, "*rows outputs"]:
    """`product(nonlinearity(*inputs), weight)`, differentiated by JAX."""
    return product(nonlinearity(*inputs), weight)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def recomputed(
    product: Product,
    nonlinearity: Nonlinearity,
    inputs: tuple[Float[Array, "*rows inputs"], ...],
    weight: Float[Array, "inputs outputs"],
) -> Float[Array, "*rows outputs"]:
    """The same, of which the gradient keeps the inputs alone and computes the non-linearity again."""
    return product(nonlinearity(*inputs), weight)


def _recomputed_forward(
    product: Product, nonlinearity: Nonlinearity, inputs: tuple[Array, ...], weight: Array
) -> tuple[Array, tuple[tuple[Array, ...], Array]]:
    return product(nonlinearity(*inputs), weight), (inputs, weight)


def _recomputed_backward(
    product: Product, nonlinearity: Nonlinearity, kept: tuple[tuple[Array, ...], Array], cotangent: Array
) -> tuple[tuple[Array, ...], Array]:
    inputs, weight = kept
    zero = hidden_zero(cotangent)
    hidden, pull = jax.vjp(nonlinearity, *(array + zero for array in inputs))
    errors, gradient = jax.vjp(product, hidden, weight)[1](cotangent)
    return pull(errors), gradient


recomputed.defvjp(_recomputed_forward, _recomputed_backward)


def hidden_zero(cotangent: Array) -> Float[Array, ""]:
    """A zero that makes what it is added to an expression of the backward pass.

    XLA's CPU backend drops barriers before it merges equal expressions, so that what a gradient computes again would
    be kept since the forward pass after all; a zero that it cannot know to be one tells the two apart.
    """
    return (cotangent.ravel()[0] * 0.0).astype(cotangent.dtype)

"""Muon: momentum whose matrices are brought near the closest orthogonal ones (Jordan et al. 2024).

Written out here, because `optax.contrib.muon` keeps its coefficients in the state, as a leaf that belongs to no weight
and that a checkpoint would fix, and wants the axes of each leaf as a second tree, where `Parameter` has them already.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from research import trees
from research.optim.matrices import matrix
from research.parameters import Parameter

# Of the quintic that lifts small singular values fastest; it ends between about 0.7 and 1.2, not at 1 (Jordan 2024).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_SMALLEST_NORM = 1e-7


class MuonState(NamedTuple):
    """Averages of the gradients of kernels, by path as in the weights."""

    momentum: Any


def orthogonal(x: Float[Array, "*stack rows columns"], steps: int) -> Float[Array, "*stack rows columns"]:
    """About `U V'` of each matrix `U S V'`, by `steps` Newton-Schulz iterations; of zero, zero.

    In float32: accelerators multiply that in bfloat16 or TF32 passes by default, which is what the iteration needs.
    """
    a, b, c = COEFFICIENTS
    tall = x.shape[-2] > x.shape[-1]
    x = jnp.swapaxes(x, -1, -2) if tall else x
    x = x / jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True)), _SMALLEST_NORM)
    for _ in range(steps):
        gram = x @ jnp.swapaxes(x, -1, -2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return jnp.swapaxes(x, -1, -2) if tall else x


def is_orthogonalised(parameter: Parameter) -> bool:
    """Whether Muon updates this weight: kernels alone, not embeddings, heads, norms or biases (Jordan 2024)."""
    return parameter.kind == "kernel"


def scale_by_muon(
    parameters: Mapping[str, Parameter],
    momentum: Float[Array, ""],
    scale: Float[Array, ""],
    steps: int,
    dtype: str,
) -> optax.GradientTransformation:
    """Orthogonalised Nesterov momentum of kernels, each layer's and expert's matrix by itself.

    The update of a matrix is scaled by `scale * sqrt(max(fan in, fan out))`, so that its entries have the root mean
    square `scale` whatever its shape: 0.2 is about AdamW's, so that its rates and decay hold (Liu et al. 2025, eq. 4).

    Args:
      parameters: what is known of the weights that are given, kernels all.
      momentum: decay of the average of gradients.
      scale: root mean square of the update.
      steps: Newton-Schulz iterations.
      dtype: that the average is stored in.
    """

    def init(params: Any) -> MuonState:
        return MuonState(optax.tree.zeros_like(params, dtype=dtype))

    def direction(path: str, gradient: Array, average: Array) -> Array:
        parameter = parameters[path]
        found = matrix(parameter)
        assert found is not None
        shape = (*(parameter.shape[axis] for axis in found.stack), parameter.fan_in, parameter.fan_out)
        ahead = momentum * average + (1.0 - momentum) * gradient
        longer = math.sqrt(max(parameter.fan_in, parameter.fan_out))
        return (scale * longer * orthogonal(ahead.reshape(shape), steps)).reshape(parameter.shape)

    def update(gradients: Any, state: MuonState, params: Any = None) -> tuple[Any, MuonState]:
        del params
        averages = optax.tree.update_moment(gradients, state.momentum, momentum, 1)
        updates = trees.map_with_path(direction, gradients, averages)
        return updates, MuonState(optax.tree.cast(averages, dtype))

    return optax.GradientTransformation(init, update)

"""Adafactor: second moments of matrices kept as a row and a column (Shazeer & Stern 2018).

Written out here, because `optax.scale_by_factored_rms` factors the two largest axes of a leaf, which may be the stacked
layers or one axis of a pair of heads and their dimensions.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from research import trees
from research.optim.matrices import matrix, stacked_axes
from research.parameters import Parameter

# Section 9: the exponent of the decay 1 - t^-0.8, what is added to squared gradients, and the largest root mean square.
DECAY_EXPONENT, SMALLEST_SQUARE, CLIPPING = 0.8, 1e-30, 1.0


class FactoredState(NamedTuple):
    """Second moments by path as in the weights; each weight is in `rows` and `columns`, or in `full`.

    Attributes:
      done: updates.
      rows: means over the outputs; of the weight's shape, but for its outputs' axes, which have size 1.
      columns: means over the inputs, whose axes have size 1.
      full: of weights that are no matrices.
    """

    done: Int[Array, ""]
    rows: Any
    columns: Any
    full: Any


def scale_by_factored_moments(parameters: Mapping[str, Parameter]) -> optax.GradientTransformation:
    """Algorithms 4 and 5, without relative step sizes: the schedule is the run's own.

    A gradient is divided by the root of its second moment, for matrices the product of a row and a column over their
    mean; then each layer's and expert's update is scaled down to a root mean square of 1 where it is larger.
    """

    def init(params: Any) -> FactoredState:
        rows, columns, full = {}, {}, {}
        for path, weight in trees.flatten(params).items():
            found = matrix(parameters[path])
            if found is None:
                full[path] = jnp.zeros_like(weight)
            else:
                rows[path] = jnp.zeros(_without(weight.shape, found.outputs), weight.dtype)
                columns[path] = jnp.zeros(_without(weight.shape, found.inputs), weight.dtype)
        return FactoredState(jnp.zeros((), jnp.int32), *map(trees.unflatten, (rows, columns, full)))

    def update(gradients: Any, state: FactoredState, params: Any = None) -> tuple[Any, FactoredState]:
        del params
        done = state.done + 1
        decay = 1.0 - done.astype(jnp.float32) ** -DECAY_EXPONENT
        rows, columns, full = (trees.flatten(tree) for tree in (state.rows, state.columns, state.full))
        updates = {}
        for path, gradient in trees.flatten(gradients).items():
            square, found = jnp.square(gradient) + SMALLEST_SQUARE, matrix(parameters[path])
            if found is None:
                full[path] = _average(full[path], square, decay)
                direction = gradient * full[path] ** -0.5
            else:
                rows[path] = _average(rows[path], jnp.mean(square, found.outputs, keepdims=True), decay)
                columns[path] = _average(columns[path], jnp.mean(square, found.inputs, keepdims=True), decay)
                mean = jnp.mean(rows[path], found.inputs, keepdims=True)
                direction = gradient * (rows[path] / mean) ** -0.5 * columns[path] ** -0.5
            updates[path] = _clipped(direction, parameters[path])
        kept = (trees.unflatten(leaves) for leaves in (rows, columns, full))
        return trees.unflatten(updates), FactoredState(done, *kept)

    return optax.GradientTransformation(init, update)


def _without(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape))


def _average(before: Array, square: Array, decay: Float[Array, ""]) -> Array:
    return decay * before + (1.0 - decay) * square


def _clipped(direction: Array, parameter: Parameter) -> Array:
    own = tuple(range(len(stacked_axes(parameter)), direction.ndim))
    size = jnp.sqrt(jnp.mean(jnp.square(direction), own, keepdims=True))
    return direction / jnp.maximum(1.0, size / CLIPPING)

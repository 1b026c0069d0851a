"""Rows of any number through a compiled program of a fixed number of rows."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from research.parallel import arrays

Batch = Mapping[str, Array]


def over_rows(
    function: Callable[[Any, Batch], Any], params: Any, batch: Mapping[str, np.ndarray], size: int, mesh: Mesh
) -> Any:
    """What `function(params, rows)` gives for each row of a batch, on the host: a tree of arrays `[rows, ...]`.

    Args:
      function: of the weights and `size` rows; compiled once.
      params: weights.
      batch: arrays `[rows, ...]`.
      size: rows of a call, which the mesh divides; the last call is filled up with zeros.
      mesh: devices of this process.
    """
    compiled = jax.jit(lambda params, made: function(params, jax.tree.map(lambda array: array[0], dict(made))))
    count, held = len(next(iter(batch.values()))), arrays.local_rows(size, mesh)
    found = []
    for first in range(0, count, size):
        part = {name: array[first : first + size] for name, array in batch.items()}
        full = {name: np.zeros((1, size, *array.shape[1:]), array.dtype) for name, array in part.items()}
        for name, array in part.items():
            full[name][0, : len(array)] = array
        found.append(compiled(params, arrays.to_global(full, size, held, mesh)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *jax.device_get(found))

"""Reading leaves straight into arrays, each device its own slice."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from research import trees
from research.interop.source import Leaf


def place(leaves: Mapping[str, Leaf], shapes: Any | None = None, dtype: np.dtype | None = None) -> dict[str, Any]:
    """The weights as a nested dictionary of arrays; one leaf at a time is on the way.

    Args:
      leaves: how each is read.
      shapes: the weights as `jax.ShapeDtypeStruct` with shardings; none: on the first device, in the type of the file.
      dtype: type of all weights where `shapes` says nothing.
    """
    wanted = {} if shapes is None else trees.flatten(shapes)
    assert shapes is None or wanted.keys() == leaves.keys()
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    found = {}
    for path, leaf in leaves.items():
        shape = wanted.get(path)
        assert shape is None or shape.shape == leaf.shape, f"{path}: {leaf.shape} for {shape.shape}"
        sharding = getattr(shape, "sharding", None) or here
        target = np.dtype(shape.dtype) if shape is not None else dtype or leaf.dtype
        found[path] = jax.make_array_from_callback(leaf.shape, sharding, _reader(leaf, target))
        jax.block_until_ready(found[path])  # what is on the way to a device is held on the host as well
    return trees.unflatten(found)


def _reader(leaf: Leaf, dtype: np.dtype) -> Any:
    return lambda index: leaf.read(index).astype(dtype, copy=False)

"""Rows on hosts and global arrays on a mesh."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from research.errors import UserError
from research.parallel.rules import BATCH, num_shards


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Layout of `[accumulation, rows, ...]`: rows over all axes that carry data."""
    return NamedSharding(mesh, PartitionSpec(None, BATCH))


def check_rows(batch_size: int, accumulation: int, mesh: Mesh, key: str = "train.batch_size") -> None:
    """Raises `UserError` where a micro-batch does not divide over the mesh."""
    shards = num_shards(BATCH, mesh)
    if batch_size % (accumulation * shards):
        parts = f"{shards} batch shards of the mesh ({' x '.join(BATCH)})"
        steps = f" times train.accumulation={accumulation}" if accumulation > 1 else ""
        raise UserError(f"{key}={batch_size} is not divisible by the {parts}{steps}: change one of them")


def _places(mesh: Mesh, shape: tuple[int, ...]) -> dict[jax.Device, tuple[slice, ...]]:
    """Which part of an array of batches each device of this process holds."""
    places = batch_sharding(mesh).addressable_devices_indices_map(shape)
    return {device: index for device, index in places.items() if index is not None}


def local_rows(rows: int, mesh: Mesh) -> np.ndarray:
    """Which of the `rows` of a micro-batch lie on this process's devices, in ascending order."""
    places = _places(mesh, (1, rows))
    return np.unique(np.concatenate([np.arange(rows)[index[1]] for index in places.values()]))


def to_global(batch: Mapping[str, np.ndarray], rows: int, held: np.ndarray, mesh: Mesh) -> dict[str, Array]:
    """Global arrays `[accumulation, rows, ...]` from the rows `held` by this process.

    One call places all arrays where all devices are this process's: each call costs more than the few bytes it moves.
    """
    if mesh.size == 1:
        return jax.device_put(dict(batch), mesh.devices.flat[0])
    sharding = batch_sharding(mesh)
    if sharding.is_fully_addressable:
        return jax.device_put(dict(batch), sharding)

    def place(array: np.ndarray) -> Array:
        shape = (array.shape[0], rows, *array.shape[2:])
        parts = []
        for device, index in _places(mesh, shape).items():
            wanted = np.arange(rows)[index[1]]
            start = int(np.searchsorted(held, wanted[0]))
            parts.append(jax.device_put(array[:, start : start + len(wanted)], device))
        return jax.make_array_from_single_device_arrays(shape, sharding, parts)

    return {name: place(array) for name, array in batch.items()}

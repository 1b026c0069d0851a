"""Bytes of a device by kind: the state and the batch exactly, what lives between them as an estimate."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from research.plan.trace import Trace, batch_shapes
from research.plan.trace import trace as traced
from research.settings import AXES
from research.train.assembly import Assembly
from research.train.state import state_shapes

# What is computed from shapes and shardings alone, and what is estimated.
PARAMETERS, OPTIMIZER, BATCH, OTHER = "parameters", "optimizer state", "batch", "other state"
GRADIENTS, ACTIVATIONS, WORKING = "gradients", "activations", "working set"
ESTIMATED = (GRADIENTS, ACTIVATIONS, WORKING)
# A share of the estimate for what an allocator leaves unused between buffers.
_FRAGMENTATION = 0.05
# The state of a layout is the same for all micro-batches and remat policies.
_STATES: dict[Any, dict[str, int]] = {}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
      arguments: by kind, from shapes and shardings: what the program is given and, donated, gives back.
      estimates: by kind, of what lives within the program.
    """

    arguments: dict[str, int]
    estimates: dict[str, int]

    @property
    def given(self) -> int:
        """Of all arguments."""
        return sum(self.arguments.values())

    @property
    def total(self) -> int:
        """Arguments and estimates."""
        return self.given + sum(self.estimates.values())


def memory(assembly: Assembly) -> Memory:
    """Bytes of one device of the assembled run."""
    return Memory(arguments(assembly), estimates(assembly))


def arguments(assembly: Assembly) -> dict[str, int]:
    """Bytes of a device's shards of state and batch, by kind."""
    return {**_state_bytes(assembly), BATCH: shard_bytes(batch_shapes(assembly))}


def _state_bytes(assembly: Assembly) -> dict[str, int]:
    settings = assembly.settings
    key = (
        dataclasses.replace(
            settings,
            parallel=dataclasses.replace(settings.parallel, remat="none"),
            train=dataclasses.replace(settings.train, batch_size=1, accumulation=1),
        ),
        tuple(assembly.mesh.shape.items()),
    )
    if key in _STATES:
        return _STATES[key]
    state = state_shapes(settings, assembly.model, assembly.mesh, settings.parallel.preset)
    named = {"params": PARAMETERS, "optimizer": OPTIMIZER}
    found: dict[str, int] = {}
    for field, part in zip(state._fields, state, strict=True):
        size, leaves = shard_bytes(part), jax.tree.leaves(part)
        whole = any(leaf.ndim > 0 for leaf in leaves)
        kind = named.get(field, field.replace("_", " ") if whole else OTHER)
        found[kind] = found.get(kind, 0) + size
    return _STATES.setdefault(key, found)


def shard_bytes(tree: Any) -> int:
    """Bytes of one device's shards of arrays with shardings, as the device stores them."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape)
        tiled = next(iter(leaf.sharding.device_set)).platform == "tpu"
        total += (tiled_size(shape) if tiled else math.prod(shape)) * np.dtype(leaf.dtype).itemsize
    return total


def tiled_size(shape: tuple[int, ...]) -> int:
    """Elements of an array on a TPU, which stores tiles of 8 x 128 of the last two dimensions, in the better order.

    Source: openxla.org/xla/tiled_layout. A weight of heads narrower than 128 takes up to twice its bytes.
    """

    def tiles(rows: int, columns: int) -> int:
        tile = min(8, 1 << (rows - 1).bit_length())
        return -(-rows // tile) * tile * -(-columns // 128) * 128

    *outer, rows, columns = (1, 1, *shape)
    return math.prod(outer) * min(tiles(rows, columns), tiles(columns, rows))


def estimates(assembly: Assembly) -> dict[str, int]:
    """What lives within the program.

    Gradients are as large as the weights (twice where micro-batches are added up). Activations are what automatic
    differentiation keeps from the forward pass, read from the trace, over the axes that cut batch, sequence and width.
    The working set is what one layer computes before it is thrown away, the weights of two layers gathered from their
    shards, and the logits where the head makes them.
    """
    settings, mesh = assembly.settings, assembly.mesh
    found = traced(assembly)
    weights = arguments(assembly)[PARAMETERS]
    whole = dataclasses.replace(assembly, model=dataclasses.replace(assembly.model, remat="none"))
    layers = settings.model.num_layers + settings.model.encoder_layers
    by_layer = activations(assembly, found if settings.parallel.remat == "none" else traced(whole)) / layers
    cut = mesh.shape["fsdp"] * mesh.shape["expert"]
    width = np.dtype(settings.model.compute_dtype).itemsize
    size = sum(p.size for p in assembly.model.parameters().values() if "layers" in p.dimensions) / layers
    gathered = 2 * size * width / mesh.shape["tensor"] / mesh.shape["expert"] if cut > 1 else 0.0
    kept = activations(assembly, found)
    working = by_layer + gathered
    listed = {
        GRADIENTS: weights * (2 if settings.train.accumulation > 1 else 1),
        ACTIVATIONS: kept,
        WORKING: working + _FRAGMENTATION * (kept + working),
    }
    return {kind: int(number) for kind, number in listed.items()}


def activations(assembly: Assembly, found: Trace) -> float:
    """Bytes of a device that the forward pass of a micro-batch keeps.

    The dimension of the rows is cut by the axes that carry data, the sequence behind it by `sequence`, what is not the
    residual stream by `tensor`; what has no rows (weights in the type that is computed in) as weights are.
    """
    mesh, settings, rows = assembly.mesh, assembly.settings, found.rows
    share = settings.train.batch_size / settings.train.accumulation / rows
    size = {axis: mesh.shape[axis] for axis in AXES}
    data = size["replica"] * size["data"] * size["fsdp"] * size["expert"]
    length = max(array.shape[2] for array in batch_shapes(assembly).values() if len(array.shape) > 2)
    total = 0.0
    for shape, dtype in found.kept:
        own = float(math.prod(shape) * dtype.itemsize)
        holds = [n for n, dimension in enumerate(shape) if dimension in (rows, rows * length)]
        if not holds:
            own /= size["fsdp"] * size["tensor"] * size["expert"] if len(shape) > 1 else 1
        else:
            rest = shape[holds[0] + 1 :]
            own *= share / data / (size["sequence"] if shape[holds[0]] != rows or length in rest else 1)
            beyond = math.prod(dimension for dimension in rest if dimension != length)
            own /= size["tensor"] if beyond not in (1, settings.model.embed_dim) else 1
        total += own
    return total

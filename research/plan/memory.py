"""Bytes of a device by kind: the state and the batch exactly, what lives between them as an estimate."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from research.parallel import rules
from research.plan.trace import Held, batch_shapes
from research.plan.trace import trace as traced
from research.plan.weights import stored
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
            train=dataclasses.replace(settings.train, batch_size=1, accumulation=1, noise_scale=False),
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
    settings = assembly.settings
    weights = arguments(assembly)[PARAMETERS]
    layers = settings.model.num_layers + settings.model.encoder_layers
    width = np.dtype(settings.model.compute_dtype).itemsize
    of_layers = [weight for weight in stored(assembly) if "layers" in weight.parameter.dimensions]
    gathered = 2 * width * sum(weight.part for weight in of_layers if weight.gathered) / layers
    kept = activations(assembly)
    working = all_activations(assembly) / layers + gathered
    listed = {
        GRADIENTS: weights * (2 if settings.train.accumulation > 1 else 1),
        ACTIVATIONS: kept,
        WORKING: working + _FRAGMENTATION * (kept + working),
    }
    return {kind: int(number) for kind, number in listed.items()}


def activations(assembly: Assembly) -> float:
    """Bytes of a device that the forward pass of a micro-batch keeps in its memory."""
    found = traced(assembly)
    return _sharded(assembly, found.kept, found.rows) + _gathered_keys(assembly)


def all_activations(assembly: Assembly) -> float:
    """The same where nothing is computed again: what the policy of the run keeps, and what it does not."""
    return activations(dataclasses.replace(assembly, model=dataclasses.replace(assembly.model, remat="none")))


def offloaded(assembly: Assembly) -> float:
    """Bytes that a device sends to its host's memory in the forward pass of a micro-batch."""
    found = traced(assembly)
    return _sharded(assembly, found.offloaded, found.rows)


def _gathered_keys(assembly: Assembly) -> float:
    """Bytes of the keys and values of other parts of a sequence, kept where they are gathered and not again."""
    core, mesh, train = assembly.settings.model, assembly.mesh, assembly.settings.train
    gathers = dict(assembly.kernels.names).get("sequence_attention") == "gather"
    if not gathers or assembly.model.remat != "none":
        return 0.0
    rows = train.batch_size / train.accumulation / rules.num_shards(rules.BATCH, mesh)
    keys = rows * max(_lengths(assembly)) * 2 * core.kv_heads * core.head_width / mesh.shape["tensor"]
    others = 1 - 1 / mesh.shape["sequence"]
    return (core.num_layers + core.encoder_layers) * keys * others * np.dtype(core.compute_dtype).itemsize


def _lengths(assembly: Assembly) -> set[int]:
    """Positions of a row: of what is read, and of the decoder where there is one."""
    return {array.shape[2] for array in batch_shapes(assembly).values() if len(array.shape) > 2}


def _sharded(assembly: Assembly, arrays: Sequence[Held], rows: int) -> float:
    """Bytes of a device of traced arrays."""
    train, lengths = assembly.settings.train, _lengths(assembly)
    share = train.batch_size / train.accumulation / rows / rules.num_shards(rules.BATCH, assembly.mesh)
    shards: dict[int, int] = {}
    for parameter, number, *_ in stored(assembly):
        stack = parameter.shape[0] if "layers" in parameter.dimensions else 1
        shards |= {parameter.size: number, parameter.size // stack: number}
    total = 0.0
    for shape, dtype in arrays:
        size = math.prod(shape)
        place = next((n for n, dimension in enumerate(shape) if dimension and dimension % rows == 0), None)
        if place is None:  # a weight in the type that is computed in, or a table that every device has
            part = size / shards.get(size, 1)
        else:
            part = size * share * _held(assembly, lengths, shape[place] // rows, shape[place + 1 :])
        total += part * dtype.itemsize
    return total


def _held(assembly: Assembly, lengths: set[int], merged: int, rest: tuple[int, ...]) -> float:
    """The share that a device holds of its rows of an array `[rows * merged, *rest]`.

    Positions are cut by `sequence`, what is not the residual stream by `tensor`. Experts without places compute, in the
    worst case, all tokens of the devices that share them (`kernels.sharded_experts`); with places, whole sequences.
    """
    core, size = assembly.settings.model, assembly.mesh.shape
    picks = core.experts_per_token if core.num_experts else 1
    routing = {picks, core.num_experts} if core.num_experts else set()
    inner = [each for each in rest if each not in lengths | routing | {1, core.embed_dim}]
    if core.num_experts and core.expert_capacity is not None and (core.num_experts in rest or merged == 1):
        places = math.ceil(core.expert_capacity * assembly.settings.data.sequence_length * picks / core.num_experts)
        if places in rest:
            return 1 / size["tensor"] if core.mlp_width in rest else 1.0
    own = 1 / size["tensor"] if inner else 1.0
    if lengths & set(rest) or any(merged % length == 0 for length in lengths):
        own /= size["sequence"]
    dropless = core.num_experts and core.expert_capacity is None
    if dropless and any(merged == length * picks or (merged == length and rest[:1] == (picks,)) for length in lengths):
        own *= size["expert"]
    return own

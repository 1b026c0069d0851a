"""How a mesh stores each weight, and what a step therefore communicates, by analysis."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from research.parallel import rules
from research.parallel.rules import Axes
from research.parameters import Parameter
from research.plan.traffic import Flow
from research.train.assembly import Assembly

# What splits the product with a weight itself; all other axes that store a weight in parts gather it before.
_SPLITTING = {"tensor": None, "expert": "experts"}


_STORED: dict[Any, list["Stored"]] = {}


class Stored(NamedTuple):
    """A weight on a mesh.

    Attributes:
      parameter: what the model declares.
      shards: devices that hold a different part of it.
      part: its elements that a device computes with.
      gathered: axes that store it in parts which are gathered before use, and whose gradients are scattered.
      added: axes with tokens of their own that hold the same part: gradients are added up over them.
    """

    parameter: Parameter
    shards: int
    part: float
    gathered: Axes
    added: Axes


def stored(assembly: Assembly) -> list[Stored]:
    """All weights of the run, by the table of its preset."""
    mesh, model, preset = assembly.mesh, assembly.model, assembly.settings.parallel.preset
    key = (model.settings, model.vocab_size, model.max_positions, preset, tuple(mesh.shape.items()))
    if key not in _STORED:
        _STORED[key] = _stored(model.parameters(), mesh, preset)
    return _STORED[key]


def _stored(declared: Mapping[str, Parameter], mesh: Mesh, preset: str) -> list[Stored]:
    shardings = rules.parameter_shardings(declared, mesh, preset)
    tokens = tuple(axis for axis in (*rules.BATCH, *rules.ACTIVATIONS["sequence"]) if mesh.shape[axis] > 1)
    found = []
    for path, parameter in declared.items():
        places = [
            (axis, name)
            for name, axes in zip(parameter.dimensions, shardings[path].spec, strict=True)
            for axis in ((axes,) if isinstance(axes, str) else axes or ())
            if mesh.shape[axis] > 1
        ]
        split = tuple(axis for axis, name in places if axis in _SPLITTING and _SPLITTING[axis] in (None, name))
        gathered = tuple(axis for axis, _ in places if axis not in split)
        added = tuple(axis for axis in tokens if axis not in gathered + split)
        part = parameter.size / math.prod(mesh.shape[axis] for axis in split)
        shards = math.prod(mesh.shape[axis] for axis, _ in places)
        found.append(Stored(parameter, shards, part, gathered, added))
    return found


def estimated_flows(assembly: Assembly) -> list[Flow]:
    """Collectives of a step, where nothing was compiled.

    Axes that merely store a weight gather it for either pass of every micro-batch and scatter the sum of its gradients;
    axes that carry other tokens and hold the same part add gradients up once. `tensor` adds two activations a layer
    and pass; `sequence` gathers keys and values.
    """
    settings, mesh = assembly.settings, assembly.mesh
    core, shape, parts = settings.model, mesh.shape, settings.train.accumulation
    width = np.dtype(core.compute_dtype).itemsize
    layers = core.num_layers + core.encoder_layers
    times: dict[tuple[str, Axes], float] = {}
    sent: dict[tuple[str, Axes], float] = {}

    def add(kind: str, axes: Axes, count: float, size: float) -> None:
        """A ring's bytes of a device, where `size` are those of the whole array."""
        number = rules.num_shards(axes, mesh)
        times[kind, axes] = count
        sent[kind, axes] = sent.get((kind, axes), 0.0) + size * (number - 1) / number

    for weight in stored(assembly):
        if weight.gathered:
            add("all-gather", weight.gathered, 2.0 * parts, 2 * parts * weight.part * width)
            add("reduce-scatter", weight.gathered, float(parts), parts * weight.part * 4)
        for axis in weight.added:
            shard = weight.part / rules.num_shards(weight.gathered, mesh)
            add("all-reduce", (axis,), 1.0, 2 * shard * 4)
    tokens = settings.train.batch_size * settings.data.sequence_length
    own = tokens / rules.num_shards((*rules.BATCH, *rules.ACTIVATIONS["sequence"]), mesh)
    stream, passes = own * core.embed_dim * width, 2 * layers
    add("all-reduce", ("tensor",), 2.0 * passes, 4 * passes * stream)
    keys = 2 * core.kv_heads * core.head_width / shape["tensor"]
    add("all-gather", ("sequence",), 2.0 * passes, 2 * passes * own * keys * width * shape["sequence"])
    if core.num_experts and core.expert_capacity is not None:
        placed = core.experts_per_token * core.expert_capacity
        add("all-to-all", ("expert",), 2.0 * passes, 2 * passes * placed * stream)
    elif core.num_experts:  # every device of `expert` sees the tokens of all of them
        for kind in ("all-gather", "reduce-scatter"):
            add(kind, ("expert",), float(passes), passes * stream * shape["expert"])
    found = [Flow(kind, axes, times[kind, axes], size) for (kind, axes), size in sent.items() if size]
    return sorted(found, key=lambda flow: -flow.bytes)

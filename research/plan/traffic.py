"""Bytes that collectives move over each mesh axis."""

import math
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from research.plan.hlo import Collective


class Flow(NamedTuple):
    """All collectives of one kind over the same mesh axes.

    Attributes:
      kind: `all-gather`, `reduce-scatter`, ...
      axes: mesh axes along which the members of a group differ.
      times: executions a step.
      bytes: that a device sends a step.
    """

    kind: str
    axes: tuple[str, ...]
    times: float
    bytes: float


def spanned(groups: Int[np.ndarray, "groups members"], shape: dict[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the members of any group differ; devices are numbered in the order of the mesh."""
    places = np.stack(np.unravel_index(groups, tuple(shape.values())), axis=-1)
    differ = np.any(places != places[:, :1], axis=(0, 1))
    return tuple(axis for axis, moves in zip(shape, differ, strict=True) if moves)


def flows(collectives: tuple[Collective, ...], mesh: Mesh) -> list[Flow]:
    """What moves in one step, the largest first; collectives of a device with itself are none."""
    shape = dict(mesh.shape)
    found: dict[tuple[str, tuple[str, ...]], tuple[float, float]] = {}
    for one in collectives:
        axes = spanned(one.groups, shape)
        if axes:
            count, total = found.get((one.kind, axes), (0.0, 0.0))
            sent = one.sent(math.prod(shape.values())) * one.times
            found[one.kind, axes] = (count + one.times, total + sent)
    listed = [Flow(kind, axes, count, total) for (kind, axes), (count, total) in found.items()]
    return sorted(listed, key=lambda flow: -flow.bytes)

"""How arrays lie on a mesh, as far as a kernel that splits its own work needs to know it."""

import dataclasses
import math

import jax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

Axes = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and the axes that carry each kind of dimension.

    Attributes:
      mesh: all devices of the program.
      batch: axes over which rows are split.
      weights: axes over which each dimension of a weight is split, by the dimension's name.
      sequence: the axis of positions.
      tensor: the axis of heads, of the MLP's width and of the vocabulary.
      expert: the axis of experts; it is one of `batch`.
    """

    mesh: Mesh
    batch: Axes
    weights: tuple[tuple[str, Axes], ...]
    sequence: str = "sequence"
    tensor: str = "tensor"
    expert: str = "expert"

    @property
    def platform(self) -> str:
        """`cpu`, `gpu` or `tpu`."""
        return self.mesh.devices.flat[0].platform

    @property
    def axes(self) -> Axes:
        """All axes of the mesh."""
        return tuple(self.mesh.axis_names)

    def size(self, *axes: str) -> int:
        """Into how many parts the axes cut a dimension."""
        return math.prod(self.mesh.shape[axis] for axis in axes)

    def split(self, axes: Axes, *sizes: int) -> Axes:
        """Those axes that have several devices, or none of them where they do not divide all the sizes."""
        axes = tuple(axis for axis in axes if self.mesh.shape[axis] > 1)
        return axes if all(size % self.size(*axes) == 0 for size in sizes) else ()

    def stored(self, shape: tuple[int, ...], dimensions: tuple[str, ...]) -> list[Axes]:
        """The axes that split each dimension of a weight, as it is stored; an axis splits one dimension at most."""
        table, used, found = dict(self.weights), set[str](), []
        for size, name in zip(shape, dimensions, strict=True):
            axes = self.split(tuple(axis for axis in table[name] if axis not in used), size)
            used.update(axes)
            found.append(axes)
        return found


def spec(*axes: Axes) -> PartitionSpec:
    """The partition of an array whose dimensions are split by these axes."""
    return PartitionSpec(*(part or None for part in axes))


def index(layout: Layout, axes: Axes) -> Array | int:
    """Which part of a dimension that these axes cut the device of a mapped function holds."""
    found: Array | int = 0
    for axis in axes:
        found = found * layout.size(axis) + jax.lax.axis_index(axis)
    return found

"""What sharding, optimizers, decay, initialisation and interop need to know of one weight."""

import dataclasses
import math

KINDS = ("kernel", "embedding", "head", "norm", "bias")


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One weight of a model.

    Attributes:
      path: `layers/attention/query`; stacked leaves carry the dimension `layers` first.
      shape: sizes, one per dimension.
      dimensions: logical names, one per dimension (`embed`, `heads`, `mlp`, `vocab`, ...); rules map them to mesh axes.
      kind: one of `KINDS`; weight decay and learning-rate rules go by it.
      fan_in: number of inputs that each output sums over; the variance of the initial values is its inverse.
      fan_out: number of outputs that each input feeds.
      std: standard deviation of the initial values; 0 for constants.
      mean: value around which the initial values lie (1 for norm scales).
    """

    path: str
    shape: tuple[int, ...]
    dimensions: tuple[str, ...]
    kind: str
    fan_in: int
    fan_out: int
    std: float
    mean: float = 0.0

    def __post_init__(self) -> None:
        assert len(self.shape) == len(self.dimensions), f"{self.path}: {self.shape} against {self.dimensions}"
        assert self.kind in KINDS, f"{self.path}: unknown kind {self.kind}"

    @property
    def size(self) -> int:
        """Number of scalars."""
        return math.prod(self.shape)

    def stacked(self, num_layers: int, prefix: str) -> "Parameter":
        """The same weight of `num_layers` equal layers, as one array."""
        return dataclasses.replace(
            self,
            path=f"{prefix}/{self.path}",
            shape=(num_layers, *self.shape),
            dimensions=("layers", *self.dimensions),
        )

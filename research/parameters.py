"""What sharding, optimizers, decay, initialisation and interop need to know of one weight."""

import dataclasses
import math

KINDS = ("kernel", "embedding", "head", "norm", "bias")


@dataclasses.dataclass(frozen=True)
class Scaling:
    """How a weight relates to the same weight of the smaller model that rates were tuned on; all 1: it is that model.

    Attributes:
      fan_in: growth of the number of inputs that each output sums over.
      fan_out: growth of the number of outputs.
      multiplier: by which the rule multiplies this weight in the forward pass; it stands in the initial values and the
        learning rate instead, which gives the same function at every update.
      rate: factor of the learning rate that comes with depth; weight decay follows it.
      branch: factor of the residual branch that the weight lies in, by which its gradients are smaller.
    """

    fan_in: float = 1.0
    fan_out: float = 1.0
    multiplier: float = 1.0
    rate: float = 1.0
    branch: float = 1.0


UNSCALED = Scaling()


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
      scaling: growth over the model that learning rates were tuned on; optimizers go by it.
    """

    path: str
    shape: tuple[int, ...]
    dimensions: tuple[str, ...]
    kind: str
    fan_in: int
    fan_out: int
    std: float
    mean: float = 0.0
    scaling: Scaling = UNSCALED

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

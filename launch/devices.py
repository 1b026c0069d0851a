"""What `Resources.devices` names: CPUs, GPUs of a node, or a TPU slice with its hosts."""

import dataclasses
import math
import re

from research.errors import UserError


@dataclasses.dataclass(frozen=True)
class Generation:
    """What the clouds call a generation of TPUs.

    Attributes:
      dimensions: sides of its torus.
      per_host: chips of a host of a slice that has several.
      node_label: value of `cloud.google.com/gke-tpu-accelerator` (GKE: plan TPUs).
      type_prefix: of Cloud TPU's accelerator types.
      type_unit: what these types count for each chip (v4 and v5p: TensorCores, two a chip).
      runtime: software of a TPU VM for JAX.
    """

    dimensions: int
    per_host: int
    node_label: str
    type_prefix: str
    type_unit: int
    runtime: str


# Hosts of four chips are the ones that slices of several hosts are made of; equal to the table of `research.plan`.
GENERATIONS = {
    "v4": Generation(3, 4, "tpu-v4-podslice", "v4", 2, "tpu-ubuntu2204-base"),
    "v5e": Generation(2, 4, "tpu-v5-lite-podslice", "v5litepod", 1, "v2-alpha-tpuv5-lite"),
    "v5p": Generation(3, 4, "tpu-v5p-slice", "v5p", 2, "v2-alpha-tpuv5"),
    "v6e": Generation(2, 4, "tpu-v6e-slice", "v6e", 1, "v2-alpha-tpuv6e"),
}


@dataclasses.dataclass(frozen=True)
class Devices:
    """Parsed `Resources.devices`.

    Attributes:
      kind: `cpu`, `gpu` or `tpu`.
      name: of the chip (`h100`, `v5p`), empty where any will do.
      per_host: devices of a machine; of CPUs 0.
      shape: of the slice's torus; of others empty.
    """

    kind: str
    name: str = ""
    per_host: int = 0
    shape: tuple[int, ...] = ()

    @property
    def chips(self) -> int:
        """Of one slice."""
        return math.prod(self.shape)

    @property
    def hosts(self) -> int:
        """Of one slice."""
        return self.chips // self.per_host

    @property
    def topology(self) -> str:
        """`4x4x4`."""
        return "x".join(map(str, self.shape))

    @property
    def accelerator_type(self) -> str:
        """What Cloud TPU calls the slice, `v5p-128`; it says how many chips, and their usual shape is meant.

        Raises:
          UserError: a shape that no type means.
        """
        generation = GENERATIONS[self.name]
        exponent = (self.chips - 1).bit_length()  # sides are powers of two, as equal as can be
        usual = [1 << (exponent + side) // generation.dimensions for side in range(generation.dimensions)]
        if sorted(self.shape) != usual:
            shown = "x".join(map(str, usual))
            raise UserError(
                f"--devices={self.name}:{self.topology}: Cloud TPU makes slices by their number of chips, in the shape "
                f"of {self.name}:{shown} or smaller and larger ones like it: take such a shape, or --on=gke"
            )
        return f"{generation.type_prefix}-{self.chips * generation.type_unit}"


def parse(text: str) -> Devices:
    """The devices of a text.

    Raises:
      UserError: it names none, or a slice that cannot be cut into hosts.
    """
    if text == "cpu":
        return Devices("cpu")
    if found := re.fullmatch(r"gpu:(?:([a-z0-9][a-z0-9_.-]*):)?([1-9][0-9]?)", text):
        return Devices("gpu", found[1] or "", int(found[2]))
    found = re.fullmatch(r"([a-z0-9]+):([1-9][0-9]*(?:x[1-9][0-9]*)*)", text)
    generation = GENERATIONS.get(found[1]) if found else None
    if found is None or generation is None:
        raise UserError(
            f"--devices={text} is unknown: write cpu, gpu:8, gpu:h100:8 (of a node), or a TPU slice like v5p:4x4x4 of "
            f"{', '.join(GENERATIONS)}"
        )
    shape = tuple(int(side) for side in found[2].split("x"))
    if len(shape) != generation.dimensions:
        raise UserError(f"--devices={text} has {len(shape)} sides, but {found[1]} has {generation.dimensions}")
    chips = math.prod(shape)
    if chips > generation.per_host and chips % generation.per_host:
        raise UserError(
            f"--devices={text} has {chips} chips, which hosts of {generation.per_host} cannot share: change a side"
        )
    return Devices("tpu", found[1], min(chips, generation.per_host), shape)

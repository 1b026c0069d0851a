"""Devices that are not here: topologies by name, and stand-ins that settings can be assembled on."""

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from research.errors import UserError
from research.parallel.chips import CHIPS, Chip

EXAMPLES = "v5p:4x4x4, v5e:16x16, gpu:h100:8x4 (8 a node, 4 nodes) or cpu:8"
# Devices that this machine makes up for tests: they compile and share its memory; no data sheet says how fast they are.
_CPU = Chip("cpu", "cpu", "cpu", 0.0, 0.0, 0, 0.0, 0.0, 0.0, 0.0)
# Compiled for without hardware; libtpu makes two devices of a v4 chip where a v4 host makes one.
_COMPILED = {"v5e", "v5p", "v6e", "cpu"}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices and the wires between them.

    Attributes:
      name: as it was asked for, without the slices.
      chip: of which all devices are.
      shape: of a slice's torus, or (devices a node, nodes).
      slices: tori that a data-centre network joins.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def num_devices(self) -> int:
        """Of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def compiled(self) -> bool:
        """Whether a compiler for it runs without it."""
        return self.chip.name in _COMPILED

    @property
    def label(self) -> str:
        """For people."""
        return self.name if self.slices == 1 else f"{self.slices} slices of {self.name}"

    def devices(self) -> list[Any]:
        """A stand-in for each device, in the order of JAX's own."""
        found = []
        if self.chip.dimensions:
            x, y, z = (*self.shape, 1, 1)[:3]
            places = [(a, b, c) for c in range(z) for b in range(y) for a in range(x)]
            for part in range(self.slices):
                found += [Described(self.chip, place, part, number) for number, place in enumerate(places)]
        else:
            per_node = self.shape[0]
            for number in range(self.num_devices):
                place = (number % per_node, number // per_node, 0)
                found.append(Described(self.chip, place, 0, number, place[1]))
        return found


class Described:
    """A device known by description: it has a place in a mesh, and nothing can be put on it."""

    # Meshes and annotations ask for a `jax.Device`, whose own constructor belongs to a backend that is here.
    __class__ = property(lambda self: jax.Device)

    def __init__(self, chip: Chip, coords: tuple[int, int, int], part: int, number: int, host: int | None = None):
        self.platform, self.device_kind = chip.platform, chip.kind
        self.coords, self.core_on_chip, self.slice_index = list(coords), 0, part
        self.id = part * 100_000 + number
        self.process_index = part * 10_000 + (number // chip.per_host if host is None else host)

    def __repr__(self) -> str:
        return f"Described(id={self.id}, kind={self.device_kind}, coords={self.coords}, slice={self.slice_index})"


def parse(name: str, slices: int = 1) -> Topology:
    """The topology of a name.

    Raises:
      UserError: an unknown chip, a shape that it cannot have, or slices of what has none.
    """
    found = re.fullmatch(r"(gpu:)?([a-z0-9]+):(\d+(?:x\d+)*)", name.lower())
    chip = (CHIPS | {"cpu": _CPU}).get(found[2]) if found else None
    if found is None or chip is None or (found[1] and chip.platform != "gpu"):
        known = ", ".join([*CHIPS, "cpu"])
        raise UserError(f"--topology={name} is unknown: write {EXAMPLES}; chips: {known}")
    shape = tuple(int(size) for size in found[3].split("x"))
    if any(size < 1 for size in shape):
        raise UserError(f"--topology={name} has a side of 0: every side is at least 1")
    wanted = chip.dimensions or (2 if chip.platform == "gpu" else 1)
    if chip.platform == "gpu" and len(shape) == 1:
        if shape[0] > 8 and shape[0] % 8:
            raise UserError(
                f"--topology={name}: {shape[0]} GPUs are no whole nodes of 8: write GPUs a node and nodes, as in "
                f"gpu:{chip.name}:4x{-(-shape[0] // 4)}"
            )
        shape = (min(shape[0], 8), max(1, shape[0] // 8))
    if len(shape) != wanted:
        raise UserError(f"--topology={name} has {len(shape)} sides, but {chip.name} has {wanted}: write {EXAMPLES}")
    if slices < 1:
        raise UserError(f"--slices={slices}: there is at least one slice")
    if slices > 1 and not chip.dimensions:
        raise UserError(f"--slices={slices}: only TPUs have slices; nodes of GPUs stand in --topology")
    if chip.dimensions:
        _check_slice(name, chip, shape)
    elif chip.platform == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        chip = dataclasses.replace(chip, hbm_bytes=memory // shape[0])
    return Topology(name.lower(), chip, shape, slices)


def _check_slice(name: str, chip: Chip, shape: tuple[int, ...]) -> None:
    """Of a torus of switched cubes any side may be long; one that is wired for good is a part of 16 x 16 chips."""
    wired = chip.dimensions == 2
    if any(side not in (1, 2, 4, 8, 16) if wired else side > 2 and side % 4 for side in shape):
        sides = "1, 2, 4, 8 or 16" if wired else "1, 2 or a multiple of 4"
        raise UserError(f"--topology={name} is no slice of a {chip.name} pod: make each side {sides}")
    if math.prod(shape) > chip.slice_chips:
        raise UserError(
            f"--topology={name} has {math.prod(shape):,} chips, but the largest slice of {chip.name} has "
            f"{chip.slice_chips:,}: take a smaller one, and several of them with --slices"
        )


@dataclasses.dataclass(frozen=True)
class Wire:
    """What a mesh axis communicates over.

    Attributes:
      network: `torus`, `node` (NVLink) or `network` (between slices or nodes).
      bandwidth: bytes/s that a device sends at most in a ring along the axis, both directions of a ring together.
      note: how it was found.
    """

    network: str
    bandwidth: float
    note: str


def wire(topology: Topology, mesh: Mesh, axes: Sequence[str]) -> Wire:
    """What joins the devices along mesh axes, from where the mesh placed them.

    On a torus every physical side that the axes run along adds its links: both directions where the side wraps, one
    where it does not. What leaves a slice or a node goes over the network.
    """
    chip, names = topology.chip, list(mesh.axis_names)
    moved = np.moveaxis(mesh.devices, [names.index(axis) for axis in axes], range(len(axes)))
    line = moved.reshape(math.prod(moved.shape[: len(axes)]), -1)[:, 0]
    if not chip.dimensions:
        if len({device.coords[1] for device in line}) > 1:
            return Wire("network", chip.network_bandwidth, "between nodes")
        return Wire("node", chip.link_bandwidth, "within a node")
    if len({device.slice_index for device in line}) > 1:
        return Wire("network", chip.network_bandwidth, "between slices")
    sides = [side for side in range(len(topology.shape)) if len({device.coords[side] for device in line}) > 1]
    whole = [len({device.coords[side] for device in line}) == topology.shape[side] for side in sides]
    rings = [full and chip.wraps(topology.shape, side) for side, full in zip(sides, whole, strict=True)]
    bandwidth = chip.link_bandwidth * sum(2 if ring else 1 for ring in rings)
    note = f"{len(sides)} of {chip.dimensions} sides of the torus, {sum(rings)} of them rings"
    return Wire("torus", bandwidth, note)

"""The device mesh, and the start and agreement of the hosts that share it."""

import itertools
import logging
import math
import os
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax._src import distributed  # the key-value store of the coordination service has no public name
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from research.errors import UserError
from research.settings import AXES, ParallelSettings

# The axes that take the devices that nothing else claims, and what a preset needs beside them.
PRESET_AXES: dict[str, dict[str, int]] = {
    "dp": {"data": -1},
    "fsdp": {"fsdp": -1},
    "tp": {"tensor": -1},
    "fsdp_tp": {"fsdp": -1, "tensor": 2},
    "fsdp_sp": {"fsdp": -1, "sequence": 2},
    "fsdp_ep": {"fsdp": -1, "expert": 2},
    "fsdp_tp_sp": {"fsdp": -1, "tensor": 2, "sequence": 2},
}

_AGREEMENT_TIMEOUT = 3_600_000  # milliseconds
_AGREEMENTS = itertools.count()

log = logging.getLogger("isoflop")


def start_processes(settings: ParallelSettings) -> None:
    """Joins the processes of a multi-host run, as the settings or the environment (SLURM, Cloud TPU) describe it.

    Must run before any device is touched. One process alone starts nothing.

    Raises:
      UserError: the description is incomplete.
    """
    count = settings.num_processes or _environment_number("JAX_NUM_PROCESSES")
    number = settings.process_id if settings.process_id is not None else _environment_number("JAX_PROCESS_ID")
    named = bool(settings.coordinator_address) or "JAX_COORDINATOR_ADDRESS" in os.environ
    given = f"parallel.num_processes={count}, parallel.process_id={number}"
    if count is not None and number is not None and not 0 <= number < count:
        raise UserError(f"{given}: processes are numbered from 0 to parallel.num_processes - 1")
    if named or _in_cluster():
        try:
            jax.distributed.initialize(settings.coordinator_address or None, count, number)
        except ValueError as error:  # neither the settings nor what JAX knows of the place say it
            raise UserError(
                f"{given}: beside parallel.coordinator_address say how many processes there are, and which of them "
                f"this one is, from 0 ({error})"
            ) from error
    elif settings.num_processes or settings.process_id is not None:
        raise UserError(
            f"{given} without parallel.coordinator_address: each process would train alone; name HOST:PORT of process 0"
        )
    else:
        return
    log.info("process %d of %d: %d local devices", jax.process_index(), jax.process_count(), jax.local_device_count())


def _in_cluster() -> bool:
    """Whether SLURM or Cloud TPU says who takes part, and JAX asks them."""
    return (
        (int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_ID" in os.environ)
        or len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1
        or "MEGASCALE_COORDINATOR_ADDRESS" in os.environ
    )


def _environment_number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is not None and not text.isdecimal():
        raise UserError(f"{name}={text} is no number: unset it, or set it right")
    return None if text is None else int(text)


def axis_sizes(settings: ParallelSettings, num_devices: int) -> dict[str, int]:
    """The size of every mesh axis.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    asked = {axis: getattr(settings.mesh, axis) for axis in AXES}
    preset = dict(PRESET_AXES[settings.preset])
    if num_devices == 1:
        preset = dict.fromkeys(preset, 1)
    if any(size == -1 for size in asked.values()):
        preset = {axis: 1 if size == -1 else size for axis, size in preset.items()}
    sizes = {axis: asked[axis] if asked[axis] is not None else preset.get(axis, 1) for axis in AXES}
    for axis, size in asked.items():
        if size == 0:
            raise UserError(f"parallel.mesh.{axis}=0: an axis has at least one device")
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise UserError(f"parallel.mesh: only one axis can be -1, not {' and '.join(free)}")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    shown = (
        ", ".join(f"parallel.mesh.{axis}={size}" for axis, size in sizes.items() if size not in (1, -1)) or "the mesh"
    )
    if free and num_devices % fixed == 0:
        sizes[free[0]] = num_devices // fixed
    elif free:
        raise UserError(f"{shown} does not divide the {num_devices} devices: change the mesh")
    elif fixed != num_devices:
        raise UserError(
            f"{shown} makes {fixed} devices, but there are {num_devices}: change the mesh, or set one axis to -1"
        )
    return sizes


def make_mesh(settings: ParallelSettings, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices with all six axes, `replica` across slices and the others within one."""
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(settings, len(devices))
    shape = tuple(sizes[axis] for axis in AXES)
    slices = {getattr(device, "slice_index", 0) for device in devices}
    if sizes["replica"] % len(slices):
        raise UserError(
            f"parallel.mesh.replica={sizes['replica']} is not a multiple of the {len(slices)} slices: set it to "
            f"{len(slices)}, so that the other axes stay within one"
        )
    if devices[0].platform == "cpu" and len(slices) == 1:
        grid = np.asarray(devices).reshape(shape)
    else:
        grid = _placed(sizes, devices, len(slices))
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _placed(sizes: Mapping[str, int], devices: Sequence[jax.Device], slices: int) -> np.ndarray:
    """Devices by axis: on whole sides of their torus, and where the sizes do not allow it, on parts of sides.

    Raises:
      UserError: neither can be had.
    """
    shape = tuple(sizes[axis] for axis in AXES)
    error: Exception | None = None
    for split in (False, True):
        how = {"allow_split_physical_axes": split}
        try:
            if slices == 1:
                return mesh_utils.create_device_mesh(shape, devices, **how)
            within = (shape[0] // slices, *shape[1:])
            return mesh_utils.create_hybrid_device_mesh(within, (slices,) + (1,) * (len(AXES) - 1), devices, **how)
        except (NotImplementedError, ValueError) as found:
            error = found
    shown = ", ".join(f"parallel.mesh.{axis}={size}" for axis, size in sizes.items() if size != 1)
    raise UserError(
        f"{shown} cannot be laid on these {len(devices)} devices: every axis has to be a product of sides of their "
        "torus, or of parts of them; change the sizes of the axes"
    ) from error


def agree(facts: Mapping[str, str]) -> None:
    """Waits for all processes and checks that they were started with the same facts (settings, commit, data).

    Goes through JAX's coordination service: hosts that are minutes apart (one of them prepared data) are waited for,
    and nothing is compiled.

    Raises:
      UserError: on every process, naming what differs and where; each has logged its own value.
    """
    if jax.process_count() == 1:
        return
    client = distributed.global_state.client
    assert client is not None, "several processes without a coordination service"
    place = f"isoflop/{next(_AGREEMENTS)}"  # keys and barriers are used once, and a process may run several cells
    for name, value in facts.items():
        client.key_value_set(f"{place}/{name}/{jax.process_index()}", value)
    client.wait_at_barrier(f"{place}/agreement", timeout_in_ms=_AGREEMENT_TIMEOUT)
    for name, mine in facts.items():
        values = [client.blocking_key_value_get(f"{place}/{name}/{p}", 60_000) for p in range(jax.process_count())]
        differing = [process for process, value in enumerate(values) if value != values[0]]
        if differing:
            log.error("process %d has %s %s", jax.process_index(), name, mine)
            raise UserError(
                f"the hosts do not agree on the {name}: process 0 has {values[0]}, process {differing[0]} has "
                f"{values[differing[0]]}: start all of them with the same command, commit and data"
            )

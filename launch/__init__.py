"""Where a command runs: local processes, SLURM, GKE, TPU VMs, SkyPilot; one interface, one file each."""

import importlib
from collections.abc import Mapping
from typing import Any

from launch.launcher import Handle, Job, Launcher, Option, Resources, Status
from research.errors import UserError

__all__ = ["LAUNCHERS", "Handle", "Job", "Launcher", "Option", "Resources", "Status", "launcher_class", "make", "of"]

# Name to module and class; imported when asked for.
LAUNCHERS = {
    "local": "launch.local:Local",
    "slurm": "launch.slurm:Slurm",
    "gke": "launch.gke:Gke",
    "tpu_vm": "launch.tpu_vm:TpuVm",
    "skypilot": "launch.skypilot:SkyPilot",
}


def launcher_class(name: str) -> type[Launcher]:
    """The class of a launcher.

    Raises:
      UserError: there is none of this name.
    """
    if name not in LAUNCHERS:
        raise UserError(f"--on={name} is unknown: choose {', '.join(LAUNCHERS)}")
    module, _, attribute = LAUNCHERS[name].partition(":")
    found: type[Launcher] = getattr(importlib.import_module(module), attribute)
    return found


def make(name: str, options: Mapping[str, Any] | None = None) -> Launcher:
    """A launcher by name, with the options that it declares; those that are `None` take its defaults."""
    return launcher_class(name)(**(options or {}))


def of(handle: Handle) -> Launcher:
    """The launcher that a job was submitted with, as it was then."""
    return make(handle.launcher, handle.options)

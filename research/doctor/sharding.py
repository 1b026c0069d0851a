"""An update over several devices is the update of one; run as a module, on devices that this machine makes up."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

import research
from research import config
from research.doctor.execution import compared
from research.doctor.findings import Finding, inapplicable
from research.doctor.subject import Subject
from research.errors import UserError
from research.parallel.mesh import PRESET_AXES
from research.settings import AXES, Settings

SHARDED = "sharded = single"
MADE_UP_DEVICES, MOST_MADE_UP = 4, 16


def made_up_devices(settings: Settings) -> int:
    """How many devices one is made up to be: 4, or as many as the configured mesh needs, up to 16."""
    sizes = [getattr(settings.parallel.mesh, axis) for axis in AXES]
    asked = math.prod(size for size in sizes if size is not None and size > 0)
    return asked if MADE_UP_DEVICES % asked and asked <= MOST_MADE_UP else MADE_UP_DEVICES


def layouts(settings: Settings) -> dict[str, dict[str, Any]]:
    """Changes of the settings by the name of a layout: all presets, experts apart, and what is configured."""
    free: dict[str, Any] = {f"parallel.mesh.{axis}": None for axis in AXES}
    # Without experts their preset is FSDP's; what splits heads and positions at once covers positions alone.
    left_out = {"fsdp_sp"} | (set() if settings.model.num_experts else {"fsdp_ep"})
    found = {preset: free | {"parallel.preset": preset} for preset in PRESET_AXES if preset not in left_out}
    if settings.model.num_experts:
        found["dp, expert=2"] = free | {"parallel.preset": "dp", "parallel.mesh.expert": 2}
    asked = {f"parallel.mesh.{axis}": getattr(settings.parallel.mesh, axis) for axis in AXES}
    if any(size is not None for size in asked.values()):
        found["configured"] = asked | {"parallel.preset": settings.parallel.preset}
    return found


def sharded(subject: Subject, devices: int, kind: str) -> Iterator[Finding]:
    """Compares each layout over `devices` with one device."""
    expected = subject.update()
    for name, changes in layouts(subject.settings).items():
        variant = f"{name} on {devices} {kind}"
        try:
            found = subject.update(changes, num_devices=devices, meshed=subject.settings)
        except UserError as error:
            yield inapplicable(SHARDED, str(error), variant)
            continue
        yield compared(SHARDED, variant, found, expected, subject.tolerance)


class Elsewhere:
    """The same in a process of its own, whose CPU is made up to be several devices; it runs beside this one."""

    def __init__(self, settings: Settings):
        """Starts the process."""
        count = made_up_devices(settings)
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
        paths = [str(Path(research.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}
        environment |= {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        if cache := jax.config.values["jax_compilation_cache_dir"]:
            environment |= {"JAX_COMPILATION_CACHE_DIR": cache}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "research.doctor.sharding"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._record = json.dumps(config.to_record(settings))
        assert self._process.stdin is not None
        self._process.stdin.write(self._record)
        self._process.stdin.close()

    def findings(self) -> Iterator[Finding]:
        """Waits for it.

        Raises:
          RuntimeError: it failed, with what it wrote.
        """
        assert self._process.stdout is not None and self._process.stderr is not None
        written, errors = self._process.stdout.read(), self._process.stderr.read()
        if self._process.wait() != 0:
            raise RuntimeError(f"the process that examines several devices failed:\n{errors}")
        yield from (Finding(**row) for row in json.loads(written.splitlines()[-1]))

    def stop(self) -> None:
        """Ends it, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()


def main() -> None:
    """Reads a record of settings, writes findings."""
    settings = config.from_record(json.loads(sys.stdin.read()))
    subject = Subject(settings)
    try:
        with jax.default_matmul_precision("highest"):
            found = [finding.__dict__ for finding in sharded(subject, jax.device_count(), "made-up CPUs")]
    finally:
        subject.close()
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()

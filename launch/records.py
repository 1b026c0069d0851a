"""What is kept of a submission: `jobs/*.job.json` of the run or sweep directory, and the environment it was made in."""

import dataclasses
import datetime
import json
import os
import platform
import re
import socket
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from launch.launcher import Handle, Job
from research.errors import UserError

JOBS = "jobs"
# Variables that change what JAX, XLA, the collectives or Isoflop do.
_PREFIXES = ("JAX_", "XLA_", "NCCL_", "LIBTPU_", "TPU_", "MEGASCALE_", "CUDA_", "ISOFLOP_")
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|(?<![A-Z])KEY(?![A-Z])", re.IGNORECASE)


def variables() -> dict[str, str]:
    """The variables of this process that a job should see too; none that names a secret."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(_PREFIXES) and not _SECRET.search(name)
    }


def environment(commit: str) -> dict[str, Any]:
    """Where a submission comes from: commit (`+changes` where files differ from it), host, Python, every installed
    distribution with its version, and the variables that change a run."""
    installed = {found.metadata["Name"]: found.version for found in metadata.distributions()}
    return {
        "commit": commit,
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": dict(sorted(installed.items(), key=lambda item: item[0].lower())),
        "variables": variables(),
    }


def write(jobs: Sequence[Job], handles: Sequence[Handle], facts: dict[str, Any]) -> list[Path]:
    """One record a job: its handle, what was asked for, `facts` of the environment, and the time (UTC).

    Raises:
      UserError: the directory cannot be written to.
    """
    paths = []
    for job, handle in zip(jobs, handles, strict=True):
        path = job.workdir / JOBS / f"{handle.launcher}-{re.sub(r'[^A-Za-z0-9_.-]', '-', handle.id)}.job.json"
        asked = dataclasses.asdict(job) | {"workdir": str(job.workdir), "environment": dict(job.environment)}
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        record = {"handle": handle.to_record(), "job": asked, "submitted": now, "environment": facts}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}.partial")
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}), but {handle.name} was submitted as {handle.id}: "
                "make room, and cancel it by hand if it is not wanted"
            ) from error
        paths.append(path)
    return paths


def read(workdir: Path) -> list[Handle]:
    """Handles of the jobs of a directory, in the order of their submission.

    Raises:
      UserError: a record is damaged.
    """
    found = []
    for path in (workdir / JOBS).glob("*.job.json"):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            found.append((record["submitted"], path.name, Handle.from_record(record["handle"])))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): delete it, or restore it") from error
    return [handle for _, _, handle in sorted(found, key=lambda item: item[:2])]

"""One real SLURM for the tests of a process, and commands that it runs."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch import Handle, Status
from launch.slurm import Slurm
from tests.integration.conftest import corpus  # noqa: F401
from tests.slurm.cluster import UnavailableError, started

DEADLINE = 1200.0  # seconds that a job may take on a machine that does much else


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two nodes that SLURM's commands find; a test is skipped where they cannot be had."""
    # What is strict for tests is not set where users start their runs.
    strict = ("JAX_NUMPY_DTYPE_PROMOTION", "JAX_NUMPY_RANK_PROMOTION")
    before = dict(os.environ)
    try:
        with started() as environment:
            os.environ.update(environment)
            for name in strict:
                os.environ.pop(name, None)
            yield
    except UnavailableError as reason:
        pytest.skip(str(reason))
    finally:
        os.environ.clear()
        os.environ.update(before)


def wait(handle: Handle, until: Callable[[Status], bool]) -> Status:
    """The first status that is what a test waits for; with what the job wrote where it comes to another end."""
    slurm, end = Slurm(), time.monotonic() + DEADLINE
    while not until(now := slurm.status(handle)):
        assert not now.ended and time.monotonic() < end, "\n".join([str(now), *slurm.logs(handle)])
        time.sleep(0.3)
    return now


def ended(handle: Handle) -> Status:
    """How a job ends."""
    return wait(handle, lambda status: status.ended)


def has_rows(path: Path, rows: int) -> bool:
    """Whether a run has come that far."""
    return path.exists() and len(path.read_bytes().splitlines()) >= rows


def requeue(handle: Handle) -> None:
    """What an operator does, and SLURM itself when it takes a job's nodes away."""
    subprocess.run(["scontrol", "requeue", handle.id], check=True)

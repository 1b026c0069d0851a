"""Where a command runs: what a launcher is given, what it gives back, and what holds for all of them.

A launcher starts commands and asks after them; it knows queues, not models. What it starts is `isoflop train` or a
worker of a sweep, which resume by themselves: starting the same command again is always right.
"""

import abc
import dataclasses
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from research.errors import UserError

STATES = ("queued", "running", "done", "failed", "cancelled", "preempted", "unknown")
ENDED = ("done", "failed", "cancelled")
# A name that queues, Kubernetes (RFC 1123 labels) and file systems take; room is left for what they add to it.
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a job needs.

    Attributes:
      nodes: machines; of TPUs they follow from `devices`.
      processes_per_node: processes of the run on each machine, which form one cluster with those of the others.
      cores: CPU cores of a process; none: what the queue gives.
      devices: `cpu`, `gpu:8` or `gpu:h100:8` (of a node), or a TPU slice, `v5p:4x4x4`.
      memory_gb: of a node, GB; none: what the queue gives.
      hours: after which the queue may end the job; none: the queue's own limit.
      slices: TPU slices that train together.
      preemptible: whether cheaper machines do, which may be taken away; the job is started again.
    """

    nodes: int = 1
    processes_per_node: int = 1
    cores: int | None = None
    devices: str = "cpu"
    memory_gb: float | None = None
    hours: float | None = None
    slices: int = 1
    preemptible: bool = False

    @property
    def num_processes(self) -> int:
        """Of the job, where nodes are given by number."""
        return self.nodes * self.processes_per_node

    def check(self) -> None:
        """Raises `UserError` where a number cannot be."""
        for field in ("nodes", "processes_per_node", "cores", "memory_gb", "hours", "slices"):
            value = getattr(self, field)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"--{field.replace('_', '-')}={value}: it has to be more than 0")


@dataclasses.dataclass(frozen=True)
class Job:
    """One command, started once on every process of its resources.

    Attributes:
      name: lower-case letters, digits and hyphens, beginning with a letter, at most 40.
      command: the program and its arguments; no shell reads it.
      workdir: run or sweep directory; records and logs go to its `jobs/`.
      environment: variables beside those that the place itself sets.
      resources: what it needs.
    """

    name: str
    command: tuple[str, ...]
    workdir: Path
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    resources: Resources = dataclasses.field(default_factory=Resources)

    def check(self) -> None:
        """Raises `UserError` where no launcher can take it."""
        if not _NAME.fullmatch(self.name):
            raise UserError(
                f"the job name {self.name!r} does not do: take 1 to 40 lower-case letters, digits and hyphens, "
                "beginning with a letter"
            )
        if not self.command:
            raise UserError(f"the job {self.name} has no command")
        for variable, value in self.environment.items():
            if not _VARIABLE.fullmatch(variable) or "\n" in value or "\0" in value:
                raise UserError(f"the environment variable {variable!r} does not do: a name, =, and one line of text")
        self.resources.check()


@dataclasses.dataclass(frozen=True)
class Handle:
    """A job that was submitted: what asks after it later, from another process.

    Attributes:
      launcher: the name it was submitted under.
      id: of the queue (`123`, `123_4`), the cluster or the process.
      name: of the job.
      workdir: of the job.
      details: what else the launcher needs to find it again, JSON values.
      options: of the launcher, as `submit` fills them in.
    """

    launcher: str
    id: str
    name: str
    workdir: Path
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_record(self) -> dict[str, Any]:
        """As JSON."""
        own = {"workdir": str(self.workdir), "details": dict(self.details), "options": dict(self.options)}
        return dataclasses.asdict(self) | own

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> "Handle":
        """Of JSON."""
        return Handle(**{**record, "workdir": Path(record["workdir"])})


@dataclasses.dataclass(frozen=True)
class Status:
    """Where a job stands.

    Attributes:
      state: one of `STATES`; `preempted`: taken away, and waiting to be started again; `unknown`: nobody knows it.
      reason: in the place's own words, or empty.
    """

    state: str
    reason: str = ""

    def __post_init__(self) -> None:
        assert self.state in STATES, self.state

    @property
    def ended(self) -> bool:
        """Whether it will never run again by itself."""
        return self.state in ENDED


@dataclasses.dataclass(frozen=True)
class Option:
    """One argument of a launcher: `--name`.

    Attributes:
      name: with underscores; the argument has hyphens.
      meaning: for `--help`.
      kind: `str`, `int` or `float`; `bool` is a flag; `tuple` may be given several times.
      default: where it is not given; its one place.
      required: whether there is no sensible default.
    """

    name: str
    meaning: str
    kind: type = str
    default: Any = None
    required: bool = False

    @property
    def flag(self) -> str:
        """As it is typed."""
        return "--" + self.name.replace("_", "-")


# What places that share no files with this machine need alike.
IMAGE = Option("image", "container image that has Isoflop, made by the repository's Dockerfile", required=True)
ROOT = Option("root", "directory there that outlives the jobs, as a mounted volume; runs lie below it", required=True)


class Launcher(abc.ABC):
    """A place that runs jobs. A new one passes `tests/launch/test_launchers.py` by being listed in `LAUNCHERS`.

    Attributes:
      name: what `--on` calls it.
      OPTIONS: the arguments that it takes.
      SHARES_FILES: whether its jobs see the files of this machine under the same paths.
      options: a value for each of `OPTIONS`.
    """

    name: ClassVar[str]
    OPTIONS: ClassVar[tuple[Option, ...]] = ()
    SHARES_FILES: ClassVar[bool] = True

    def __init__(self, **options: Any) -> None:
        known = {option.name: option for option in self.OPTIONS}
        if unknown := sorted(options.keys() - known.keys()):
            raise UserError(f"--{unknown[0].replace('_', '-')} is no option of --on={self.name}: drop it")
        values = {name: options.get(name) for name in known}
        self.options: dict[str, Any] = {
            name: known[name].default if value is None else value for name, value in values.items()
        }
        for option in self.OPTIONS:
            if option.required and self.options[option.name] in (None, ""):
                raise UserError(f"--on={self.name} needs {option.flag}: {option.meaning}")

    @property
    def program(self) -> tuple[str, ...]:
        """What `isoflop` is called there: this environment's own where files are shared, else the image's."""
        return (sys.executable, "-m", "research.cli.main") if self.SHARES_FILES else ("isoflop",)

    def place(self, workdir: Path) -> Path:
        """Where a run or sweep directory is for the jobs: the same path where files are shared, or where it lies below
        the `root` that outlives them; else its last name below that `root`."""
        if self.SHARES_FILES:
            return workdir
        root = Path(self.options["root"])
        return workdir if workdir.is_relative_to(root) else root / workdir.name

    def submit(self, jobs: Sequence[Job]) -> list[Handle]:
        """Starts or queues all jobs, and gives a handle for each in their order.

        Raises:
          UserError: nothing was submitted: a job cannot be, or the place refuses, in its own words.
        """
        self.check(jobs)
        for job in jobs:
            (job.workdir / "jobs").mkdir(parents=True, exist_ok=True)
        options = {name: list(value) if isinstance(value, tuple) else value for name, value in self.options.items()}
        return [dataclasses.replace(handle, options=options) for handle in self._submit(jobs)]

    def check(self, jobs: Sequence[Job]) -> None:
        """What holds before anything is submitted, by `check_job` for each.

        Raises:
          UserError: naming the job and what to change.
        """
        names = [job.name for job in jobs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"two jobs are called {twice[0]}: names differ within one submission")
        for job in jobs:
            job.check()
            self.check_job(job)

    def check_job(self, job: Job) -> None:  # noqa: B027 - a place may ask for nothing
        """What this place asks of a job; nothing by default."""

    def statuses(self, handles: Sequence[Handle]) -> list[Status]:
        """Where jobs stand, in their order."""
        return [self.status(handle) for handle in handles]

    @abc.abstractmethod
    def describe(self, jobs: Sequence[Job]) -> str:
        """What would be submitted, as text to read: a script, a YAML file, commands. Starts nothing."""

    @abc.abstractmethod
    def _submit(self, jobs: Sequence[Job]) -> list[Handle]:
        """Submits jobs that were checked; their `workdir/jobs` exist."""

    @abc.abstractmethod
    def status(self, handle: Handle) -> Status:
        """Where a job stands now."""

    @abc.abstractmethod
    def cancel(self, handle: Handle) -> None:
        """Ends a job, running or not; one that has ended already is left alone."""

    @abc.abstractmethod
    def logs(self, handle: Handle) -> Iterator[str]:
        """The lines that the job has written so far, without line ends."""

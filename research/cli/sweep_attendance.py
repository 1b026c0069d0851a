"""Starting workers, and staying with those of this machine until all cells have ended."""

import argparse
import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console, Group
from rich.live import Live

import launch
from launch import Handle, Job, Launcher, records
from research.checkpoint import RunLock
from research.cli import sweep_tables, sweep_verbs
from research.cli.arguments import Result
from research.cli.launch import asked_environment, asked_resources, submitted
from research.errors import UserError
from research.sweeps.folder import Folder
from research.sweeps.ledger import DONE, FAILED, PENDING, RUNNING, Ledger

LOCK = "launcher.lock"
LOOKS_EVERY = 1.0  # seconds
# Workers in a row that ended without having taken a cell.
FRUITLESS = 3


def attend(folder: Folder, launcher: Launcher, options: argparse.Namespace, workers: int, shown: Console) -> Result:
    """Starts as many workers as there is work for; those of this machine are stayed with, started again, reported.

    Returns:
      Exit status 0 where all cells are done, 1 where some are not, 128 + n after signal n.
    """
    with RunLock(folder.directory, name=LOCK, patient=False, on_event=lambda kind, fields: None):
        if launcher.name != "local":
            return _submit(folder, launcher, options, workers, shown)
        try:
            with _interruptible(), _display(folder, shown) as display:
                _Attendance(folder, launcher, options, workers).run(display)
        except KeyboardInterrupt:
            _end(folder, launcher)
            shown.print(f"interrupted: the same command goes on; isoflop sweep status {folder.directory}")
            return 128 + signal.SIGINT, {"workdir": str(folder.directory), "signal": signal.SIGINT}
    return finish(folder, shown)


def finish(folder: Folder, shown: Console) -> Result:
    """The report, and what is said at the end."""
    result = sweep_verbs.write(folder, shown)
    states = [one["state"] for one in result["cells"]]
    for one in result["cells"]:
        if one["state"] == FAILED:
            shown.print(f"failed: {one['name']} ({one['id']}): {one['reason']}", markup=False, soft_wrap=True)
    return (0 if all(state == DONE for state in states) else 1), result


def job(launcher: Launcher, options: argparse.Namespace, directory: Path, name: str) -> Job:
    """A worker of the sweep, as a job."""
    command = [*launcher.program, "sweep", "work", str(launcher.place(directory)), f"--job={name}"]
    if options.any_commit:
        command.append("--any-commit")
    if options.pack > 1:
        command.append(f"--pack={options.pack}")
    return Job(name, tuple(command), directory, asked_environment(options), asked_resources(options))


def living(folder: Folder) -> list[Handle]:
    """Jobs of the sweep that have not ended."""
    found = []
    for handle in records.read(folder.directory):
        with contextlib.suppress(UserError):  # a place that does not answer now
            if not launch.of(handle).status(handle).ended:
                found.append(handle)
    return found


def _next_names(folder: Folder, count: int) -> list[str]:
    numbers = [int(path.stem.rpartition("-")[2]) for path in (folder.directory / "jobs").glob("names/sweep-*.name")]
    place = folder.directory / "jobs" / "names"
    place.mkdir(parents=True, exist_ok=True)
    names = [f"sweep-{number}" for number in range(max(numbers, default=0) + 1, max(numbers, default=0) + 1 + count)]
    for name in names:
        (place / f"{name}.name").touch()
    return names


def _start(folder: Folder, launcher: Launcher, options: argparse.Namespace, count: int) -> list[Handle]:
    jobs = [job(launcher, options, folder.directory, name) for name in _next_names(folder, count)]
    return submitted(launcher, jobs)


def _submit(folder: Folder, launcher: Launcher, options: argparse.Namespace, workers: int, shown: Console) -> Result:
    """Submits what is missing, and leaves: the queue looks after it."""
    ledger = Ledger(folder.directory)
    left = [cell for cell in folder.cells if ledger.seen(cell.id)["state"] in (PENDING, RUNNING)]
    there = living(folder)
    missing = min(workers, len(left)) - len(there)
    handles = _start(folder, launcher, options, missing) if missing > 0 else []
    for handle in handles:
        shown.print(f"submitted {handle.name} as {handle.id} of {launcher.name}", markup=False)
    if there:
        shown.print(f"{len(there)} jobs of this sweep are there already")
    if not left:
        shown.print("all cells have ended")
    shown.print(f"isoflop sweep status {folder.directory} says where it stands", soft_wrap=True)
    return 0, {"workdir": str(folder.directory), "submitted": [handle.to_record() for handle in handles]}


class _Attendance:
    """The workers of this machine, while there is work for them."""

    def __init__(self, folder: Folder, launcher: Launcher, options: argparse.Namespace, workers: int) -> None:
        self._folder, self._launcher, self._options, self._workers = folder, launcher, options, workers
        self._ledger = Ledger(folder.directory)
        self._handles = living(folder)
        self._attempts, self._fruitless = -1, 0

    def run(self, display: Any) -> None:
        """Until all cells have ended, and all workers."""
        while True:
            states = [self._ledger.seen(cell.id) for cell in self._folder.cells]
            free = sum(state["state"] == PENDING for state in states)
            busy = sum(state["state"] == RUNNING for state in states)
            ended = [handle for handle in self._handles if self._launcher.status(handle).ended]
            # A worker that finds no free cell has nothing to begin: others hold them all, each a pack perhaps.
            self._judge(ended if free else [], sum(len(state["attempts"]) for state in states))
            self._handles = [handle for handle in self._handles if handle not in ended]
            if not free and not self._handles:
                return
            missing = min(self._workers, free + busy) - len(self._handles)
            if free and missing > 0:
                self._handles += _start(self._folder, self._launcher, self._options, missing)
            display()
            time.sleep(LOOKS_EVERY)

    def _judge(self, ended: Sequence[Handle], attempts: int) -> None:
        """Raises `UserError` where workers end again and again without having begun a cell."""
        if attempts != self._attempts:
            self._attempts, self._fruitless = attempts, 0
        self._fruitless += len(ended)
        if ended and self._fruitless >= FRUITLESS:
            last = [line for line in self._launcher.logs(ended[-1]) if line.strip()][-1:]
            said = f" ({last[0].strip()})" if last else ""
            raise UserError(
                f"{self._fruitless} workers ended without beginning a cell{said}: see "
                f"{self._folder.directory / 'jobs' / ended[-1].name}.log"
            )


def _end(folder: Folder, launcher: Launcher) -> None:
    """Lets all workers save and leave, and waits for them."""
    handles = living(folder)
    for handle in handles:
        launcher.cancel(handle)
    until = time.monotonic() + 75.0
    while time.monotonic() < until and not all(launcher.status(handle).ended for handle in handles):
        time.sleep(0.2)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM as Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _display(folder: Folder, shown: Console) -> Iterator[Any]:
    """A live table on a terminal; elsewhere a line whenever a cell changes its state."""
    known: dict[str, str] = {}

    def group() -> Group:
        found = sweep_tables.statuses(folder)
        return Group(sweep_tables.status_table(found), sweep_tables.summary_line(folder, found))

    def lines() -> None:
        for one in sweep_tables.statuses(folder):
            if known.get(one["id"], PENDING) != one["state"]:
                result = "" if one["bits_per_byte"] is None else f"  {one['bits_per_byte']:.4f} bits per byte"
                shown.print(f"{one['state']:<9} {one['id']}  {one['name']}{result}", markup=False, soft_wrap=True)
            known[one["id"]] = one["state"]

    if shown.is_terminal and not shown.is_dumb_terminal:
        with Live(group(), console=shown, refresh_per_second=2, transient=True) as live:
            yield lambda: live.update(group())
        shown.print(group())
    else:
        yield lines
        lines()

"""This machine: processes of their own, so many at a time, each on cores and devices of its own.

A job waits for a free place, and outlives whoever submitted it: its guard (this module, run as a program) holds the
place, starts the command on the place's cores, and writes down how it ended. A place is a lock on a file, so that no
one has to be alive for the next job to begin.
"""

import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from launch.launcher import Handle, Job, Launcher, Option, Status
from research.errors import UserError

_POLL = 0.2  # seconds
_GRACE = 60.0  # seconds from asking a job to end to making it


class Local(Launcher):
    """Processes on this machine; logs and records in `jobs/` of the job's directory."""

    name = "local"
    OPTIONS = (
        Option("parallel", "jobs that run at a time; further ones wait for a place", int, 1),
        Option("gpus", "GPUs that the places share, for jobs that want some: 0,1,2,3; none: all there are", str),
    )

    def check_job(self, job: Job) -> None:
        """One process, no more cores or GPUs than a place has.

        Raises:
          UserError: naming what there is.
        """
        if self.options["parallel"] < 1:
            raise UserError(f"--parallel={self.options['parallel']}: at least one job runs at a time")
        needs = job.resources
        if needs.num_processes > 1:
            raise UserError(f"the job {job.name} wants {needs.num_processes} processes: --on=local starts one a job")
        cores = _cores()
        if (needs.cores or 1) * self.options["parallel"] > len(cores) and needs.cores is not None:
            raise UserError(
                f"--cores={needs.cores} for --parallel={self.options['parallel']} jobs is more than the {len(cores)} "
                "cores of this machine: lower one of them"
            )
        kind, count = _devices(needs.devices)
        if kind == "gpu" and count * self.options["parallel"] > len(self._gpus()):
            raise UserError(
                f"--devices={needs.devices} for --parallel={self.options['parallel']} jobs is more than the "
                f"{len(self._gpus())} GPUs of this machine: lower one of them"
            )
        if kind not in ("cpu", "gpu") and self.options["parallel"] > 1:
            raise UserError(f"--devices={needs.devices} is one place: set --parallel=1")

    def describe(self, jobs: Sequence[Job]) -> str:
        """The commands, with the cores of each place."""
        lines = [f"# {self.options['parallel']} at a time"]
        for number, place in enumerate(self._places(jobs)):
            shown = " ".join(f"{name}={value}" for name, value in place["environment"].items())
            lines.append(f"# place {number}: cores {','.join(map(str, place['cores']))} {shown}".rstrip())
        return "\n".join([*lines, *(shlex.join(job.command) for job in jobs)]) + "\n"

    def _submit(self, jobs: Sequence[Job]) -> list[Handle]:
        handles = []
        for job in jobs:
            record = job.workdir / "jobs" / "guards" / f"{job.name}.json"
            record.parent.mkdir(parents=True, exist_ok=True)
            content = {
                "command": list(job.command),
                "environment": dict(job.environment),
                "places": self._places([job]),
                "locks": str(self._locks(job)),
            }
            _cancelled(record).unlink(missing_ok=True)
            _write(record, content)
            with open(job.workdir / "jobs" / f"{job.name}.log", "ab") as log:
                guard = subprocess.Popen(
                    [sys.executable, "-m", "launch.local", str(record)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # a Ctrl-C is for who submitted it
                )
            details = {"started": started(guard.pid), "record": str(record)}
            handles.append(Handle(self.name, str(guard.pid), job.name, job.workdir, details))
            guard.returncode = 0  # nobody waits for it, and it says itself how it ended
        return handles

    def status(self, handle: Handle) -> Status:
        """By the guard's process and by what it wrote down."""
        with contextlib.suppress(ChildProcessError):  # one of this process is taken from the table of processes
            os.waitpid(int(handle.id), os.WNOHANG)
        path = Path(handle.details["record"])
        record, asked = _read(path), _cancelled(path).exists()
        alive = started(int(handle.id)) == handle.details["started"] and handle.details["started"] is not None
        status = record.get("status")
        if status is None and not alive:
            killed = Status("failed", "it was killed, and so was who would have written down why")
            return Status("cancelled") if asked else killed
        if status is None:
            return Status("running" if record.get("pid") else "queued")
        if status == 0 and record.get("pid"):
            return Status("done")
        if asked:
            return Status("cancelled")
        return Status("failed", f"killed by signal {-status}" if status < 0 else f"exit status {status}")

    def cancel(self, handle: Handle) -> None:
        """Asks the job to end (SIGTERM), which saves and leaves; makes it end a minute later."""
        if not self.status(handle).ended:
            _cancelled(Path(handle.details["record"])).touch()
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(handle.id), signal.SIGTERM)

    def logs(self, handle: Handle) -> Iterator[str]:
        """Lines of standard output and error."""
        path = Path(handle.workdir) / "jobs" / f"{handle.name}.log"
        if path.exists():
            with path.open(encoding="utf-8", errors="replace") as file:
                yield from (line.rstrip("\n") for line in file)

    # --- places -------------------------------------------------------------------------------------------------------

    def _places(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        count = self.options["parallel"]
        needs = jobs[0].resources
        cores, gpus = _cores(), self._gpus()
        share = needs.cores or max(1, len(cores) // count)
        kind, wanted = _devices(needs.devices)
        places = []
        for number in range(count):
            own = [cores[(number * share + place) % len(cores)] for place in range(min(share, len(cores)))]
            environment: dict[str, str] = {}
            mine = gpus[number * wanted : (number + 1) * wanted]
            if kind == "cpu" and count > 1:  # nothing was asked for: the places share evenly what there is
                mine = [gpu for place, gpu in enumerate(gpus) if place % count == number % max(1, len(gpus))]
            if mine and (kind == "gpu" or count > 1):
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
            places.append({"cores": sorted(set(own)), "environment": environment})
        return places

    def _locks(self, job: Job) -> Path:
        """Where the locks of the places are: all submissions of a user with as many places share them."""
        return Path(tempfile.gettempdir()) / f"isoflop-places-{os.getuid()}-{self.options['parallel']}"

    def _gpus(self) -> list[str]:
        if self.options["gpus"]:
            return str(self.options["gpus"]).split(",")
        return sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))


def started(pid: int) -> str | None:
    """When a process started, in the system's own words; none where it has ended."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in {"Z", "X"} else fields[19]
    shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip() or None


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _devices(text: str) -> tuple[str, int]:
    """`gpu:2`, `gpu:h100:2` or `cpu` as kind and number."""
    kind, *rest = text.split(":")
    return kind, int(rest[-1]) if rest and rest[-1].isdigit() else 1


def _cancelled(record: Path) -> Path:
    """There while a job is not wanted any more: the signal alone may come before its guard listens."""
    return record.with_suffix(".cancelled")


def _write(path: Path, content: Mapping[str, Any]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


# --- the guard of one job ---------------------------------------------------------------------------------------------


class _Guard:
    """Waits for a place, runs the command there, and writes down how it ended."""

    def __init__(self, record: Path) -> None:
        self._record, self._content = record, _read(record)
        self._child: subprocess.Popen[bytes] | None = None
        self._asked: float | None = None

    def run(self) -> int:
        for asked in (signal.SIGTERM, signal.SIGINT):
            signal.signal(asked, self._ask)
        place = self._place()
        if place is None:
            return self._end(0)
        number, lock = place
        chosen = self._content["places"][number]
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, chosen["cores"])  # the child inherits it
        environment = {**os.environ, **chosen["environment"], **self._content["environment"]}
        # The lock goes with the child as well: where this guard is killed, the place is taken until the child ends.
        self._child = subprocess.Popen(self._content["command"], env=environment, pass_fds=[lock])
        _write(self._record, {**self._content, "pid": self._child.pid, "place": number})
        if self._asked is not None:
            self._child.send_signal(signal.SIGTERM)
        while (status := self._child.poll()) is None:
            time.sleep(_POLL)
            if self._asked is not None and time.monotonic() - self._asked > _GRACE:
                self._child.kill()
        return self._end(status)

    def _place(self) -> tuple[int, int] | None:
        locks = Path(self._content["locks"])
        locks.mkdir(parents=True, exist_ok=True)
        while self._asked is None and not _cancelled(self._record).exists():
            for number in range(len(self._content["places"])):
                lock = os.open(locks / str(number), os.O_RDWR | os.O_CREAT, 0o644)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(lock)
                    continue
                return number, lock
            time.sleep(_POLL)
        return None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._asked = self._asked or time.monotonic()
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)

    def _end(self, status: int) -> int:
        content = _read(self._record)
        _write(self._record, {**content, "status": status})
        return 0


if __name__ == "__main__":
    sys.exit(_Guard(Path(sys.argv[1])).run())

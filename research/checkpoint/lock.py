"""One run directory, one run: the exclusive lock that a killed run leaves stale and its successor takes over."""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from research.checkpoint.restore import log_event
from research.errors import UserError

LOCK_FILE = "run.lock"
RENEWED_EVERY = 5.0  # seconds
LEASE = 60.0  # seconds without renewal after which a holder that cannot be looked at counts as dead


class HeldError(UserError):
    """Another process holds the lock."""


class RunLock:
    """Holds `directory/run.lock` while it is open; in a run of several processes, process 0 does.

    The file names host, pid and start of the process; its modification time is the lease, renewed every five seconds.
    A lock is stale when its process is gone from this machine (or its pid belongs to another process now), or when its
    holder is out of sight (another host, another container) and has not renewed for a minute. The minute is waited for,
    so that a run that is moved to another host starts by itself; a renewal that is seen meanwhile is a refusal.

    A bucket has no locks: there it does nothing but say so. Enter it after `jax.distributed` is started.

    Events: `lock_taken_over` (host, pid, reason), `lock_awaited` and `lock_lost` (host, pid), `lock_unavailable`.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        on_event: Callable[[str, dict[str, Any]], None] = log_event,
        name: str = LOCK_FILE,
        patient: bool = True,
    ) -> None:
        """Names the lock; one that is not `patient` is refused where it would have to wait for the minute."""
        self._bucket = str(directory) if "://" in str(directory) else None
        self._directory = Path(directory).expanduser().absolute()
        self._path = self._directory / name
        self._event, self._patient = on_event, patient
        self._mine = json.dumps(_identity(os.getpid()) | {"token": secrets.token_hex(8)})
        self._released = threading.Event()
        self._lost = False
        self._renewer: threading.Thread | None = None

    def __enter__(self) -> "RunLock":
        """Takes the lock.

        Raises:
          HeldError: another run holds it.
          UserError: the directory cannot be written to.
        """
        if self._bucket is not None:
            self._event("lock_unavailable", {"directory": self._bucket})
        elif jax.process_index() == 0:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                self._acquire()
            except OSError as error:
                raise UserError(
                    f"{self._directory} cannot be written to ({error.strerror or error}): choose another --workdir"
                ) from error
            self._renewer = threading.Thread(target=self._renew, name="run-lock", daemon=True)
            self._renewer.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._renewer is not None:
            self._released.set()
            self._renewer.join()
            with contextlib.suppress(OSError), self._exclusively() as file:
                if file.read() == self._mine:
                    self._path.unlink()

    def check(self) -> None:
        """Raises `UserError` where the lock was lost: this process stood still for so long that another took over."""
        if self._lost:
            raise UserError(f"another run took over {self._directory} while this one stood still: let this one end")

    # --- taking -------------------------------------------------------------------------------------------------------

    def _acquire(self) -> None:
        first_renewal: float | None = None
        while not self._create():
            try:
                text, renewal = self._path.read_text(errors="replace"), self._path.stat().st_mtime
            except FileNotFoundError:
                continue
            holder = _parse(text)
            reason = _why_stale(holder) or ("its lease is over" if self._now() - renewal > LEASE else None)
            if reason is not None:
                if self._take_over(text):
                    self._event("lock_taken_over", {"host": holder["host"], "pid": holder["pid"], "reason": reason})
                    return
            elif not self._patient or _in_sight(holder) or (first_renewal is not None and renewal != first_renewal):
                raise HeldError(
                    f"{self._directory} is in use by process {holder['pid']} on {holder['host']}: "
                    "wait until it ends, or use another --workdir"
                )
            elif first_renewal is None:
                first_renewal = renewal
                self._event("lock_awaited", {"host": holder["host"], "pid": holder["pid"]})
            else:
                time.sleep(0.5)

    def _create(self) -> bool:
        try:
            with self._path.open("x") as file:
                file.write(self._mine)
        except FileExistsError:
            return False
        return True

    def _take_over(self, stale: str) -> bool:
        """Puts this process in the place of a stale holder, unless another did so first."""
        try:
            with self._exclusively() as file:
                if file.read() != stale:
                    return False
                file.seek(0)
                file.write(self._mine)
                file.truncate()
                return True
        except FileNotFoundError:
            return False

    @contextlib.contextmanager
    def _exclusively(self) -> Any:
        """The lock file, open for reading and writing, while no other process has it so."""
        with self._path.open("r+", errors="replace") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_ino != self._path.stat().st_ino:
                raise FileNotFoundError(self._path)
            yield file

    def _now(self) -> float:
        """The time by the clock of the file system, which also dates the renewals."""
        with tempfile.TemporaryFile(dir=self._directory) as file:
            return os.fstat(file.fileno()).st_mtime

    # --- keeping ------------------------------------------------------------------------------------------------------

    def _renew(self) -> None:
        while not self._released.wait(RENEWED_EVERY):
            try:
                text = self._path.read_text(errors="replace")
                if text == self._mine:
                    os.utime(self._path)
            except FileNotFoundError:
                text = ""
            except OSError:  # a file server that is away for a moment: the lease allows for it
                continue
            if text != self._mine:
                self._lost = True
                holder = _parse(text)
                self._event("lock_lost", {"host": holder["host"], "pid": holder["pid"]})
                return


def living_holder(path: Path) -> dict[str, Any] | None:
    """Host and pid of who holds a lock file; none where nobody does, or its holder is dead. Changes nothing."""
    try:
        text, renewal = path.read_text(errors="replace"), path.stat().st_mtime
    except FileNotFoundError:
        return None
    holder = _parse(text)
    # Without a file of one's own the clock of the file system is not known: this one's has to do.
    dead = _why_stale(holder) is not None or (not _in_sight(holder) and time.time() - renewal > LEASE)
    return None if dead else {"host": holder["host"], "pid": holder["pid"]}


def _identity(pid: int) -> dict[str, Any]:
    """What names a process beyond its pid: the machine as far as pids mean something there, and its start."""
    return {"host": socket.gethostname(), "machine": _machine(), "pid": pid, "started": _start(pid)}


def _parse(text: str) -> dict[str, Any]:
    unknown = {"host": "an unknown host", "machine": "", "pid": "of unknown number", "started": ""}
    try:
        content = json.loads(text)
    except ValueError:
        return unknown
    return unknown | content if isinstance(content, dict) else unknown


def _in_sight(holder: dict[str, Any]) -> bool:
    return (holder["host"], holder["machine"]) == (socket.gethostname(), _machine()) and isinstance(holder["pid"], int)


def _why_stale(holder: dict[str, Any]) -> str | None:
    """Why the holder is surely gone, as far as that can be seen from here."""
    if not _in_sight(holder):
        return None
    started = _start(holder["pid"])
    if started is None:
        return "its process has ended"
    return None if started == holder["started"] else "its pid belongs to another process now"


def _machine() -> str:
    """The boot of the machine and the namespace of its pids; empty where the system tells neither."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start(pid: int) -> str | None:
    """When a process started, in the system's own words; `None` where it has ended."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in {"Z", "X"} else fields[19]
    shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip() or None

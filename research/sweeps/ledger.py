"""What became of each cell: one file a cell, and the right to run it.

The right to run a cell is a lock that its holder renews (`research/checkpoint/lock.py`): where the holder is dead, by
its process on this machine, by its lease on another, whoever comes next takes the cell over and closes the attempt that
was left open. A state changes only under the folder's own short lock, by renaming a complete file into place.
"""

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from research.checkpoint import HeldError, RunLock, living_holder
from research.errors import UserError
from research.sweeps.folder import STATES, exclusively, now
from research.train.metrics import write_json

PENDING, RUNNING, DONE, FAILED, CANCELLED = STATUSES = ("pending", "running", "done", "failed", "cancelled")
# Attempts that end without a word (killed, out of memory) are repeated; so many in a row without progress are enough.
MOST_DEATHS = 5

State = dict[str, Any]


class Ledger:
    """The states of a sweep's cells; a cell without a file is pending."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self, cell_id: str) -> State:
        """`{"state": one of STATUSES, "attempts": [...]}`.

        Raises:
          UserError: the file is damaged.
        """
        path = self._path(cell_id)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            assert found["state"] in STATUSES and isinstance(found["attempts"], list)
        except FileNotFoundError:
            return {"state": PENDING, "attempts": []}
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise UserError(f"{path} is damaged: delete it, and the cell goes on from its last checkpoint") from error
        return dict(found)

    def holder(self, cell_id: str) -> dict[str, Any] | None:
        """Host and pid of the living process that runs a cell."""
        return living_holder(self._directory / STATES / _lock_name(cell_id))

    def seen(self, cell_id: str) -> State:
        """The state as it truly is: what is called running and has no living process is pending again, `stale`."""
        state = self.read(cell_id)
        if state["state"] == RUNNING and self.holder(cell_id) is None:
            return {**state, "state": PENDING, "stale": True}
        return state

    # --- running ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def claimed(self, cell_id: str) -> Iterator[bool]:
        """Holds the right to run a cell; false where another process does."""
        lock = RunLock(
            self._directory / STATES, name=_lock_name(cell_id), patient=False, on_event=lambda kind, fields: None
        )
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock)
            except HeldError:
                yield False
            else:
                yield True

    def begin(self, cell_id: str, reached: int, job: str) -> bool:
        """Opens an attempt at a claimed cell, whose run has so many updates; false where it is not to be run."""
        with self._changing(cell_id) as state:
            if any(attempt["ended"] is None for attempt in state["attempts"]):
                # By a process that is dead, or its claim could not have been taken.
                after = PENDING if state["state"] == RUNNING else state["state"]
                self._close(state, after, "died", "its process ended without a word", reached)
                if _deaths(state) >= MOST_DEATHS:
                    state["state"] = FAILED
                    state["attempts"][-1]["reason"] = (
                        f"its process ended without a word {MOST_DEATHS} times in a row before any progress: see the "
                        "logs in jobs/; memory may not suffice"
                    )
            if state["state"] != PENDING:
                return False
            state["state"] = RUNNING
            opened = {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "cores": _cores(),
                "started": now(),
                "ended": None,
            }
            state["attempts"].append({**opened, "status": RUNNING, "reason": None, "job": job, "step": reached})
            return True

    def end(self, cell_id: str, status: str, reason: str | None, reached: int, *, again: bool = False) -> None:
        """Closes the attempt of this process: `done`, `failed` (tried once more where `again`) or `interrupted`."""
        with self._changing(cell_id) as state:
            after = {"done": DONE, "failed": PENDING if again else FAILED, "interrupted": PENDING}[status]
            if state["state"] == CANCELLED and after == PENDING:
                after = CANCELLED
            self._close(state, after, status, reason, reached)

    def died_at_once(self, cell_id: str, reached: int) -> bool:
        """Whether the last attempt at a cell that nobody runs, and whose run has so many updates, died as it began."""
        state = self.read(cell_id)
        for attempt in state["attempts"][state.get("retried_at", 0) :][-1:]:
            if attempt["ended"] is None:
                return bool(reached <= attempt["step"])
            return bool(attempt["status"] == "died" and attempt.get("reached", 0) <= attempt["step"])
        return False

    def pack(self, cell_id: str, count: int) -> None:
        """Notes of the open attempt that so many cells share its process and time."""
        with self._changing(cell_id) as state:
            state["attempts"][-1]["pack"] = count

    def failures(self, cell_id: str) -> int:
        """Failed attempts since a person last asked for the cell."""
        state = self.read(cell_id)
        return sum(one["status"] == "failed" for one in state["attempts"][state.get("retried_at", 0) :])

    # --- by hand ------------------------------------------------------------------------------------------------------

    def cancel(self, cell_id: str) -> bool:
        """Lets a cell not be run, or its process leave it at the next update; false where it has ended."""
        with self._changing(cell_id) as state:
            if state["state"] not in (PENDING, RUNNING):
                return False
            state["state"] = CANCELLED
            return True

    def retry(self, cell_id: str) -> bool:
        """Puts a failed or cancelled cell back; it goes on from its last checkpoint. False for any other."""
        with self._changing(cell_id) as state:
            if state["state"] not in (FAILED, CANCELLED):
                return False
            state["state"], state["retried_at"] = PENDING, len(state["attempts"])
            return True

    def block(self, cell_id: str, reason: str) -> None:
        """Fails a cell that cannot be run, since what it needs has failed."""
        with self._changing(cell_id) as state:
            if state["state"] == PENDING:
                opened = {"host": socket.gethostname(), "pid": os.getpid(), "started": now(), "ended": now()}
                state["attempts"].append({**opened, "status": "blocked", "reason": reason, "job": "", "step": 0})
                state["state"] = FAILED

    # --- files --------------------------------------------------------------------------------------------------------

    def _path(self, cell_id: str) -> Path:
        return self._directory / STATES / f"{cell_id}.json"

    @contextlib.contextmanager
    def _changing(self, cell_id: str) -> Iterator[State]:
        with exclusively(self._directory):
            state = self.read(cell_id)
            before = json.dumps(state)
            yield state
            if json.dumps(state) != before:
                write_json(self._path(cell_id), state)

    @staticmethod
    def _close(state: State, after: str, status: str, reason: str | None, reached: int) -> None:
        state["state"] = after
        for attempt in state["attempts"]:
            if attempt["ended"] is None:
                attempt.update(ended=now(), status=status, reason=reason, reached=reached)


def _cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _deaths(state: Mapping[str, Any]) -> int:
    """Attempts in a row, up to the last, that died where they began."""
    count = 0
    for attempt in reversed(state["attempts"][state.get("retried_at", 0) :]):
        if attempt["status"] != "died" or attempt.get("reached", 0) > attempt["step"]:
            break
        count += 1
    return count


def _lock_name(cell_id: str) -> str:
    return f"{cell_id}.lock"

"""States of cells: who may run one, what an end means, and what is found of the dead."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from research.errors import UserError
from research.sweeps.ledger import CANCELLED, DONE, FAILED, MOST_DEATHS, PENDING, RUNNING, Ledger

CELL = "0123456789"


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    (tmp_path / "state").mkdir()
    return Ledger(tmp_path)


def kill_holder(directory: Path) -> None:
    """Leaves the lock of a process of this machine that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path = directory / "state" / f"{CELL}.lock"
    holder = json.loads(path.read_text())
    path.write_text(json.dumps(holder | {"pid": ended.pid}))


def test_a_cell_is_run_once(ledger: Ledger) -> None:
    assert ledger.read(CELL) == {"state": PENDING, "attempts": []}
    with ledger.claimed(CELL) as mine, ledger.claimed(CELL) as theirs:
        assert mine and not theirs
        assert ledger.begin(CELL, 0, "job")
        assert ledger.seen(CELL)["state"] == RUNNING and ledger.holder(CELL)["pid"] == os.getpid()
        ledger.end(CELL, "done", None, 12)
    with ledger.claimed(CELL) as again:
        assert again and not ledger.begin(CELL, 12, "job")
    (attempt,) = ledger.read(CELL)["attempts"]
    assert ledger.read(CELL)["state"] == DONE and attempt["status"] == "done" and attempt["reached"] == 12
    assert {"host", "pid", "started", "ended", "reason", "job"} <= attempt.keys()


def test_of_many_that_want_a_cell_one_gets_it(ledger: Ledger) -> None:
    taken, together = [], threading.Barrier(8)

    def want() -> None:
        together.wait()
        with ledger.claimed(CELL) as mine:
            if mine and ledger.begin(CELL, 0, "job"):
                taken.append(threading.get_ident())
                ledger.end(CELL, "done", None, 1)

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1 and len(ledger.read(CELL)["attempts"]) == 1


def test_a_dead_process_is_found_and_its_attempt_closed(ledger: Ledger, tmp_path: Path) -> None:
    with ledger.claimed(CELL):
        ledger.begin(CELL, 0, "first")
        assert "stale" not in ledger.seen(CELL)
        kill_holder(tmp_path)
        assert ledger.seen(CELL)["state"] == PENDING and ledger.seen(CELL)["stale"]
        assert ledger.read(CELL)["state"] == RUNNING
    with ledger.claimed(CELL) as mine:
        assert mine and ledger.begin(CELL, 7, "second")
        first, second = ledger.read(CELL)["attempts"]
        assert (first["status"], first["reached"], second["status"], second["step"]) == ("died", 7, "running", 7)


def test_deaths_without_progress_are_counted(ledger: Ledger) -> None:
    for death in range(MOST_DEATHS):
        assert ledger.begin(CELL, 5, "job"), death
    assert not ledger.begin(CELL, 5, "job")
    state = ledger.read(CELL)
    assert state["state"] == FAILED and "without a word" in state["attempts"][-1]["reason"]
    assert ledger.retry(CELL) and ledger.begin(CELL, 5, "job")


def test_deaths_with_progress_are_not(ledger: Ledger) -> None:
    for step in range(2 * MOST_DEATHS):
        assert ledger.begin(CELL, step, "job")


def test_failures_are_tried_again_where_it_helps(ledger: Ledger) -> None:
    ledger.begin(CELL, 0, "job")
    ledger.end(CELL, "failed", "out of luck", 3, again=True)
    assert ledger.read(CELL)["state"] == PENDING and ledger.failures(CELL) == 1
    ledger.begin(CELL, 3, "job")
    ledger.end(CELL, "failed", "out of luck", 3)
    assert ledger.read(CELL)["state"] == FAILED and ledger.failures(CELL) == 2
    assert not ledger.begin(CELL, 3, "job") and not ledger.cancel(CELL)
    assert ledger.retry(CELL) and ledger.failures(CELL) == 0 and not ledger.retry(CELL)


def test_cancelled_while_it_runs(ledger: Ledger) -> None:
    ledger.begin(CELL, 0, "job")
    assert ledger.cancel(CELL) and ledger.read(CELL)["state"] == CANCELLED
    ledger.end(CELL, "interrupted", "signal 15", 4)
    assert ledger.read(CELL)["state"] == CANCELLED and not ledger.begin(CELL, 4, "job")
    assert ledger.retry(CELL) and ledger.begin(CELL, 4, "job")
    ledger.cancel(CELL)
    ledger.end(CELL, "done", None, 9)  # the signal came too late
    assert ledger.read(CELL)["state"] == DONE


def test_interrupted_and_blocked(ledger: Ledger) -> None:
    ledger.begin(CELL, 0, "job")
    ledger.end(CELL, "interrupted", "signal 15", 4)
    assert ledger.read(CELL)["state"] == PENDING
    ledger.block(CELL, "its trunk failed")
    assert ledger.read(CELL)["state"] == FAILED and ledger.read(CELL)["attempts"][-1]["status"] == "blocked"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "asleep", "attempts": []}', '{"state": "done"}'])
def test_a_damaged_state_is_named(ledger: Ledger, tmp_path: Path, text: str) -> None:
    (tmp_path / "state" / f"{CELL}.json").write_text(text)
    with pytest.raises(UserError, match=f"{CELL}.json is damaged"):
        ledger.read(CELL)

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from research.checkpoint import RunLock, lock
from research.errors import UserError

HOLDER = """
import sys, time
from research.checkpoint import RunLock
with RunLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def write(directory, age: float = 0.0, **changed) -> None:
    """The lock file of a process like this one, but for what is changed; its last renewal is `age` seconds ago."""
    file = directory / lock.LOCK_FILE
    file.write_text(json.dumps(lock._identity(os.getpid()) | {"token": "other"} | changed))
    os.utime(file, (time.time() - age,) * 2)


def start_holder(directory) -> subprocess.Popen:
    child = subprocess.Popen([sys.executable, "-c", HOLDER, str(directory)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    child.stdout.close()
    return child


def test_two_processes_and_kill_9(tmp_path, events):
    child = start_holder(tmp_path)
    try:
        with pytest.raises(UserError, match=f"in use by process {child.pid} on {os.uname().nodename}:"):
            RunLock(tmp_path, on_event=events).__enter__()
        assert events == []
        child.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, but still in the table of processes
        with RunLock(tmp_path, on_event=events):
            assert events.of("lock_taken_over") == [
                {"host": os.uname().nodename, "pid": child.pid, "reason": "its process has ended"}
            ]
            with pytest.raises(UserError, match=f"in use by process {os.getpid()} "):
                RunLock(tmp_path).__enter__()
    finally:
        child.kill()
        child.wait()
    assert list(tmp_path.iterdir()) == []
    with RunLock(tmp_path / "new", on_event=events), RunLock(tmp_path / "other"):
        pass
    assert len(events) == 1


def test_a_pid_that_belongs_to_another_process_now(tmp_path, events):
    write(tmp_path, started="1")
    with RunLock(tmp_path, on_event=events):
        assert events.of("lock_taken_over")[0]["reason"] == "its pid belongs to another process now"


@pytest.mark.parametrize("changed", [{"host": "elsewhere"}, {"machine": "another boot or container"}])
def test_a_lease_of_elsewhere_that_is_over(tmp_path, events, changed):
    write(tmp_path, age=lock.LEASE + 5, **changed)
    with RunLock(tmp_path, on_event=events):
        assert events.of("lock_taken_over")[0]["reason"] == "its lease is over"


def test_a_lease_of_elsewhere_that_runs_out_is_waited_for(tmp_path, events):
    write(tmp_path, age=lock.LEASE - 1, host="elsewhere", pid=12)
    with RunLock(tmp_path, on_event=events):
        assert [kind for kind, _ in events] == ["lock_awaited", "lock_taken_over"]


def test_a_lease_of_elsewhere_that_is_renewed_is_refused(tmp_path, events):
    write(tmp_path, age=30, host="elsewhere", pid=12)
    renewal = threading.Timer(0.7, os.utime, [tmp_path / lock.LOCK_FILE])
    renewal.start()
    with pytest.raises(UserError, match="in use by process 12 on elsewhere"):
        RunLock(tmp_path, on_event=events).__enter__()
    renewal.join()


def test_a_lock_file_that_cannot_be_read(tmp_path, events):
    write(tmp_path)
    (tmp_path / lock.LOCK_FILE).write_bytes(b"\xff\0{")
    os.utime(tmp_path / lock.LOCK_FILE, (0, 0))
    with RunLock(tmp_path, on_event=events):
        assert events.of("lock_taken_over")


@pytest.mark.parametrize("round", range(5))
def test_one_of_many_takes_a_stale_lock(tmp_path, events, round):
    write(tmp_path, started="1")
    locks, outcomes = [RunLock(tmp_path, on_event=events) for _ in range(8)], []
    barrier = threading.Barrier(len(locks))

    def take(one: RunLock) -> None:
        barrier.wait()
        try:
            one.__enter__()
            outcomes.append("taken")
        except UserError:
            outcomes.append("refused")

    threads = [threading.Thread(target=take, args=[one]) for one in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 7 + ["taken"] and len(events.of("lock_taken_over")) == 1
    for one in locks:
        one.__exit__()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_renewed_and_its_loss_is_told(tmp_path, events, monkeypatch):
    monkeypatch.setattr(lock, "RENEWED_EVERY", 0.02)
    lost = threading.Event()

    def receive(kind: str, fields: dict) -> None:
        events(kind, fields)
        lost.set()

    with RunLock(tmp_path, on_event=receive) as held:
        file = tmp_path / lock.LOCK_FILE
        os.utime(file, (0, 0))
        while file.stat().st_mtime == 0:
            time.sleep(0.01)
        held.check()
        write(tmp_path, host="elsewhere", pid=12)
        assert lost.wait(30)
        with pytest.raises(UserError, match="another run took over"):
            held.check()
    assert events == [("lock_lost", {"host": "elsewhere", "pid": 12})]
    assert file.exists()  # it is the other run's


def test_a_directory_that_cannot_be_written_to(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to .*: choose another --workdir"):
        RunLock(tmp_path / "run").__enter__()


def test_a_bucket_has_no_lock(events):
    with RunLock("gs://bucket/run", on_event=events) as held:
        held.check()
    assert events == [("lock_unavailable", {"directory": "gs://bucket/run"})]

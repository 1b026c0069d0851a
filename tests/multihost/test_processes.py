"""Two real processes that form one JAX cluster train what one process trains."""

import json
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.conftest import arguments, corpus, losses, start  # noqa: F401

pytestmark = pytest.mark.multihost

FSDP = {"parallel__preset": "fsdp", "train__num_steps": 10, "train__checkpoint_every": 5, "train__evaluate_every": 5}


def together(workdir: Path, data: Path, changes: list[dict]) -> list[subprocess.Popen[str]]:
    """Starts one process for each of the changes, two devices each, as one cluster."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    cluster = {"parallel__coordinator_address": address, "parallel__num_processes": len(changes)}
    return [
        start(arguments(workdir, data, **FSDP | cluster | {"parallel__process_id": number} | change), devices=2)
        for number, change in enumerate(changes)
    ]


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit status and errors of each."""
    errors = [process.communicate(timeout=500)[1] for process in processes]
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


def test_two_processes_train_what_one_does(corpus: Path, tmp_path: Path) -> None:  # noqa: F811
    alone = start(arguments(tmp_path / "one", corpus, **FSDP), devices=4)
    _, errors = alone.communicate(timeout=500)
    assert alone.returncode == 0, errors
    for status, error in ends(together(tmp_path / "two", corpus, [{}, {}])):
        assert status == 0, error
    # Gloo adds in another order than the sum within a process.
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    found = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two")]
    assert found[0]["heldout_loss"] == pytest.approx(found[1]["heldout_loss"], rel=1e-6)
    # What two processes saved, one restores.
    again = start([*arguments(tmp_path / "two", corpus, **FSDP), "--json"], devices=1)
    output, errors = again.communicate(timeout=500)
    assert again.returncode == 0, errors
    assert json.loads(output.splitlines()[-1])["heldout_loss"] == pytest.approx(found[0]["heldout_loss"], rel=1e-6)


def test_hosts_that_disagree_stop_before_compiling(corpus: Path, tmp_path: Path) -> None:  # noqa: F811
    for status, error in ends(together(tmp_path / "run", corpus, [{}, {"optimizer__learning_rate": 0.5}])):
        assert status == 2
        assert "do not agree on the settings" in error, error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    logs = sorted((tmp_path / "run" / "logs").iterdir())
    assert len(logs) == 2 and all("do not agree" in log.read_text() for log in logs)


def test_sigterm_on_one_host_saves_on_all(corpus: Path, tmp_path: Path) -> None:  # noqa: F811
    workdir, long = tmp_path / "run", {"train__num_steps": 2000, "train__checkpoint_every": 1000}
    processes = together(workdir, corpus, [long, long])
    while not (workdir / "metrics.jsonl").exists() or len((workdir / "metrics.jsonl").read_bytes().splitlines()) < 5:
        assert all(process.poll() is None for process in processes), ends(processes)
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    for status, error in ends(processes):
        assert status == 128 + signal.SIGTERM, error
    reached = len(losses(workdir))
    assert 5 <= reached < 2000
    assert [path.name for path in (workdir / "checkpoints").glob("0*")] == [f"{reached:08d}"]

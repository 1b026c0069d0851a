"""Two real processes that form one JAX cluster train what one process trains."""

import json
import socket
from pathlib import Path

import pytest

from tests.integration.conftest import arguments, corpus, losses, start  # noqa: F401

pytestmark = pytest.mark.multihost

FSDP = {"parallel__preset": "fsdp", "train__num_steps": 10, "train__checkpoint_every": 5, "train__evaluate_every": 5}


def together(workdir: Path, data: Path, changes: list[dict]) -> list[tuple[int, str]]:
    """Runs one process for each of the changes, two devices each; gives exit status and errors of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    cluster = {"parallel__coordinator_address": address, "parallel__num_processes": len(changes)}
    processes = [
        start(arguments(workdir, data, **FSDP, **cluster, parallel__process_id=number, **change), devices=2)
        for number, change in enumerate(changes)
    ]
    errors = [process.communicate(timeout=500)[1] for process in processes]
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


def test_two_processes_train_what_one_does(corpus: Path, tmp_path: Path) -> None:  # noqa: F811
    alone = start(arguments(tmp_path / "one", corpus, **FSDP), devices=4)
    _, errors = alone.communicate(timeout=500)
    assert alone.returncode == 0, errors
    for status, error in together(tmp_path / "two", corpus, [{}, {}]):
        assert status == 0, error
    assert losses(tmp_path / "two") == losses(tmp_path / "one")
    ends = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two")]
    assert ends[0]["heldout_loss"] == pytest.approx(ends[1]["heldout_loss"], rel=1e-6)
    # What two processes saved, one restores.
    again = start([*arguments(tmp_path / "two", corpus, **FSDP), "--json"], devices=1)
    output, errors = again.communicate(timeout=500)
    assert again.returncode == 0, errors
    assert json.loads(output.splitlines()[-1])["heldout_loss"] == pytest.approx(ends[0]["heldout_loss"], rel=1e-6)


def test_hosts_that_disagree_stop_before_compiling(corpus: Path, tmp_path: Path) -> None:  # noqa: F811
    for status, error in together(tmp_path / "run", corpus, [{}, {"optimizer__learning_rate": 0.5}]):
        assert status == 2
        assert "do not agree on the settings" in error, error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    logs = sorted((tmp_path / "run" / "logs").iterdir())
    assert len(logs) == 2 and all("do not agree" in log.read_text() for log in logs)

"""A run that dies goes on as if it had not: real processes, killed at random moments."""

import json
import random
import signal
import time
from pathlib import Path

from research.cli.main import main
from tests.integration.conftest import arguments, losses, start

LENGTH = {"train__num_steps": 60, "train__checkpoint_every": 7, "train__evaluate_every": 20, "data__prefetch": 2}


def progress_of(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def kill_at(argv: list[str], workdir: Path, step: int, number: int) -> int:
    """Starts the command and sends it the signal once `step` rows are written; gives its exit status."""
    process = start(argv)
    while progress_of(workdir) < step and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(number)
    process.communicate(timeout=300)
    return process.returncode


def test_kill_9_at_random_moments_changes_no_loss(corpus: Path, tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    straight = start(arguments(undisturbed, corpus, **LENGTH))
    moments = sorted(random.Random(time.time_ns()).sample(range(2, 58), 2))
    for moment in moments:
        status = kill_at(arguments(killed, corpus, **LENGTH), killed, moment, signal.SIGKILL)
        assert status == -signal.SIGKILL, (status, moments)
    finished = start(arguments(killed, corpus, **LENGTH))
    output, errors = finished.communicate(timeout=300)
    assert finished.returncode == 0, errors
    straight.communicate(timeout=300)
    assert straight.returncode == 0
    assert losses(killed) == losses(undisturbed), moments
    ends = [json.loads((workdir / "summary.json").read_text()) for workdir in (killed, undisturbed)]
    assert ends[0]["heldout_loss"] == ends[1]["heldout_loss"]
    assert "resume" in output or moments[-1] < 7


def test_sigterm_saves_reports_and_resumes(corpus: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    status = kill_at(arguments(workdir, corpus, **LENGTH), workdir, 10, signal.SIGTERM)
    assert status == 128 + signal.SIGTERM
    reached = progress_of(workdir)
    assert 10 <= reached < 60
    assert (workdir / "checkpoints" / f"{reached:08d}").is_dir() and (workdir / "report.html").exists()
    finished = start(arguments(workdir, corpus, **LENGTH))
    _, errors = finished.communicate(timeout=300)
    assert finished.returncode == 0, errors
    assert len(losses(workdir)) == 60
    resumed = [json.loads(line) for line in (workdir / "events.jsonl").read_text().splitlines()]
    assert {"event": "resume", "step": reached}.items() <= next(e for e in resumed if e["event"] == "resume").items()


def test_a_stable_run_can_be_lengthened(corpus: Path, tmp_path: Path) -> None:
    constant = {"optimizer__schedule": "constant", "optimizer__warmup_steps": 2, "model__dropout": 0.0}
    assert main(arguments(tmp_path / "longer", corpus, train__num_steps=6, **constant)) == 0
    assert main(arguments(tmp_path / "longer", corpus, train__num_steps=12, **constant)) == 0
    assert main(arguments(tmp_path / "once", corpus, train__num_steps=12, **constant)) == 0
    assert losses(tmp_path / "longer") == losses(tmp_path / "once")

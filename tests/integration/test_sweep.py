"""Sweeps as a user runs them: real launchers and workers, killed at random moments, and all the ways to be refused."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from research import config
from research.checkpoint import RunLock
from research.cli.main import main
from research.sweeps.folder import open_folder
from research.sweeps.ledger import MOST_DEATHS, Ledger
from tests.integration.conftest import SMALL, losses, rows, start

Refused = Callable[[list[str]], str]
FIELDS = (
    "id", "name", "point", "state", "seed", "step", "num_steps", "parameters", "tokens_seen", "tokens_predicted",
    "model_flops", "required_flops", "train_loss", "heldout_loss", "bits_per_byte", "baseline_bits_per_byte",
    "config_hash", "data_hash", "held_out", "objective",
)  # fmt: skip
FILE = """
from research.sweeps import Sweep, branch, only, over, product, seeds

SHARED = only({shared!r})

def get_sweep():
    points = {points}
    return Sweep(question={question!r}, recipe={recipe!r}, points=points, keep={keep!r}, max_epochs=9.0)
"""
RATES = "over('optimizer.learning_rate', {rates}), seeds({seeds})"


def sweep_file(
    folder: Path, corpus: Path, points: str, *, keep: str = "last", question: str = "which?", **changes: Any
) -> Path:
    shared = SMALL | {"data.path": str(corpus), "evaluate.num_samples": 0}
    shared |= {name.replace("__", "."): value for name, value in changes.items()}
    shared = {name: value for name, value in shared.items() if f"'{name}'" not in points}
    points = points if "SHARED" in points else f"product(SHARED, {points})"
    path = folder / "sweep.py"
    recipe = "configs/causal.py:tiny"
    path.write_text(FILE.format(shared=shared, points=points, question=question, recipe=recipe, keep=keep))
    return path


def run_arguments(file: Path, workdir: Path, *more: str) -> list[str]:
    return ["sweep", "run", str(file), "--on=local", f"--workdir={workdir}", *more]


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, errors = process.communicate(timeout=1500)
    return process.returncode, output + errors


def rows_of(workdir: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((workdir / "rows.json").read_text())["rows"]
    return found


def last_object(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    return found


def worker_pids(workdir: Path) -> list[int]:
    """The processes that run a cell now; not of a cell that died so often that its next death would be its last."""
    ledger, found = Ledger(workdir), []
    for cell in open_folder(workdir).cells:
        holder = ledger.holder(cell.id)
        if holder and len(ledger.read(cell.id)["attempts"]) < MOST_DEATHS - 1:
            found.append(holder["pid"])
    return found


def disturb(argv: list[str], workdir: Path, kills: int) -> list[str]:
    """Runs the command, killing now a worker, now itself (and starting it again), at random moments; the killed."""
    dice, killed = random.Random(time.time_ns()), list[str]()
    process = start(argv)
    while len(killed) < kills:
        time.sleep(dice.uniform(0.2, 2.0))
        if process.poll() is not None:
            break
        if not (workdir / "sweep.json").exists():
            continue
        workers = worker_pids(workdir)
        if workers and len(killed) % 3 != 1:
            victim = dice.choice(workers)
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed.append(f"worker {victim}")
            time.sleep(dice.uniform(0.5, 3.0))
        elif workers:
            process.kill()
            process.communicate()
            killed.append("launcher")
            process = start(argv)
    status, said = finish(process)
    if status != 0:
        status, said = finish(start(argv))
    assert status == 0, said
    return killed


def check_as_undisturbed(corpus: Path, tmp_path: Path, points: str, cells: int, kills: int, **changes: Any) -> None:
    file = sweep_file(tmp_path, corpus, points, **changes)
    one, other = tmp_path / "undisturbed", tmp_path / "disturbed"
    # Another commit in the course of this test is no concern of it.
    status, said = finish(start(run_arguments(file, one, "--any-commit")))
    assert status == 0, said
    killed = disturb(run_arguments(file, other, "--any-commit", "--parallel=1"), other, kills)
    found = {row["id"]: row for row in rows_of(other)}
    assert len(found) == cells
    for row in rows_of(one):
        mine = found[row["id"]]
        assert {name: mine[name] for name in FIELDS} == {name: row[name] for name in FIELDS}, killed
        assert losses(other / "cells" / row["id"]) == losses(one / "cells" / row["id"]), killed
        attempts = Ledger(other).read(row["id"])["attempts"]
        assert [attempt["status"] for attempt in attempts][-1] == "done"
        assert sum(attempt["status"] == "done" for attempt in attempts) == 1
        assert all(attempt["status"] in ("died", "done") for attempt in attempts), attempts
    tried = sum(row["attempts"] for row in found.values())
    assert tried >= cells + (1 if any("worker" in one for one in killed) else 0)
    assert (other / "report.html").exists() and (other / "rows.csv").read_text().count("\n") == cells + 1


def test_kill_9_of_workers_and_launcher_changes_no_row(corpus: Path, tmp_path: Path) -> None:
    points = RATES.format(rates=[1e-3, 4e-3], seeds=2)
    check_as_undisturbed(corpus, tmp_path, points, 4, 3, train__num_steps=40, train__checkpoint_every=6)


@pytest.mark.slow
def test_24_cells_with_many_kills(corpus: Path, tmp_path: Path) -> None:
    points = RATES.format(rates=[1e-3, 2e-3, 3e-3, 4e-3, 6e-3, 8e-3], seeds=4)
    check_as_undisturbed(corpus, tmp_path, points, 24, 14, train__num_steps=60, train__checkpoint_every=7)


@pytest.fixture(scope="module")
def swept(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A sweep of a trunk, two branches and a cell that fails, run in this process by one worker."""
    folder = tmp_path_factory.mktemp("swept")
    points = "branch(SHARED, 'configs/causal.py:tiny', at=[6, 8], cooldown=0.5)"
    stable = {"optimizer__schedule": "wsd", "train__num_steps": 12}
    file = sweep_file(folder, corpus, points, **stable)
    assert main(run_arguments(file, folder / "work", "--dry-run")) == 0
    assert not (folder / "work").exists()
    create(file, folder / "work")
    assert main(["sweep", "work", str(folder / "work")]) == 0
    return file, folder / "work"


def create(file: Path, workdir: Path, *more: str) -> None:
    """Makes the folder of a sweep, and starts no worker."""
    from research.cli import sweep as verb
    from research.cli.main import parser

    options, _ = parser("sweep").parse_known_args(run_arguments(file, workdir, *more))
    cells, refused = verb_cells(file)
    from rich.console import Console

    sweep = verb_sweep(file)
    checked, _ = verb._checked(options, sweep, cells, 1, Console(quiet=True))
    verb._refuse([(one.cell.name, one.problem) for one in checked if one.problem], len(cells), options.skip_refused)
    verb._created(options, sweep, checked, refused)


def verb_sweep(file: Path) -> Any:
    from research.sweeps.sweep import load_sweep

    return load_sweep(file)


def verb_cells(file: Path) -> Any:
    from research.sweeps.sweep import cells_of

    return cells_of(verb_sweep(file))


def test_a_branch_is_the_run_from_the_start(swept: tuple[Path, Path], tmp_path: Path) -> None:
    _, workdir = swept
    folder = open_folder(workdir)
    trunk, *branches = folder.cells
    assert [cell.from_step for cell in branches] == [6, 8]
    for cell in branches:
        record = json.loads((folder.run(cell.id) / "config.json").read_text())
        assert record["provenance"]["branched_from"]["cell"] == trunk.id
        assert record["provenance"]["branched_from"]["step"] == cell.from_step
        assert config.from_record(record) == cell.settings
    alone, cell = tmp_path / "alone", branches[1]
    (tmp_path / "config.json").write_text(json.dumps(config.to_record(cell.settings)))
    assert main(["train", f"--config={tmp_path / 'config.json'}", f"--workdir={alone}"]) == 0
    mine, whole = rows(folder.run(cell.id)), rows(alone)
    kept = ("loss", "learning_rate", "gradient_norm", "tokens_predicted", "model_flops")
    assert [[row[name] for name in kept] for row in mine] == [[row[name] for name in kept] for row in whole]
    ends = [json.loads((run / "summary.json").read_text()) for run in (folder.run(cell.id), alone)]
    assert ends[0]["heldout_loss"] == ends[1]["heldout_loss"]


def test_what_stays_of_checkpoints(swept: tuple[Path, Path]) -> None:
    folder = open_folder(swept[1])
    steps = {
        cell.from_step: sorted(int(path.name) for path in (folder.run(cell.id) / "checkpoints").glob("0*"))
        for cell in folder.cells
    }
    assert {6, 8} <= set(steps[None]) and steps[6] == [9] and steps[8] == [12]


def test_status_report_and_promotion(
    swept: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, workdir = swept
    folder = open_folder(workdir)
    assert main(["sweep", "status", str(workdir), "--json"]) == 0
    found = last_object(capsys)
    assert found["states"]["done"] == 3 and found["seconds_left"] is None
    assert all(cell["step"] == cell["num_steps"] and cell["bits_per_byte"] > 0 for cell in found["cells"])
    assert main(["sweep", "report", str(workdir)]) == 0
    table = (workdir / "rows.csv").read_text().splitlines()
    assert len(table) == 4 and "point.train.num_steps" in table[0]
    recipe = tmp_path / "best.py"
    assert main(["sweep", "promote", str(workdir), folder.cells[1].id[:5], f"--output={recipe}"]) == 0
    promoted = config.to_settings(config.load_recipe(str(recipe)))
    assert config.scientific_hash(promoted) == config.scientific_hash(folder.cells[1].settings)
    assert "held-out bits per byte" in recipe.read_text() and f"--config={recipe} " in recipe.read_text()


def test_a_finished_cell_never_runs_again(swept: tuple[Path, Path]) -> None:
    file, workdir = swept
    before = {path: path.stat().st_mtime_ns for path in sorted(workdir.glob("cells/*/metrics.jsonl"))}
    assert main(["sweep", "work", str(workdir)]) == 0
    assert main(run_arguments(file, workdir)) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert all(row["attempts"] == 1 for row in rows_of(workdir))


def test_seeds_are_added_after_those_that_are_there(
    swept: tuple[Path, Path], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sweep_file(tmp_path, corpus, "seeds(2)")
    create(file, tmp_path / "work")
    assert main(["sweep", "add", str(tmp_path / "work"), "--seeds=2", "--json"]) == 0
    assert len(last_object(capsys)["added"]) == 2
    folder = open_folder(tmp_path / "work")
    assert [cell.settings.seed for cell in folder.cells] == [0, 1, 2, 3]
    assert [cell.name for cell in folder.cells] == [f"seed={seed}" for seed in range(4)]
    assert main(["sweep", "cancel", str(tmp_path / "work")]) == 0
    assert main(run_arguments(file, tmp_path / "work")) == 1  # the added cells are no other sweep; none is done
    assert main(["sweep", "retry", str(tmp_path / "work"), folder.cells[3].id]) == 0
    states = [Ledger(tmp_path / "work").read(cell.id)["state"] for cell in folder.cells]
    assert states == ["cancelled"] * 3 + ["pending"]


def test_a_cell_that_fails_costs_the_others_nothing(corpus: Path, tmp_path: Path) -> None:
    points = "over('optimizer.learning_rate', [1e-3, 1e30])"
    file = sweep_file(tmp_path, corpus, points, optimizer__clip_norm=1e30, train__num_steps=8)
    create(file, tmp_path / "work")
    assert main(["sweep", "work", str(tmp_path / "work")]) == 0
    good, bad = (Ledger(tmp_path / "work").read(cell.id) for cell in open_folder(tmp_path / "work").cells)
    assert (good["state"], bad["state"]) == ("done", "failed")
    assert "the loss of update" in bad["attempts"][-1]["reason"] and len(bad["attempts"]) == 1


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_cells_that_cannot_be_are_refused_before_anything_is_made(
    corpus: Path, tmp_path: Path, refused: Refused
) -> None:
    file = sweep_file(tmp_path, corpus, "over('model.num_heads', [4, 5])")
    said = refused(run_arguments(file, tmp_path / "work"))
    assert "1 of 2 cells" in said and "num_heads=5" in said and "--skip-refused" in said
    file = sweep_file(tmp_path, corpus, "over('data.num_tokens', [10**9, 2000])")
    said = refused(run_arguments(file, tmp_path / "work"))
    assert "data.num_tokens=1000000000" in said
    file = sweep_file(tmp_path, corpus, "over('data.path', ['/nowhere.jsonl'])")
    assert "/nowhere.jsonl" in refused(run_arguments(file, tmp_path / "work"))
    file = sweep_file(tmp_path, corpus, "over('train.num_steps', [10, 10**6])")
    said = refused(run_arguments(file, tmp_path / "work"))
    assert "max_epochs=9" in said and "train.num_steps=1000000" in said
    assert not (tmp_path / "work").exists()
    create(file, tmp_path / "work", "--skip-refused")
    folder = open_folder(tmp_path / "work")
    assert [cell.settings.train.num_steps for cell in folder.cells] == [10]
    assert folder.content["refused"][0]["name"] == "steps=1000000"


def test_a_run_too_large_for_its_chips_is_refused(corpus: Path, tmp_path: Path, refused: Refused) -> None:
    points = "over('model.embed_dim', [32, 32768])"
    file = sweep_file(tmp_path, corpus, points, model__num_layers=16)
    said = refused(run_arguments(file, tmp_path / "work", "--topology=v5e:1x1"))
    assert "1 of 2 cells" in said and "embed=32768" in said and "does not fit" in said


def test_a_folder_of_another_sweep_commit_or_data(
    swept: tuple[Path, Path], corpus: Path, tmp_path: Path, refused: Refused
) -> None:
    _, workdir = swept
    file = sweep_file(tmp_path, corpus, "seeds(2)", question="who?")
    assert "who?" in refused(run_arguments(file, workdir))
    file = sweep_file(tmp_path, corpus, "seeds(2)")
    assert "another sweep file" in refused(run_arguments(file, workdir))
    create(file, tmp_path / "work")
    path = tmp_path / "work" / "sweep.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"commit": "0123456789"}))
    assert "commit 0123456789" in refused(run_arguments(file, tmp_path / "work"))
    assert "commit 0123456789" in refused(["sweep", "work", str(tmp_path / "work")])
    cells = [cell | {"data_hash": "0" * 16} for cell in content["cells"]]
    path.write_text(json.dumps(content | {"cells": cells}))
    assert "other data" in refused(run_arguments(file, tmp_path / "work"))
    path.write_text(json.dumps(content)[:-30])
    assert "sweep.json is damaged" in refused(["sweep", "status", str(tmp_path / "work")])
    assert "no sweep's folder" in refused(["sweep", "status", str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sweep", "run", "nothing.py", "--workdir=w"], ["no sweep file nothing.py"]),
        (["sweep", "run", "nothing.py", "--workdir=gs://bucket/w"], ["bucket"]),
        (["sweep", "run", "nothing.py", "--workdir=w", "--config.seed=1"], ["--config.seed", "sweep file"]),
        (["sweep", "retry", "{w}"], ["--failed"]),
        (["sweep", "cancel", "{w}", "zzz"], ["'zzz'", "status"]),
        (["sweep", "add", "{w}", "--seeds=0"], ["--seeds=0"]),
        (["sweep", "promote", "{w}", "zzz", "--output=x.txt"], ["'zzz'"]),
    ],
)
def test_arguments(swept: tuple[Path, Path], refused: Refused, arguments: list[str], words: list[str]) -> None:
    said = refused([argument.replace("{w}", str(swept[1])) for argument in arguments])
    assert all(word in said for word in words), said


def test_cells_that_differ_in_numbers_compile_once(corpus: Path, tmp_path: Path) -> None:
    shared = sweep_file(tmp_path, corpus, RATES.format(rates=[1e-3, 4e-3], seeds=2), train__num_steps=6)
    create(shared, tmp_path / "work")
    misses: list[str] = []

    def listen(event: str, **_: Any) -> None:
        if event.endswith("/cache_misses"):
            misses.append(event)

    first, *others = open_folder(tmp_path / "work").cells
    assert main(["sweep", "work", str(tmp_path / "work"), f"--cells={first.id}"]) == 0
    jax.monitoring.register_event_listener(listen)
    try:
        assert main(["sweep", "work", str(tmp_path / "work")]) == 0
    finally:
        jax.monitoring.unregister_event_listener(listen)
    assert len(others) == 3 and misses == []


def test_a_cancelled_cell_is_left_and_a_worker_that_is_asked_to_end_saves(corpus: Path, tmp_path: Path) -> None:
    file = sweep_file(tmp_path, corpus, "seeds(2)", train__num_steps=4000, train__checkpoint_every=4000)
    create(file, workdir := tmp_path / "work", "--any-commit")
    one, other = open_folder(workdir).cells
    ledger, worker = Ledger(workdir), start(["sweep", "work", str(workdir)])

    def until_rows(cell_id: str) -> None:
        path = workdir / "cells" / cell_id / "metrics.jsonl"
        while not (path.exists() and path.stat().st_size) and worker.poll() is None:
            time.sleep(0.02)

    until_rows(one.id)
    assert main(["sweep", "cancel", str(workdir), one.id]) == 0
    until_rows(other.id)
    assert ledger.read(one.id)["state"] == "cancelled"
    worker.send_signal(signal.SIGTERM)
    status, said = finish(worker)
    assert status == 128 + signal.SIGTERM, said
    (left,) = ledger.read(other.id)["attempts"]
    assert ledger.read(other.id)["state"] == "pending" and left["status"] == "interrupted"
    assert (workdir / "cells" / other.id / "checkpoints" / f"{left['reached']:08d}").is_dir()


def test_a_second_launcher_is_refused(swept: tuple[Path, Path], refused: Refused) -> None:
    file, workdir = swept
    with RunLock(workdir, name="launcher.lock"):
        said = refused(run_arguments(file, workdir))
    assert "in use by process" in said and str(workdir) in said

"""Runs trained together, whole: each directory is what its run alone would have left."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from research import config
from research.cli.arguments import Result
from research.cli.main import main
from research.cli.train_together import Asked, execute_together
from research.errors import UserError
from research.sweeps.folder import open_folder
from research.sweeps.ledger import DONE, Ledger
from tests.integration.conftest import SMALL, losses, rows
from tests.integration.test_sweep import FIELDS, create, disturb, finish, rows_of, run_arguments, start, sweep_file

MASKED: dict[str, Any] = {"objective.name": "masked", "evaluate.num_samples": 0, "optimizer.clip_norm": 1e30}
MEMBERS: tuple[dict[str, Any], ...] = (
    {},
    {"seed": 5, "optimizer.learning_rate": 4e-3, "optimizer.weight_decay": 0.3, "objective.mask_rate": 0.22},
    {"optimizer.learning_rate": 1e30},
    {"seed": 1, "model.dropout": 0.2},
)
WITHDRAWN_AFTER = 3


def settings_of(corpus: Path, changes: dict[str, Any]) -> Any:
    return config.from_nested({**SMALL, "data.path": str(corpus), **MASKED, **changes})


@pytest.fixture(scope="module")
def packed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Result | UserError]]:
    """Four runs together: two ordinary ones, one that diverges, and one that is withdrawn after some updates."""
    folder = tmp_path_factory.mktemp("packed")
    asked_for: Iterator[int] = iter(range(1, 100))
    leaves = [lambda: False] * 3 + [lambda: next(asked_for) >= WITHDRAWN_AFTER]
    asked = [
        Asked(f"run {number}", settings_of(corpus, changes), folder / str(number), withdrawn=leaves[number])
        for number, changes in enumerate(MEMBERS)
    ]
    return folder, execute_together(asked, Console(quiet=True))


def train_alone(settings: Any, workdir: Path) -> int:
    record = workdir.parent / f"{workdir.name}.json"
    record.write_text(json.dumps(config.to_record(settings)))
    return main(["train", f"--config={record}", f"--workdir={workdir}"])


def events(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "events.jsonl").read_text().splitlines()]


def test_a_member_is_the_run_that_it_is_alone(
    packed: tuple[Path, list[Result | UserError]], corpus: Path, tmp_path: Path
) -> None:
    folder, ends = packed
    number = 1
    end = ends[number]
    assert not isinstance(end, UserError) and end[0] == 0
    mine, alone = folder / str(number), tmp_path / "alone"
    assert train_alone(settings_of(corpus, MEMBERS[number]), alone) == 0
    np.testing.assert_allclose(losses(mine), losses(alone), rtol=0, atol=1e-5)
    for name in ("tokens_seen", "tokens_predicted", "model_flops", "targets"):
        assert [row[name] for row in rows(mine)] == [row[name] for row in rows(alone)]
    summaries = [json.loads((run / "summary.json").read_text()) for run in (mine, alone)]
    assert summaries[0].keys() == summaries[1].keys()
    np.testing.assert_allclose(summaries[0]["heldout_loss"], summaries[1]["heldout_loss"], rtol=0, atol=1e-5)
    assert summaries[0]["baselines"] == summaries[1]["baselines"]
    left = [{str(path.relative_to(run)).split("/")[0] for path in run.rglob("*")} for run in (mine, alone)]
    assert left[0] == left[1]
    steps = [sorted(path.name for path in (run / "checkpoints").glob("0*")) for run in (mine, alone)]
    assert steps[0] == steps[1]


def test_one_that_diverges_ends_no_other(packed: tuple[Path, list[Result | UserError]]) -> None:
    folder, ends = packed
    assert isinstance(ends[2], UserError) and "the loss of update" in str(ends[2])
    assert [event["reason"] for event in events(folder / "2") if event["event"] == "failed"] == [str(ends[2])]
    assert len(losses(folder / "0")) == len(losses(folder / "1")) == 12
    assert (folder / "2" / "report.html").exists() and not (folder / "2" / "summary.json").exists()


def test_one_that_is_withdrawn_is_saved_and_leaves_the_others(packed: tuple[Path, list[Result | UserError]]) -> None:
    folder, ends = packed
    assert ends[3] == (128 + signal.SIGTERM, {"step": WITHDRAWN_AFTER, "signal": signal.SIGTERM})
    assert len(losses(folder / "3")) == WITHDRAWN_AFTER < len(losses(folder / "0"))
    assert (folder / "3" / "checkpoints" / f"{WITHDRAWN_AFTER:08d}" / "commit_success.txt").exists()
    assert events(folder / "3")[-1]["event"] == "interrupted"


@pytest.mark.slow
def test_one_that_has_left_goes_on_alone(
    packed: tuple[Path, list[Result | UserError]], corpus: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(packed[0] / "3", run)
    before = losses(run)
    assert train_alone(settings_of(corpus, MEMBERS[3]), run) == 0
    assert losses(run)[:WITHDRAWN_AFTER] == before and len(losses(run)) == 12
    assert [event["step"] for event in events(run) if event["event"] == "resume"] == [WITHDRAWN_AFTER]
    assert main(["evaluate", f"--workdir={run}"]) == 0


def test_a_sweep_in_packs_that_lost_its_last_checkpoint_goes_on_with_the_same_losses(
    corpus: Path, tmp_path: Path
) -> None:
    file = sweep_file(tmp_path, corpus, "seeds(2)", keep="all")
    work = tmp_path / "work"
    create(file, work)
    assert main(["sweep", "work", str(work), "--pack=2"]) == 0
    cells = open_folder(work).cells
    before = [losses(work / "cells" / cell.id) for cell in cells]
    packs = [event for cell in cells for event in events(work / "cells" / cell.id) if event["event"] == "packed"]
    assert [event["members"] for event in packs] == [2, 2]
    for cell, lost in zip(cells, (["00000012"], ["00000012", "00000010"]), strict=True):
        run = work / "cells" / cell.id
        (run / "summary.json").unlink()
        (work / "state" / f"{cell.id}.json").unlink()
        for name in lost:
            (run / "checkpoints" / name / "commit_success.txt").unlink()
    assert main(["sweep", "work", str(work), "--pack=2"]) == 0
    for cell, old in zip(cells, before, strict=True):
        run = work / "cells" / cell.id
        assert losses(run) == old
        assert [event["step"] for event in events(run) if event["event"] == "resume"] == [5]
        assert Ledger(work).read(cell.id)["state"] == DONE


@pytest.mark.slow
def test_kill_9_of_a_pack_and_of_its_launcher_changes_no_row(corpus: Path, tmp_path: Path) -> None:
    points = "over('optimizer.learning_rate', [1e-3, 4e-3]), seeds(4)"
    file = sweep_file(tmp_path, corpus, points, train__num_steps=60, train__checkpoint_every=6)
    alone, together = tmp_path / "alone", tmp_path / "together"
    status, said = finish(start(run_arguments(file, alone, "--any-commit")))
    assert status == 0, said
    killed = disturb(run_arguments(file, together, "--any-commit", "--pack=4"), together, 4)
    found = {row["id"]: row for row in rows_of(together)}
    measured = ("train_loss", "heldout_loss", "bits_per_byte")
    for row in rows_of(alone):
        mine = found[row["id"]]
        exact = [name for name in FIELDS if name not in measured]
        assert {name: mine[name] for name in exact} == {name: row[name] for name in exact}, killed
        np.testing.assert_allclose([mine[n] for n in measured], [row[n] for n in measured], rtol=1e-3)

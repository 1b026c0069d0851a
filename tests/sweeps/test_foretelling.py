"""What is held out is predicted before it begins, from all that is fitted, once."""

import json
from pathlib import Path
from typing import Any

import pytest

from research.config import scientific_hash
from research.sweeps import Sweep, analysis, foretelling, isoflop, only, over, product, seeds, zipped
from research.sweeps import folder as folders
from research.sweeps.budgets import figures
from research.sweeps.folder import Folder
from research.sweeps.ledger import CANCELLED, DONE, FAILED, Ledger
from research.sweeps.preflight import counts
from research.sweeps.resolve import base_record
from research.sweeps.rows import rows_of
from research.sweeps.sweep import Cell, cells_of
from research.sweeps.worker import Worker
from research.train.metrics import METRICS, SUMMARY

RECIPE = "configs/causal.py:tiny"
LARGEST = 8e11


def make_folder(directory: Path, **fields: Any) -> Folder:
    shared = only({"model.num_layers": 1, "train.batch_size": 2, "tokenizer.vocab_size": 512})
    shapes = zipped(over("model.embed_dim", [8, 16, 32, 64]), over("model.num_heads", [1, 2, 4, 8]))
    sizes = product(shared, shapes, seeds(2))
    points = (*isoflop(sizes[2:4], [LARGEST], RECIPE), *isoflop(sizes, [1e11, 2e11, 4e11], RECIPE))
    steps = {point["train.num_steps"] for point in points[:2]}
    sweep = Sweep("?", RECIPE, points, held_out=lambda point: point["train.num_steps"] in steps, keep="none", **fields)
    cells, _ = cells_of(sweep)
    entries = [folders.described(cell, counts(cell), "data") for cell in cells]
    source = {"sweep": "sweep.py", "sweep_hash": "0"}
    return folders.create(directory, sweep, base_record(RECIPE), entries, [], source, True)


def by_a_law(cell: Cell, run: Path, data_hash: str) -> tuple[int, dict[str, Any]]:
    """What a run leaves whose loss follows N and D."""
    of, steps = figures(cell.settings), cell.settings.train.num_steps
    tokens = steps * of.step_tokens
    loss = 1.0 + (2e3 / of.parameters) ** 0.4 + (2e4 / tokens) ** 0.3 + 1e-3 * cell.settings.seed
    summary = {
        "objective": "causal",
        "step": steps,
        "parameters": of.parameters,
        "non_embedding_parameters": of.non_embedding_parameters,
        "tokens_seen": tokens,
        "model_flops": steps * of.step_flops,
        "heldout_bits_per_byte": loss,
        "config_hash": scientific_hash(cell.settings),
        "data_hash": data_hash,
    }
    run.mkdir(parents=True)
    (run / METRICS).touch()
    (run / SUMMARY).write_text(json.dumps(summary))
    return 0, summary


def test_the_held_out_wait_for_the_prediction(tmp_path: Path) -> None:
    folder, order = make_folder(tmp_path / "sweep"), []
    assert folder.cells[0].held_out

    def train(cell: Cell, run: Path, data_hash: str) -> tuple[int, dict[str, Any]]:
        order.append((cell.held_out, foretelling.foretold(folder)))
        return by_a_law(cell, run, data_hash)

    assert Worker(folder, train).run() == 0
    assert [held for held, _ in order] == [False] * 24 + [True] * 2
    assert [said is None for _, said in order] == [True] * 24 + [False] * 2
    said = foretelling.foretold(folder)
    assert said is not None and said == order[-1][1]
    assert len(said["fitted"]) == 24 and [one["cell"] for one in said["predictions"]] == [
        cell.id for cell in folder.cells if cell.held_out
    ]
    # The same as is found when they have run, but for what was measured.
    later = analysis.answers_of(folder.content, rows_of(folder))["predictions"]
    for before, after in zip(said["predictions"], later, strict=True):
        assert before == {name: after[name] for name in before} and "measured" not in before
        assert after["measured"] == pytest.approx(before["predicted"], rel=0.01)
    # What was once said stays.
    path = folder.directory / foretelling.PREDICTION
    written = path.read_bytes()
    foretelling.foretell(folder)
    assert path.read_bytes() == written


def test_cells_that_failed_are_not_waited_for(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "sweep")
    ledger, fitted = Ledger(folder.directory), [cell for cell in folder.cells if not cell.held_out]
    ledger.cancel(fitted[0].id)

    def train(cell: Cell, run: Path, data_hash: str) -> tuple[int, dict[str, Any]]:
        if cell.id == fitted[1].id:
            raise ValueError("not this one")
        return by_a_law(cell, run, data_hash)

    Worker(folder, train, retries=0).run()
    states = [ledger.read(cell.id)["state"] for cell in fitted[:2]]
    assert states == [CANCELLED, FAILED]
    assert all(ledger.read(cell.id)["state"] == DONE for cell in folder.cells if cell.held_out)
    said = foretelling.foretold(folder)
    assert said is not None and len(said["fitted"]) == 22


def test_a_worker_of_held_out_cells_alone_leaves_them_to_others(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "sweep")
    held = [cell for cell in folder.cells if cell.held_out]
    assert Worker(folder, by_a_law, cells=held).run() == 0
    assert foretelling.foretold(folder) is None
    assert [Ledger(folder.directory).read(cell.id)["attempts"] for cell in held] == [[], []]


def test_where_nothing_is_fitted_nothing_is_waited_for(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "sweep", analyses=())
    held = [cell for cell in folder.cells if cell.held_out]
    assert Worker(folder, by_a_law, cells=held).run() == 0
    assert foretelling.foretold(folder) is None
    assert all(Ledger(folder.directory).read(cell.id)["state"] == DONE for cell in held)

"""Held-out cells are predicted before any of them begins: the prediction stands in a file that is written once.

prediction.json   {"schema": 1, "made", "yardstick", "fitted": [ids], "fits": [...], "predictions": [{"cell",
                  "predicted", "low", "high", "by"}]}, as `answer.json` has them, of the cells that were done then
"""

from collections.abc import Iterable, Mapping
from typing import Any

from research import config
from research.sweeps import analysis
from research.sweeps.budgets import figures
from research.sweeps.folder import Folder, exclusively, now
from research.sweeps.ledger import DONE, PENDING, RUNNING, Ledger
from research.sweeps.rows import Row, rows_of
from research.sweeps.sweep import Cell
from research.train.metrics import write_json

PREDICTION = "prediction.json"
SCHEMA = 1


def may_begin(folder: Folder, ledger: Ledger, cell: Cell) -> bool:
    """Whether nothing that a held-out cell is predicted from is still to be run; the prediction is written then."""
    if not cell.held_out or not {"fit", "isoflop"} & set(folder.content["analyses"]):
        return True
    if (folder.directory / PREDICTION).exists():
        return True
    fitted = [other for other in folder.cells if not other.held_out]
    if any(ledger.seen(other.id)["state"] in (PENDING, RUNNING) for other in fitted):
        return False
    foretell(folder)
    return True


def foretell(folder: Folder) -> None:
    """Writes what the cells that are done say of those that are held out; what was once said stays."""
    yardstick = str(folder.content["yardstick"])
    rows = [row for row in rows_of(folder) if not row["held_out"]]
    wanted = [_unmeasured(cell, yardstick) for cell in folder.cells if cell.held_out]
    found = analysis.answers_of({**folder.content, "baseline": None}, [*rows, *wanted])
    fits = [fit | {"predictions": _said(fit.get("predictions", ()))} for fit in found.get("fits", ())]
    content = {
        "schema": SCHEMA,
        "made": now(),
        "yardstick": yardstick,
        "fitted": [row["id"] for row in rows if row["state"] == DONE],
        "fits": fits,
        "predictions": _said(found.get("predictions", ())),
    }
    with exclusively(folder.directory):
        if not (folder.directory / PREDICTION).exists():
            write_json(folder.directory / PREDICTION, content)


def foretold(folder: Folder) -> dict[str, Any] | None:
    """What was predicted before the held-out cells began; none where nothing was."""
    path = folder.directory / PREDICTION
    return config.read_json(path) if path.exists() else None


def _said(predictions: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Predictions without what was not measured yet."""
    return [{name: value for name, value in one.items() if name not in ("measured", "inside")} for one in predictions]


def _unmeasured(cell: Cell, yardstick: str) -> Row:
    """The row that a cell would have; its figure is any number, since what is held out is not fitted."""
    of, steps = figures(cell.settings), cell.settings.train.num_steps
    return {
        "id": cell.id,
        "name": cell.name,
        "point": dict(cell.point),
        "state": DONE,
        "seed": cell.settings.seed,
        "held_out": True,
        "objective": cell.settings.objective.name,
        "parameters": of.parameters,
        "non_embedding_parameters": of.non_embedding_parameters,
        "tokens_seen": steps * of.step_tokens,
        "model_flops": steps * of.step_flops,
        yardstick: 1.0,
    }

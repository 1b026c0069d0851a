"""One row a cell: what it is, where it stands and what it measured; and the curves behind the rows.

rows.json   {"schema": 1, "question", "recipe", "yardstick", ..., "rows": [...]}
rows.csv    the same rows, keys of points as columns `point.KEY`
"""

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.errors import UserError
from research.sweeps.costs import Costs, seconds_of
from research.sweeps.folder import Folder
from research.sweeps.ledger import DONE, Ledger
from research.sweeps.resolve import FROM_STEP, TRUNK
from research.sweeps.sweep import NOT_STATED, Cell
from research.train import curves
from research.train.metrics import EVENTS, METRICS, SUMMARY, read_events, read_metrics, write_json, write_text

ROWS, TABLE = "rows.json", "rows.csv"
SCHEMA = 1
# Of `summary.json`, as they stand there.
MEASURED = (
    "objective", "step", "parameters", "non_embedding_parameters", "tokens_seen", "tokens_predicted", "model_flops",
    "required_flops", "train_loss", "heldout_loss", "heldout_perplexity", "heldout_accuracy", "baseline_bits_per_byte",
    "baseline_accuracy", "tokens_per_second", "noise_scale_tokens", "noise_scale_low", "noise_scale_high",
    "config_hash", "data_hash", "commit", "versions",
)  # fmt: skip
CURVES = ("step", "tokens_seen", "model_flops", "seconds", "loss")
POINTS = 400
# Of an attempt, as its state file has it.
ATTEMPT = ("status", "reason", "started", "ended", "host", "job", "step", "reached")

Row = dict[str, Any]


def rows_of(folder: Folder) -> list[Row]:
    """A row for each cell, in order; what a cell has not measured (yet) is none."""
    ledger, costs = Ledger(folder.directory), Costs(folder.directory)
    return [row_of(folder, ledger, cell, costs) for cell in folder.cells]


def row_of(folder: Folder, ledger: Ledger, cell: Cell, costs: Costs | None = None) -> Row:
    """Of one cell; figures come from `summary.json`, and only of a cell that is done."""
    state, fact = ledger.seen(cell.id), folder.fact(cell.id)
    summary: Mapping[str, Any] = {}
    if state["state"] == DONE:
        summary = _summary(folder, cell)
    attempts = state["attempts"]
    row: Row = {
        "id": cell.id,
        "name": cell.name,
        "point": dict(cell.point),
        "state": state["state"],
        "seed": cell.settings.seed,
        "held_out": cell.held_out,
        "after": cell.after,
        "from_step": cell.from_step,
        "num_steps": cell.settings.train.num_steps,
        "sequence_length": cell.settings.data.sequence_length,
        "batch_size": cell.settings.train.batch_size,
        **{name: summary.get(name) for name in MEASURED},
        "bits_per_byte": summary.get("heldout_bits_per_byte"),
        **{name: value for name, value in summary.items() if name.startswith(("heldout_loss_", "heldout_accuracy_"))},
        "planned_flops": fact["plan"].get("flops"),
        "tokenizer_hash": tokenizer_hash(folder.run(cell.id)),
        "wall_seconds": sum(seconds_of(attempt) for attempt in attempts) if attempts else None,
        "training_seconds": _training_seconds(summary, cell),
        **(costs or Costs(folder.directory)).hours(attempts),
        "attempts": len(attempts),
        "reason": attempts[-1]["reason"] if attempts else None,
        "history": [{name: attempt.get(name) for name in ATTEMPT} for attempt in attempts],
    }
    return row


def _summary(folder: Folder, cell: Cell) -> Mapping[str, Any]:
    path = folder.run(cell.id) / SUMMARY
    try:
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise UserError(
            f"{path} of a finished cell is missing or damaged: restore it, or delete {folder.run(cell.id)} and "
            f"{folder.directory / 'state' / cell.id}.json to run the cell anew"
        ) from error
    return found


def tokenizer_hash(run: Path) -> str | None:
    """16 hexadecimal digits of the files of a run's tokenizer; none before it has them."""
    files = sorted(run.glob("tokenizer*"))
    joined = b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)
    return hashlib.sha256(joined).hexdigest()[:16] if files else None


def _training_seconds(summary: Mapping[str, Any], cell: Cell) -> float | None:
    """Of the updates alone, at their median speed: without start, compilation, evaluation and checkpoints."""
    speed, tokens = summary.get("tokens_per_second"), summary.get("tokens_seen")
    if not speed or not tokens:
        return None
    share = 1.0 - (cell.from_step or 0) / cell.settings.train.num_steps
    return round(float(tokens) * share / float(speed), 3)


def write_rows(folder: Folder) -> list[Row]:
    """Writes `rows.json` and `rows.csv`, whole or not at all, and gives the rows."""
    rows = rows_of(folder)
    write_json(folder.directory / ROWS, {"schema": SCHEMA, **facts_of(folder), "rows": rows})
    write_text(folder.directory / TABLE, table(rows))
    return rows


def facts_of(folder: Folder) -> dict[str, Any]:
    """What is true of the sweep as a whole."""
    names = (
        "question", "recipe", "sweep", "sweep_hash", "commit", "versions", "created", "host", "baseline", "yardstick",
        "keep", "analyses", "max_epochs", "refused",
    )  # fmt: skip
    plans = [entry["plan"] for entry in folder.content["cells"]]
    total = {
        name: sum(plan.get(name) or 0 for plan in plans) for name in ("flops", "tokens", "bytes", "chip_hours", "cost")
    }
    # Folders of older sweeps do not tell it.
    tuning = folder.content.get("tuning", NOT_STATED)
    return {name: folder.content[name] for name in names} | {"tuning": tuning, "cells": len(plans), "planned": total}


def table(rows: Sequence[Row]) -> str:
    """Rows as CSV: points become columns `point.KEY`; versions and attempts are left to rows.json."""
    flat = []
    for row in rows:
        plain = {name: value for name, value in row.items() if not isinstance(value, (dict, list))}
        point = {f"point.{key}": value for key, value in row["point"].items() if key not in (TRUNK, FROM_STEP)}
        flat.append(plain | point)
    names = list(dict.fromkeys(name for row in flat for name in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return file.getvalue()


def curves_of(folder: Folder) -> dict[str, dict[str, np.ndarray]]:
    """For each cell that has rows: columns of its training curve, smoothed and thinned, and its held-out figures.

    `step, tokens_seen, model_flops, seconds, loss` are `[points]`; `heldout_step`, `heldout_loss` and, where it is
    measured, `heldout_bits_per_byte` are `[evaluations]`.
    """
    runs = {cell.id: folder.run(cell.id) for cell in folder.cells}
    found = {cell_id: _curve(run) for cell_id, run in runs.items() if (run / METRICS).exists()}
    return {cell_id: curve for cell_id, curve in found.items() if len(curve["step"])}


def _curve(run: Path) -> dict[str, np.ndarray]:
    columns = curves.columns(read_metrics(run / METRICS))
    if "step" not in columns:
        return {"step": np.zeros(0)}
    columns["loss"] = curves.smoothed(columns["loss"])
    if "seconds" in columns:
        columns["seconds"] = curves.elapsed(columns["seconds"])
    kept = curves.thinned(columns["loss"], POINTS)
    curve = {name: columns[name][kept] for name in CURVES if name in columns}
    events = read_events(run / EVENTS) if (run / EVENTS).exists() else []
    shown = {event["step"]: event for event in events if event["event"] == "evaluate" and "step" in event}
    steps = sorted(step for step in shown if step <= curve["step"][-1])
    curve["heldout_step"] = np.array(steps, dtype=float)
    for name in ("heldout_loss", "heldout_bits_per_byte"):
        values = [shown[step].get(name) for step in steps]
        if values and all(isinstance(value, (int, float)) for value in values):
            curve[name] = np.array(values, dtype=float)
    return curve

"""What the rows of a sweep say: fits and predictions by objective, verdicts against the baseline, transfer of rates.

What cannot be answered is refused in a sentence, and the rest is answered.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.errors import UserError
from research.scaling import answers, approaches, series, verdict
from research.scaling.bootstrap import Sampling
from research.scaling.rows import Columns, Runs, from_rows
from research.scaling.series import RATE, Series
from research.scaling.transfer import transfer
from research.sweeps.ledger import DONE
from research.sweeps.resolve import FROM_STEP, TRUNK
from research.sweeps.rows import Row
from research.sweeps.sweep import names_of

# Yardsticks of which less is better, and which a law in N and D is fitted to.
LOSSES = ("bits_per_byte", "heldout_loss", "train_loss")
HIGHER = ("heldout_accuracy",)
UNITS = {"bits_per_byte": "bits per byte", "heldout_loss": "nats", "train_loss": "nats"}
NUMBERS = ("parameters", "tokens_seen", "model_flops")
SEED = "seed"
COMPARISON = "compare.json"


def answers_of(content: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """Answers as `answer.json` holds them, from rows of cells that are done; see `research/scaling/answers.py`.

    Args:
      content: of `sweep.json`: `yardstick`, `analyses`, `baseline`, and `base`, the recipe's settings.
      rows: of `research.sweeps.rows.rows_of`.
    """
    yardstick = str(content["yardstick"])
    measured = [row for row in rows if row["state"] == DONE and isinstance(row.get(yardstick), (int, float))]
    found: dict[str, Any] = {"yardstick": yardstick, "measured": len(measured)}
    if yardstick in LOSSES and {"fit", "isoflop"} & set(content["analyses"]):
        found |= _fits(measured, yardstick, content["analyses"])
    if "verdict" in content["analyses"] and content["baseline"] is not None:
        found |= _verdicts(measured, yardstick, content["baseline"])
    if "transfer" in content["analyses"]:
        found |= _transfer(measured, yardstick, flat(content["base"]["settings"]), list(content["analyses"]))
    return found


def comparison_of(directory: Path) -> dict[str, Any]:
    """`{"comparison": ...}`, what `isoflop compare` wrote into a sweep's folder; nothing where it wrote nothing.

    Raises:
      UserError: the file is no such record.
    """
    path = directory / COMPARISON
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not all(name in found for name in ("runs", "reason", *found["yardsticks"])):
            raise KeyError("runs, reason")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no record of a comparison: delete it, or let isoflop compare {directory} write it anew"
        ) from error
    return {"comparison": found}


def _fits(rows: Sequence[Row], yardstick: str, analyses: Sequence[str]) -> dict[str, Any]:
    """The fits of each objective by itself, since their losses are not one measure."""
    objectives = list(dict.fromkeys(row["objective"] for row in rows))
    record: dict[str, Any] = {"fits": [], "predictions": []}
    for objective in objectives:
        own = [row for row in rows if row["objective"] == objective and all(row.get(name) for name in NUMBERS)]
        if len({row["parameters"] for row in own}) < 2:
            continue  # one size is no question of scale
        try:
            runs = from_rows(own, Columns(yardstick, *NUMBERS), "the sweep")
            told = fitted(runs, analyses)
        except UserError as reason:
            record["fits"].append({"name": "fit", "group": objective, "refused": str(reason)})
            continue
        made = answers.record(told, Sampling().confidence, {"yardstick": yardstick, "objective": objective})
        group = {"group": objective} if len(objectives) > 1 else {}
        record["fits"] += [fit | group for fit in made["fits"]]
        record["predictions"] += made["predictions"]
        record |= {name: value for name, value in made.items() if name not in record}
    return record


def fitted(runs: Runs, analyses: Sequence[str]) -> list[answers.Answer]:
    """All approaches, or isoFLOP parabolas alone; what is held out is predicted."""
    held_out = list(runs.held_out)
    own, held = runs.split(held_out) if held_out else (runs, None)
    return approaches.analyse(own, "all" if "fit" in analyses else "isoflop", held=held)


def _transfer(
    rows: Sequence[Row], yardstick: str, recipe: Mapping[str, Any], analyses: Sequence[str]
) -> dict[str, Any]:
    """The best learning rate in each series, by size where sizes differ; nothing where no rates were tried, unless
    nothing else is asked.

    See `research/scaling/series.py` for what a series is.
    """
    size = series.size_of(rows, recipe)
    if not series.tries_rates(rows, recipe):
        if analyses != ["transfer"]:
            return {}
        reason = f"no two measured cells differ in {RATE} alone"
    elif yardstick in HIGHER:
        reason = f"{yardstick} is not a loss, and the least loss over the rate is what is looked for"
    else:
        found = [_rates_of(one, size, yardstick, recipe) for one in series.series_of(rows, size, recipe)]
        called = None if size is None else series.SIZES[size]
        head = {"rate": RATE, "size": size, "called": called, "confidence": Sampling().confidence}
        return {"transfer": {**head, "series": found}}
    return {"transfer": {"refused": reason}}


def _rates_of(one: Series, size: str | None, yardstick: str, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Of one series: its best rates, or why there are none."""
    points = series.Points(one.cells, recipe)
    named = {"name": one.name, "cells": [cell["id"] for cell in one.cells], "shared": one.shared}
    try:
        runs = [
            {"size": points.get(row, size) if size else 1, "rate": points.get(row, RATE), "loss": row[yardstick]}
            for row in one.cells
        ]
        return named | transfer(runs, "size", "rate", "loss").to_json()
    except UserError as reason:
        return named | {"refused": str(reason)}


def flat(settings: Mapping[str, Any], room: str = "") -> dict[str, Any]:
    """Settings by dotted key."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{room}{name}.") if isinstance(value, Mapping) else {room + name: value}
    return found


def _verdicts(rows: Sequence[Row], yardstick: str, baseline: Mapping[str, Any]) -> dict[str, Any]:
    """Each change against the baseline, paired by seed."""
    points = [
        {key: value for key, value in row["point"].items() if key not in (SEED, TRUNK, FROM_STEP)} for row in rows
    ]
    names = names_of(points)
    measured: dict[str, dict[int, float]] = {}
    against: list[str] = []
    try:
        for row, point, name in zip(rows, points, names, strict=True):
            if row["seed"] in measured.setdefault(name, {}):
                raise UserError(f"{name} was run twice with the seed {row['seed']}: verdicts pair runs by seed")
            measured[name][row["seed"]] = float(row[yardstick])
            if all(point.get(key) == value for key, value in baseline.items()):
                against.append(name)
        if len(set(against)) != 1:
            raise UserError(
                f"the baseline {dict(baseline)} is {len(set(against))} kinds of cells that were measured: give the "
                "sweep a baseline whose keys one kind has"
            )
        told = verdict.verdicts(
            measured, against[0], higher_is_better=yardstick in HIGHER, unit=UNITS.get(yardstick, "")
        )
    except UserError as reason:
        return {"verdicts": [], "verdicts_refused": str(reason)}
    return {"verdicts": [one.to_json() for one in told]}

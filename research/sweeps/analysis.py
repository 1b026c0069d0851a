"""What the rows of a sweep say: fits and predictions by objective, verdicts against the baseline.

What cannot be answered is refused in a sentence, and the rest is answered.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from research.errors import UserError
from research.scaling import answers, approaches, verdict
from research.scaling.bootstrap import Sampling
from research.scaling.rows import Columns, Runs, from_rows
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


def answers_of(content: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """Answers as `answer.json` holds them, from rows of cells that are done; see `research/scaling/answers.py`.

    Args:
      content: of `sweep.json`: `yardstick`, `analyses` and `baseline`.
      rows: of `research.sweeps.rows.rows_of`.
    """
    yardstick = str(content["yardstick"])
    measured = [row for row in rows if row["state"] == DONE and isinstance(row.get(yardstick), (int, float))]
    found: dict[str, Any] = {"yardstick": yardstick, "measured": len(measured)}
    if yardstick in LOSSES and {"fit", "isoflop"} & set(content["analyses"]):
        found |= _fits(measured, yardstick, content["analyses"])
    if "verdict" in content["analyses"] and content["baseline"] is not None:
        found |= _verdicts(measured, yardstick, content["baseline"])
    return found


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

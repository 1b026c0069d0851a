"""Learning rates, batches and other keys of rungs as they were best in a finished sweep at the same size.

points = tuned(isoflop(SIZES, BUDGETS, RECIPE), RECIPE, "experiments/rates/results")
return Sweep(..., points=points, tuning=by_tuning(points, RECIPE, "experiments/rates/results"))
"""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from research import config
from research.errors import UserError
from research.settings import Settings
from research.sweeps.algebra import Point, Points
from research.sweeps.budgets import STEPS, figures
from research.sweeps.ledger import DONE
from research.sweeps.resolve import FROM_STEP, settings_of
from research.sweeps.rules import BATCH, RATE, unbranched, updates

Results = str | Path | Mapping[str, Any]
ROWS = "rows.json"
NEAR = 0.1  # of log compute: runs of one budget
DIVERGED = "the loss of update"  # how the reason of a run begins whose loss was no number


class Tried(NamedTuple):
    """A finished run: its size, compute, seed, the values of the keys in question, and its loss, less is better."""

    parameters: int
    flops: float
    values: tuple[Any, ...]
    loss: float


def tuned(
    points: Sequence[Point],
    recipe: str,
    results: Results,
    *,
    over: Sequence[str] = (RATE,),
    keep: str = "model_flops",
    at_edge: Collection[str] = (),
) -> Points:
    """The points, each with the values that were best in a finished sweep over models of as many parameters.

    Where the sweep has several budgets at a size, the nearest counts; seeds are averaged, and a run whose loss was no
    number counts as worse than any other. A point whose batch changes goes on spending what it did.

    Args:
      points: with their lengths.
      recipe: that they are points of.
      results: `rows.json` of the finished sweep, its folder, or its content.
      over: keys whose values are taken: the learning rate, `train.batch_size`, ...
      keep: as in `scaled`.
      at_edge: keys whose best value may be the smallest or the largest that was tried.

    Raises:
      UserError: a size was not tried, a key took one value there, or the best one is at the edge of what was tried.
    """
    runs, source = tried(results, over)
    found = []
    for point in points:
        settings = unbranched(point, recipe)
        best = _best(settings, runs, source, over, at_edge)
        changes = dict(zip(over, best, strict=True))
        if BATCH in changes and changes[BATCH] != settings.train.batch_size:
            changes[STEPS] = updates(settings, changes[BATCH], keep)
        found.append({**point, **changes})
        settings_of(recipe, found[-1])
    return tuple(found)


def by_tuning(points: Sequence[Point], recipe: str, results: Results, over: Sequence[str] = (RATE,)) -> str:
    """What `Sweep.tuning` says of points that were tuned so."""
    sizes = {figures(settings_of(recipe, point)).parameters for point in points}
    keys = " and ".join(key.rpartition(".")[2].replace("_", " ") for key in over)
    return f"{keys} tuned at {len(sizes)} sizes in {_opened(results)[1]}"


def tried(results: Results, over: Sequence[str]) -> tuple[list[Tried], str]:
    """The runs of a finished sweep that measured its yardstick, or failed to since their loss was no number; and where
    they stand."""
    from research.sweeps.analysis import HIGHER

    content, source = _opened(results)
    recipe, yardstick = content["recipe"], content["yardstick"]
    sign = -1.0 if yardstick in HIGHER else 1.0
    runs = []
    for row in content["rows"]:
        diverged = row["state"] != DONE and DIVERGED in (row.get("reason") or "")
        measured = row["state"] == DONE and isinstance(row.get(yardstick), (int, float))
        if not (diverged or measured) or FROM_STEP in row["point"]:
            continue
        settings = settings_of(recipe, row["point"])
        counted = figures(settings)
        loss = sign * float(row[yardstick]) if measured else math.inf
        values = tuple(settings[key] for key in over)
        flops = settings.train.num_steps * counted.step_flops
        runs.append(Tried(counted.parameters, flops, values, loss if math.isfinite(loss) else math.inf))
    return runs, source


def _opened(results: Results) -> tuple[Mapping[str, Any], str]:
    if isinstance(results, Mapping):
        content, source = results, f"the sweep {results.get('question', 'given')!r}"
    else:
        path = Path(results) / ROWS if Path(results).is_dir() else Path(results)
        if not path.exists():
            raise UserError(f"there is no {path}: run the sweep that tunes first, and `isoflop sweep report` it")
        content, source = config.read_json(path), str(results)
    if missing := [name for name in ("recipe", "yardstick", "rows") if name not in content]:
        raise UserError(f"{source} has no {missing[0]!r}: give the {ROWS} that a sweep's report wrote")
    return content, source


def _best(
    settings: Settings, runs: Sequence[Tried], source: str, over: Sequence[str], at_edge: Collection[str]
) -> tuple[Any, ...]:
    counted = figures(settings)
    size, flops = counted.parameters, settings.train.num_steps * counted.step_flops
    own = [run for run in runs if run.parameters == size]
    if not own:
        raise UserError(f"{source} tried no model of {size:,} parameters: tune that size as well")
    nearest = min(own, key=lambda run: abs(math.log(run.flops / flops)))
    own = [run for run in own if abs(math.log(run.flops / nearest.flops)) <= NEAR]
    losses: dict[tuple[Any, ...], list[float]] = {}
    for run in own:
        losses.setdefault(run.values, []).append(run.loss)
    means = {values: statistics.fmean(found) for values, found in losses.items()}
    best = min(means, key=lambda values: means[values])
    if not math.isfinite(means[best]):
        raise UserError(f"every run of {source} with {size:,} parameters diverged: try lower learning rates")
    for place, key in enumerate(over):
        among = sorted({values[place] for values in means})
        end = "largest" if best[place] == among[-1] else "smallest"
        if len(among) == 1:
            raise UserError(
                f"{source} tried one {key} with {size:,} parameters and {nearest.flops:.2g} FLOPs, {among[0]}: that "
                "tunes nothing"
            )
        if best[place] in (among[0], among[-1]) and key not in at_edge:
            raise UserError(
                f"the best {key} with {size:,} parameters is {best[place]}, the {end} that {source} tried: try "
                f"{'larger' if end == 'largest' else 'smaller'} ones, or take it by at_edge=({key!r},)"
            )
    return best

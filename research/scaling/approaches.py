"""All approaches by name: which the runs can answer, what each answers, why the others are refused."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from research.errors import UserError
from research.scaling import curves, isoflop, parametric
from research.scaling.answers import Answer
from research.scaling.bootstrap import Sampling, UnidentifiedError
from research.scaling.fit import HUBER
from research.scaling.rows import Runs

APPROACHES = ("curves", "isoflop", "parametric", "kaplan", "data", "ladder")
DRAWN, FURTHEST = 9, 10.0  # budgets along the frontier, from the smallest run's to so many times the largest
BEYOND = (1.0, 10.0, 100.0)  # times the largest budget, where none is asked for


def analyse(
    runs: Runs,
    approach: str = "all",
    budgets: Sequence[float] = (),
    held: Runs | None = None,
    sampling: Sampling | None = None,
    delta: float = HUBER,
) -> list[Answer]:
    """Answers of one approach, or of all that apply; what was refused among them, with the reason.

    Args:
      runs: to fit, without those to predict.
      budgets: FLOPs to give optima for; the largest budget, ten and a hundred times it where none is given.
      held: runs to predict.
      delta: of Huber's loss on log loss.

    Raises:
      UserError: an unknown approach, or a budget that is none.
      UnidentifiedError: one approach was asked for, and the runs cannot answer it.
    """
    if approach != "all" and approach not in APPROACHES:
        raise UserError(f"--approach {approach} is unknown: choose all, {', '.join(APPROACHES)}")
    for budget in budgets:
        if not (np.isfinite(budget) and budget > 0):
            raise UserError(f"--budget {budget} is none: give positive FLOPs, such as 1e21")
    sampling = sampling or Sampling()
    asked = sorted(budgets) or [float(runs.flops.max()) * factor for factor in BEYOND]
    if approach != "all":
        return [_with_frontier(approach, runs, asked, held, sampling, delta)]
    found = []
    for name in APPROACHES:
        if (name == "curves" and runs.curve is None) or (name == "data" and runs.unique is None):
            continue  # nobody gave what they need: no answer was asked of them
        try:
            found.append(_with_frontier(name, runs, asked, held, sampling, delta))
        except UnidentifiedError as reason:
            found.append(Answer(name, count=runs.count, refused=str(reason)))
    return found


def _with_frontier(
    name: str, runs: Runs, asked: Sequence[float], held: Runs | None, sampling: Sampling, delta: float
) -> Answer:
    """An answer for the budgets that were asked for, and for the frontier's, whatever was asked for."""
    between = np.geomspace(runs.flops.min(), FURTHEST * runs.flops.max(), DRAWN).tolist()
    found = _answer(name, runs, [*asked, *between], held, sampling, delta)
    return replace(found, optima=found.optima[: len(asked)], frontier=found.optima[len(asked) :])


def _answer(
    name: str, runs: Runs, asked: Sequence[float], held: Runs | None, sampling: Sampling, delta: float
) -> Answer:
    if name == "curves":
        return curves.answer(runs, asked, sampling)
    ends = runs.ends()
    if name == "isoflop":
        return isoflop.answer(ends, asked, sampling)
    form = parametric.form_of(name, ends, delta)
    return parametric.answer(form, ends, asked, None if held is None else held.ends(), sampling, delta)

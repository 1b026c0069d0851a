"""Where the best learning rate lies at each size, and whether it moves (Yang et al. 2022, figure 1)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from research.errors import UserError

FEWEST_RATES = 3


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The best learning rate at one size.

    Attributes:
      size: width, or whatever grows.
      rate: where a parabola through the lowest point and its neighbours, in the logarithm of the rate, is least.
      loss: of the parabola there.
      edge: the lowest point is the first or the last of its rates, so that the best may lie outside.
      cost: by how much the loss is higher at the rate that is best at the smallest size, relative to it; none: not
        within the rates that were tried.
    """

    size: float
    rate: float
    loss: float
    edge: bool
    cost: float | None


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Best rates by size, the smallest first.

    Attributes:
      optima: one a size.
      exponent: of the size by which the best rate goes, over sizes whose best is within the rates that were tried.
    """

    optima: tuple[Optimum, ...]
    exponent: float | None

    def record(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"exponent": self.exponent, "optima": [dataclasses.asdict(optimum) for optimum in self.optima]}


def transfer(runs: Sequence[Mapping[str, int | float]], size: str, rate: str, loss: str) -> Transfer:
    """Best rates of one series of runs; runs of the same size and rate (seeds) are averaged.

    Args:
      runs: numbers by name; a run whose loss is not finite counts as worse than any other.
      size: name of what grows.
      rate: name of the learning rate.
      loss: name of what should be small.

    Raises:
      UserError: a size with fewer than three rates of finite loss, or fewer than two sizes.
    """
    curves: dict[float, dict[float, list[float]]] = {}
    for run in runs:
        value = float(run[loss])
        curves.setdefault(float(run[size]), {}).setdefault(float(run[rate]), []).append(
            value if math.isfinite(value) else math.inf
        )
    if len(curves) < 2:
        raise UserError(f"{size} takes {len(curves)} value in these runs: whether a rate transfers takes two or more")
    means = {at: {r: float(np.mean(values)) for r, values in sorted(found.items())} for at, found in curves.items()}
    found = []
    for at, curve in sorted(means.items()):
        rates = np.array([r for r, value in curve.items() if math.isfinite(value)])
        if len(rates) < FEWEST_RATES:
            raise UserError(f"{size}={at:g} has {len(rates)} values of {rate} with a finite {loss}: give it three")
        found.append((at, rates, np.array([curve[r] for r in rates.tolist()])))
    base = _least(found[0][1], found[0][2])[0]
    optima = tuple(_optimum(at, rates, losses, base) for at, rates, losses in found)
    within = [optimum for optimum in optima if not optimum.edge]
    exponent = None
    if len(within) > 1:
        logs = np.log([[optimum.size, optimum.rate] for optimum in within])
        exponent = float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])
    return Transfer(optima, exponent)


def _optimum(
    size: float, rates: Float[np.ndarray, " rates"], losses: Float[np.ndarray, " rates"], base: float
) -> Optimum:
    rate, loss, edge = _least(rates, losses)
    inside = rates[0] <= base <= rates[-1]
    at_base = float(np.interp(math.log(base), np.log(rates), losses)) if inside else None
    # Between two points a line lies above the curve: a cost below nothing is none.
    cost = None if at_base is None else max(0.0, at_base / loss - 1.0)
    return Optimum(size, rate, loss, edge, cost)


def _least(rates: Float[np.ndarray, " rates"], losses: Float[np.ndarray, " rates"]) -> tuple[float, float, bool]:
    """Rate and loss of the parabola through the lowest point and its neighbours; the point itself at an edge (true)."""
    lowest = int(np.argmin(losses))
    if lowest in {0, len(rates) - 1}:
        return float(rates[lowest]), float(losses[lowest]), True
    x = np.log(rates[lowest - 1 : lowest + 2])
    centre = x[1]
    curve = np.polyfit(x - centre, losses[lowest - 1 : lowest + 2], 2)
    if curve[0] <= 0.0:  # three equal losses
        return float(rates[lowest]), float(losses[lowest]), False
    place = -curve[1] / (2.0 * curve[0])
    return float(np.exp(centre + place)), float(np.polyval(curve, place)), False

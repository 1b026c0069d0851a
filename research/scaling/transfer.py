"""Where the best learning rate lies at each size, and whether it moves (Yang et al. 2022, figure 1)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from research.errors import UserError
from research.scaling import bootstrap
from research.scaling.bootstrap import Estimate, Sampling

FEWEST_RATES, NEIGHBOURS = 3, 2
SEEDS, PARABOLA, NONE = "seeds", "parabola", "none"
INTERVALS = {
    SEEDS: "the seeds of each size and rate are drawn anew",
    PARABOLA: "there is one seed: losses are drawn anew by as much as those next to the least scatter about a parabola",
    NONE: "one seed and three rates a size tell no noise, so that there are no intervals",
}


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The best learning rate at one size.

    Attributes:
      size: width, or whatever grows.
      rate: where a parabola through the lowest point and its neighbours, in the logarithm of the rate, is least.
      loss: of the parabola there.
      edge: the lowest point is the first or the last of its rates, so that the best may lie outside; `lowest`,
        `highest`, or none.
      cost: by how much the loss is higher at the rate that is best at the smallest size, relative to it; none: not
        within the rates that were tried.
      measured: rates and mean losses, by rate.
    """

    size: float
    rate: Estimate
    loss: float
    edge: str | None
    cost: Estimate | None
    measured: tuple[tuple[float, float], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        ends = {"rate": _plain(self.rate), "cost": _plain(self.cost)}
        return {**vars(self), **ends, "measured": [list(point) for point in self.measured]}


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Best rates by size, the smallest first.

    Attributes:
      optima: one a size.
      exponent: of the size by which the best rate goes, over sizes whose best is within the rates that were tried;
        none of fewer than two.
      level: log of the rate at size 1 on that line.
      intervals: what they come from, a key of `INTERVALS`.
    """

    optima: tuple[Optimum, ...]
    exponent: Estimate | None
    level: float | None
    intervals: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        exponent = _plain(self.exponent)
        optima = [optimum.to_json() for optimum in self.optima]
        return {"exponent": exponent, "level": self.level, "intervals": self.intervals, "optima": optima}


@dataclasses.dataclass(frozen=True)
class _Curve:
    """Losses of one size: `losses[rate]` holds those of its seeds."""

    size: float
    rates: Float[np.ndarray, " rates"]
    losses: tuple[Float[np.ndarray, " seeds"], ...]

    @property
    def means(self) -> Float[np.ndarray, " rates"]:
        return np.array([seeds.mean() for seeds in self.losses])


def transfer(
    runs: Sequence[Mapping[str, int | float]], size: str, rate: str, loss: str, sampling: Sampling | None = None
) -> Transfer:
    """Best rates of one series of runs; runs of the same size and rate (seeds) are averaged.

    Args:
      runs: numbers by name; a run whose loss is not finite counts as worse than any other.
      size: name of what grows.
      rate: name of the learning rate.
      loss: name of what should be small.

    Raises:
      UserError: a size with fewer than three rates of finite loss.
    """
    sampling = sampling or Sampling()
    curves = _curves(runs, size, rate, loss)
    drawn, how, freedom = _redrawn(curves, sampling)

    def estimate(value: float, draws: Float[np.ndarray, " draws"]) -> Estimate:
        if how == NONE:
            return Estimate(value, math.nan, math.nan)
        return bootstrap.interval(value, draws, freedom, sampling.confidence)

    least = [_Least(curve.rates, curve.means[None]) for curve in curves]
    redrawn = [_Least(curve.rates, losses) for curve, losses in zip(curves, drawn, strict=True)]
    optima = []
    for curve, own, draws in zip(curves, least, redrawn, strict=True):
        cost, costs = float(own.cost(least[0].at)[0]), draws.cost(redrawn[0].at)
        optima.append(
            Optimum(
                curve.size,
                _exponential(estimate(float(own.at[0]), draws.at)),
                float(own.loss[0]),
                {0: "lowest", len(curve.rates) - 1: "highest"}.get(int(own.lowest[0])),
                estimate(cost, costs[np.isfinite(costs)]) if math.isfinite(cost) else None,
                tuple(zip(curve.rates.tolist(), curve.means.tolist(), strict=True)),
            )
        )
    within = np.array([optimum.edge is None for optimum in optima])
    if within.sum() < 2:
        return Transfer(tuple(optima), None, None, how)
    sizes = np.log([curve.size for curve in curves])[within]
    level, slope = _line(sizes, np.array([own.at for own in least])[within])
    _, slopes = _line(sizes, np.array([draws.at for draws in redrawn])[within])
    return Transfer(tuple(optima), estimate(float(slope[0]), slopes), float(level[0]), how)


def _curves(runs: Sequence[Mapping[str, int | float]], size: str, rate: str, loss: str) -> list[_Curve]:
    """Runs by size and rate, without rates at which a run diverged."""
    found: dict[float, dict[float, list[float]]] = {}
    for run in runs:
        found.setdefault(float(run[size]), {}).setdefault(float(run[rate]), []).append(float(run[loss]))
    curves = []
    for at, by_rate in sorted(found.items()):
        finite = {r: np.array(seeds) for r, seeds in sorted(by_rate.items()) if np.isfinite(seeds).all()}
        if len(finite) < FEWEST_RATES:
            raise UserError(f"{size}={at:g} has {len(finite)} values of {rate} with a finite {loss}: give it three")
        curves.append(_Curve(at, np.array(list(finite)), tuple(finite.values())))
    return curves


def _redrawn(curves: Sequence[_Curve], sampling: Sampling) -> tuple[list[Float[np.ndarray, "draws rates"]], str, int]:
    """Mean losses of each size in each draw, what they were drawn from, and its degrees of freedom."""
    generator, count = sampling.generator(), sampling.draws
    if all(len(seeds) > 1 for curve in curves for seeds in curve.losses):
        drawn = []
        for curve in curves:
            columns = []
            for seeds in curve.losses:
                wide = seeds.mean() + (seeds - seeds.mean()) * math.sqrt(len(seeds) / (len(seeds) - 1))
                columns.append(generator.choice(wide, size=(count, len(seeds))).mean(axis=1))
            drawn.append(np.stack(columns, axis=1))
        # A parabola rests on three rates of each size.
        freedom = min(sum(sorted(len(seeds) - 1 for seeds in curve.losses)[:FEWEST_RATES]) for curve in curves)
        return drawn, SEEDS, freedom
    scatter, freedom = _scatter(curves)
    if not freedom:
        return [np.repeat(curve.means[None], 2, axis=0) for curve in curves], NONE, 1
    return (
        [curve.means + scatter * generator.standard_normal((count, len(curve.rates))) for curve in curves],
        PARABOLA,
        freedom,
    )


def _scatter(curves: Sequence[_Curve]) -> tuple[float, int]:
    """Standard deviation of losses about parabolas through the lowest and two neighbours to either side, all sizes
    together; and its degrees of freedom. That curves are no parabolas is part of it.
    """
    squares, freedom = 0.0, 0
    for curve in curves:
        lowest = int(curve.means.argmin())
        near = slice(max(0, lowest - NEIGHBOURS), lowest + NEIGHBOURS + 1)
        x, y = np.log(curve.rates[near]), curve.means[near]
        left = y - np.polynomial.Polynomial.fit(x, y, 2)(x)
        squares, freedom = squares + float(left @ left), freedom + len(x) - FEWEST_RATES
    return math.sqrt(squares / freedom) if freedom else 0.0, freedom


class _Least:
    """Parabolas through the lowest point of each draw and its neighbours, in the logarithm of the rate.

    Attributes:
      at: log of the rate where the parabola is least; the lowest point itself at an edge or where nothing curves.
      loss: there.
      lowest: which point is lowest.
    """

    def __init__(self, rates: Float[np.ndarray, " rates"], losses: Float[np.ndarray, "draws rates"]) -> None:
        self._x, self._losses, self._rows = np.log(rates), losses, np.arange(len(losses))
        self.lowest = losses.argmin(axis=1)
        middle = self.lowest.clip(1, len(rates) - 2)
        self._places = x0, x1, x2 = tuple(self._x[middle + k] for k in (-1, 0, 1))
        y0, y1, y2 = (losses[self._rows, middle + k] for k in (-1, 0, 1))
        self._level, self._slope = y1, (y1 - y0) / (x1 - x0)
        self._bend = ((y2 - y1) / (x2 - x1) - self._slope) / (x2 - x0)
        self._sound: Bool[np.ndarray, " draws"] = (self.lowest == middle) & (self._bend > 0.0)
        turn = (x0 + x1) / 2 - self._slope / (2 * np.where(self._sound, self._bend, 1.0))
        self.at = np.where(self._sound, turn, self._x[self.lowest])
        self.loss = np.where(self._sound, self._parabola(self.at), losses[self._rows, self.lowest])

    def _parabola(self, at: Float[np.ndarray, " draws"]) -> Float[np.ndarray, " draws"]:
        x0, x1, _ = self._places
        return self._level + (self._slope + self._bend * (at - x0)) * (at - x1)

    def cost(self, at: Float[np.ndarray, " draws"]) -> Float[np.ndarray, " draws"]:
        """By how much the loss at a rate is above the least; NaN outside the rates.

        On the parabola where it reaches, elsewhere on a line between the points on either side.
        """
        right = np.searchsorted(self._x, at).clip(1, len(self._x) - 1)
        share = (at - self._x[right - 1]) / (self._x[right] - self._x[right - 1])
        line = self._losses[self._rows, right - 1] * (1 - share) + self._losses[self._rows, right] * share
        near = self._sound & (at >= self._places[0]) & (at <= self._places[2])
        there = np.where(near, self._parabola(at), line)
        inside = (at >= self._x[0] - 1e-9) & (at <= self._x[-1] + 1e-9)
        return np.where(inside, np.maximum(0.0, there / self.loss - 1.0), np.nan)


def _line(
    x: Float[np.ndarray, " sizes"], y: Float[np.ndarray, "sizes draws"]
) -> tuple[Float[np.ndarray, " draws"], Float[np.ndarray, " draws"]]:
    """Level at zero and slope of each column."""
    level, slope = np.polynomial.polynomial.polyfit(x, y, 1)
    return level, slope


def _exponential(logarithm: Estimate) -> Estimate:
    return Estimate(*(math.exp(end) for end in (logarithm.value, logarithm.low, logarithm.high)))


def _plain(estimate: Estimate | None) -> dict[str, float | None] | None:
    """Plain JSON, which has no NaN."""
    if estimate is None:
        return None
    return {name: end if math.isfinite(end) else None for name, end in estimate.to_json().items()}

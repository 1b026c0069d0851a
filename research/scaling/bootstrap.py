"""Intervals by refitting: each run gets a random weight, each draw is fitted anew, quantiles are widened for few runs.

Runs are weighted by exponential variates that sum to their number (the Bayesian bootstrap of Rubin 1981) where the
usual bootstrap counts how often a run was drawn. Both estimate the same spread, and neither assumes that all runs are
equally noisy; but no run's weight is ever zero, so that no draw loses the sizes or budgets that identify the law.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from research.errors import UserError

DRAWS, CONFIDENCE, SEED = 1000, 0.95, 0
FAILURES = 0.1  # of the draws: with more, quantiles of those that are left say nothing


class UnidentifiedError(UserError):
    """The runs cannot answer; the message says why, and what runs would."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
      value: of all runs.
      low: lower end of the interval.
      high: upper end.
    """

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """`{"value", "low", "high"}`."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def covers(self, truth: float) -> bool:
        """Whether the interval holds a number."""
        return self.low <= truth <= self.high


@dataclass(frozen=True)
class Sampling:
    """How intervals are made.

    Attributes:
      draws: refits.
      confidence: share of such intervals that should hold the truth.
      seed: of the draws; the same seed gives the same intervals.
    """

    draws: int = DRAWS
    confidence: float = CONFIDENCE
    seed: int = SEED

    def __post_init__(self) -> None:
        if self.draws < 50:
            raise UserError(f"{self.draws} bootstrap draws give no 95 % interval: take 200 or more")
        if not 0.5 <= self.confidence < 1:
            raise UserError(f"a confidence of {self.confidence:g} is none: choose one from 0.5 to 0.999")

    def generator(self) -> np.random.Generator:
        """Of the draws."""
        return np.random.default_rng(self.seed)


def weights(
    count: int, runs: int, generator: np.random.Generator, groups: Int[np.ndarray, " runs"] | None = None
) -> Float[np.ndarray, "draws runs"]:
    """Weights of each run in each draw: exponential variates, each draw's scaled to sum to the number of runs.

    Args:
      groups: numbers from 0 on; runs of one number are weighted as one. None: each run for itself.
    """
    drawn = generator.exponential(size=(count, runs if groups is None else int(groups.max()) + 1))
    drawn = drawn if groups is None else drawn[:, groups]
    return drawn * (runs / drawn.sum(axis=1, keepdims=True))


def interval(
    value: float, draws: Float[np.ndarray, " draws"], freedom: int, confidence: float = CONFIDENCE
) -> Estimate:
    """The value with expanded percentiles (Hesterberg 2015, section 5.3): as far out as Student's t is beyond normal.

    Args:
      freedom: runs less coefficients.
    """
    tail = stats.norm.cdf(stats.t.ppf((1 - confidence) / 2, max(1, freedom)))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(float(value), float(min(low, value)), float(max(high, value)))


def kept(sound: Bool[np.ndarray, " draws"], what: str, remedy: str) -> Bool[np.ndarray, " draws"]:
    """The draws to use.

    Raises:
      UnidentifiedError: too many of them failed.
    """
    share = 1 - float(sound.mean())
    if share > FAILURES:
        raise UnidentifiedError(f"{what} in {share:.0%} of the bootstrap draws, so that no interval holds: {remedy}")
    return sound

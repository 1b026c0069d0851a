"""Intervals of measures over documents, by drawing the documents anew (Efron & Tibshirani 1993, chapters 13 and 16)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

RESAMPLES = 2000
LEVEL = 0.95
# Of fewer documents the resamples are too much alike for their quantiles to mean anything.
FEWEST = 10

Resamples = Int64[np.ndarray, "resamples documents"]


class Interval(NamedTuple):
    """A measure and the interval that holds 95 % of its resamples; no interval where there are too few documents."""

    value: float
    low: float | None
    high: float | None


def resamples(documents: int, seed: int = 0) -> Resamples:
    """How often each document is drawn in each resample; two measures of the same ones are paired."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(documents, np.full(documents, 1.0 / documents), size=RESAMPLES).astype(np.int64)


def ratio(
    numerator: Float64[np.ndarray, " documents"], denominator: Float64[np.ndarray, " documents"], drawn: Resamples
) -> Interval:
    """The ratio of two sums over documents: bits over bytes, hits over questions."""
    return _interval(float(numerator.sum() / denominator.sum()), (drawn @ numerator) / (drawn @ denominator), drawn)


def difference(
    numerator: Float64[np.ndarray, " documents"],
    other: Float64[np.ndarray, " documents"],
    denominator: Float64[np.ndarray, " documents"],
    drawn: Resamples,
) -> Interval:
    """The first ratio less the other, of the same documents and the same denominator: paired."""
    return ratio(numerator - other, denominator, drawn)


def _interval(value: float, found: np.ndarray, drawn: np.ndarray) -> Interval:
    if drawn.shape[1] < FEWEST:
        return Interval(value, None, None)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))

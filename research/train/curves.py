"""Rows of metrics as curves that can be drawn: columns, smoothing, thinning."""

import math
from array import array
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

LIMIT = 2000  # points of a drawn curve: more cannot be told apart on a screen


def columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Rows as one array a name: `[rows]` for a number, `[rows, layers]` for a list; NaN where a row lacks it."""
    found: dict[str, array[float]] = {}
    widths: dict[str, int] = {}
    count = 0
    for row in rows:
        for name, value in row.items():
            values = value if isinstance(value, list) else [value]
            width = widths.setdefault(name, len(values) if isinstance(value, list) else 0)
            missing = count * max(width, 1) - len(found.setdefault(name, array("d")))
            found[name].extend([*[math.nan] * missing, *values])
        count += 1
    arrays = {}
    for name, numbers in found.items():
        width = widths[name]
        numbers.extend([math.nan] * (count * max(width, 1) - len(numbers)))
        arrays[name] = np.array(numbers).reshape((count, width) if width else count)
    return arrays


def smoothed(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Exponential moving average over a sixtieth of the values, but never over more than a tenth of those before.

    A steep beginning is followed closely that way. What is not finite counts for nothing.
    """
    average, seen, longest = 0.0, 0, max(len(values) / 60, 1.0)
    averages = np.full(len(values), np.nan)
    for place, value in enumerate(values.tolist()):
        if math.isfinite(value):
            seen += 1
            average += (value - average) / min(max(seen / 10, 1.0), longest)
            averages[place] = average
    return averages


def thinned(values: Float[np.ndarray, " n"], limit: int = LIMIT) -> Int[np.ndarray, " kept"]:
    """Places of at most `limit` values that look the same: first, last, and the extremes of equal stretches."""
    length = len(values)
    if length <= limit:
        return np.arange(length)
    edges = np.linspace(0, length, limit // 2, dtype=np.int64)  # one stretch less than edges: room for the two ends
    kept = {0, length - 1}
    for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        stretch = values[start:end]
        if np.isfinite(stretch).any():
            finite = np.where(np.isfinite(stretch), stretch, np.nan)
            kept |= {start + int(np.nanargmin(finite)), start + int(np.nanargmax(finite))}
    return np.array(sorted(kept))


def elapsed(seconds: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Seconds of training in all, from clocks that start anew in each process of a resumed run."""
    steps = np.diff(np.nan_to_num(seconds), prepend=0.0)
    return np.cumsum(np.where(steps < 0, np.nan_to_num(seconds), steps))


def plain(values: np.ndarray) -> list[Any]:
    """Five significant digits for JSON; what is not finite is null, which leaves a gap in a curve."""
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values.tolist()]

"""What the report draws: plain dictionaries that its script turns into charts.

A chart is `{title, unit, wide, log, series, levels}` or, for one row a layer, `{title, unit, wide, heat}`. Curves are
given over steps; `axes` holds the tokens and the time of some steps, from which the page interpolates its other axes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.train import curves
from research.train.noise import NOISE, SIGNAL

Chart = dict[str, Any]
COLUMNS_OF_HEAT = 240
# Not worth a chart: the axes themselves, and numbers that another chart shows.
HIDDEN = {"step", "tokens_seen", "tokens_predicted", "model_flops", "seconds", "targets", NOISE, SIGNAL}
NORMS = {"gradient_norm": "gradient", "update_norm": "update", "parameter_norm": "parameters"}


def axes(columns: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
    """Steps with the tokens and the time at each, as far as they are known; hours where there are two of them."""
    if not columns:
        return {"step": []}
    step = columns["step"]
    places = np.unique(np.linspace(0, len(step) - 1, 500).astype(np.int64))
    found = {"step": step[places].tolist()}
    if "tokens_seen" in columns:
        found["tokens"] = curves.plain(columns["tokens_seen"][places])
    if "seconds" in columns:
        seconds = curves.elapsed(columns["seconds"])[places]
        name, unit = ("hours", 3600) if seconds[-1] >= 7200 else ("minutes", 60)
        found[name] = curves.plain(seconds / unit)
    return found


def charts(
    columns: Mapping[str, np.ndarray],
    evaluations: Sequence[Mapping[str, Any]],
    bits: Mapping[str, int | float],
    accuracy: int | float | None,
) -> list[Chart]:
    """All charts of a run.

    Args:
      columns: metrics by name, see `curves.columns`.
      evaluations: held-out figures by step.
      bits: bits per byte of the baselines, by name.
      accuracy: of the most frequent token.
    """
    found = [_loss(columns, evaluations, bits)]
    unit = "of held-out text"
    found.append(_heldout("Held-out bits per byte", unit, "heldout_bits_per_byte", evaluations, bits))
    levels = {} if accuracy is None else {"unigram": accuracy}
    found.append(_heldout("Held-out accuracy", "share of masked tokens", "heldout_accuracy", evaluations, levels))
    found.append(_heldout("Held-out perplexity", "exp of nats a token", "heldout_perplexity", evaluations, {}))
    norms = [_line(columns, name, label) for name, label in NORMS.items() if name in columns]
    found += [
        _single(columns, "learning_rate", "Learning rate", "of each update"),
        {"title": "Norms", "unit": "Euclidean, over all weights", "log": True, "series": norms},
        _noise_scale(columns),
        _single(columns, "attention_logit_max", "Largest attention logit", "before the softmax", smooth=True),
        _single(columns, "tokens_per_second", "Throughput", "tokens a second", smooth=True, zero=True),
        _heat(columns, "gradient_norm_by_layer", "Gradient norm by layer"),
    ]
    shown = HIDDEN | {"loss", "learning_rate", "attention_logit_max", "tokens_per_second", *NORMS}
    found += [
        _single(columns, name, name.replace("_", " ").capitalize(), "", smooth=True)
        for name, values in columns.items()
        if name not in shown and values.ndim == 1 and len(np.unique(values[np.isfinite(values)])) > 1
    ]
    return [chart for chart in found if chart.get("series") or chart.get("heat")]


def _loss(
    columns: Mapping[str, np.ndarray], evaluations: Sequence[Mapping[str, Any]], bits: Mapping[str, int | float]
) -> Chart:
    series = []
    if "loss" in columns:
        series = [_line(columns, "loss", "training", kind="raw"), _smooth(columns, "loss", "training, smoothed")]
    series += _heldout("", "", "heldout_loss", evaluations, {})["series"]
    # Bits per byte and nats a token of the same text differ by a constant, which the evaluations give.
    both = [e for e in evaluations if e.get("heldout_bits_per_byte") and e.get("heldout_loss")]
    nats = both[-1]["heldout_loss"] / both[-1]["heldout_bits_per_byte"] if both else math.nan
    levels = [{"name": name, "y": value * nats} for name, value in bits.items() if both]
    return {
        "title": "Loss", "unit": "nats a target", "wide": True, "toggle": True, "series": series, "levels": levels
    }  # fmt: skip


def _heldout(
    title: str, unit: str, name: str, evaluations: Sequence[Mapping[str, Any]], levels: Mapping[str, int | float]
) -> Chart:
    points = [(e["step"], e[name]) for e in evaluations if isinstance(e.get(name), (int, float))]
    series = [{"name": "held-out", "kind": "points", "step": [p[0] for p in points], "y": _values(points)}]
    named = [{"name": label, "y": value} for label, value in levels.items()]
    return {"title": title, "unit": unit, "series": series if points else [], "levels": named}


def _values(points: Sequence[tuple[Any, Any]]) -> list[Any]:
    return curves.plain(np.array([value for _, value in points], np.float64))


def _single(
    columns: Mapping[str, np.ndarray], name: str, title: str, unit: str, *, smooth: bool = False, zero: bool = False
) -> Chart:
    if name not in columns:
        return {}
    series = [_line(columns, name, title.lower(), kind="raw" if smooth else "line")]
    series += [_smooth(columns, name, "smoothed")] if smooth else []
    return {"title": title, "unit": unit, "zero": zero, "series": series}


def _line(columns: Mapping[str, np.ndarray], name: str, label: str, *, kind: str = "line") -> dict[str, Any]:
    return _curve(columns["step"], columns[name], label, kind)


def _smooth(columns: Mapping[str, np.ndarray], name: str, label: str) -> dict[str, Any]:
    values = columns[name]
    return _curve(columns["step"], curves.smoothed(values), label, "smooth")


def _curve(step: np.ndarray, values: np.ndarray, label: str, kind: str) -> dict[str, Any]:
    places = curves.thinned(values)
    return {"name": label, "kind": kind, "step": step[places].tolist(), "y": curves.plain(values[places])}


def _noise_scale(columns: Mapping[str, np.ndarray]) -> Chart:
    """The mean noise over the mean signal of the gradient, each over a tenth of the updates, since those of single ones
    may be below zero; a gap where the mean signal is.
    """
    if not {NOISE, SIGNAL, "tokens_seen"} <= set(columns):
        return {}
    noise, signal = (_means(columns[name], max(10, len(columns[name]) // 10)) for name in (NOISE, SIGNAL))
    tokens = columns["tokens_seen"][-1] / columns["step"][-1]
    scale = np.full(len(noise), np.nan)
    np.divide(tokens * noise, signal, out=scale, where=signal > 0)
    drawn = [_curve(columns["step"], scale, "noise scale", "line")] if np.isfinite(scale).any() else []
    unit = "tokens; noise and signal are averaged over a tenth of the updates"
    return {"title": "Gradient noise scale", "unit": unit, "log": True, "series": drawn}


def _means(values: np.ndarray, width: int) -> np.ndarray:
    """The mean of each value and up to `width - 1` before it, of those that are finite."""
    finite = np.isfinite(values)
    sums, counts = (np.cumsum(array) for array in (np.where(finite, values, 0.0), finite.astype(np.float64)))
    for array in (sums, counts):
        array[width:] -= array[:-width].copy()
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)


def _heat(columns: Mapping[str, np.ndarray], name: str, title: str) -> Chart:
    """Medians of equal stretches of steps, one row a layer."""
    values = columns.get(name)
    if values is None or values.ndim < 2:
        return {}
    stretches = np.array_split(np.arange(len(values)), min(COLUMNS_OF_HEAT, len(values)))
    medians = np.stack([np.median(values[stretch], axis=0) for stretch in stretches], axis=1)
    steps = [float(columns["step"][stretch].mean()) for stretch in stretches]
    heat = {"step": curves.plain(np.array(steps)), "z": [curves.plain(row) for row in medians]}
    return {"title": title, "unit": "median, logarithmic colour", "wide": True, "heat": heat}

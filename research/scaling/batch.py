"""The critical batch size: below it more tokens an update save updates, above it they are wasted.

Measured in two ways (McCandlish et al. 2018): from the noise of the gradient, which any run with `train.noise_scale`
writes down (section 2.2, appendix A.1), and from runs with several batches, by the updates and the tokens that each
needs to reach one loss (section 2.3). The first asks for one run and assumes a well-chosen learning rate
and a curvature alike in all directions; the second assumes neither, and asks for a learning rate tuned at every batch
and for a schedule that does not decay, since a loss on the way is compared. Batches are counted in raw tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from research.errors import UserError
from research.scaling.bootstrap import CONFIDENCE, Estimate, Sampling, UnidentifiedError, interval, kept, weights

# Columns of metrics.jsonl, see research/train/noise.py, and what of them stands in summary.json.
SIGNAL, NOISE = "gradient_signal", "gradient_noise"
TOKENS, LOW, HIGH, REFUSED = "noise_scale_tokens", "noise_scale_low", "noise_scale_high", "noise_scale_refused"
RATE = "optimizer.learning_rate"

LAST = 0.5  # of a run: the noise scale grows while the loss falls
BLOCKS, SHORTEST = 20, 5  # stretches of updates that are averaged over, and updates of the shortest
FEWEST_BLOCKS = 6
FEWEST_BATCHES, NARROWEST = 4, 8.0  # different batches, and the largest over the smallest
REACH, GRID = 10.0, 801  # how far beyond the batches tried a critical one is believed; candidates


# --- from the noise of the gradient -----------------------------------------------------------------------------------


def critical_batch(
    rows: Sequence[Mapping[str, Any]], *, last: float = LAST, confidence: float = CONFIDENCE
) -> Estimate:
    """The gradient noise scale in raw tokens, `tr(Sigma) / |G|^2`, over the end of a run.

    Noise and signal are averaged apart, since the ratio of one update means nothing (McCandlish et al. 2018, appendix
    A.1). The interval is Fieller's (1954), from means over stretches of updates: it holds for a ratio whose denominator
    is itself uncertain, and is without an end where that may be zero.

    Args:
      rows: of `metrics.jsonl`; those without the measurement are left out.
      last: share of them, from the end.
      confidence: of the interval.

    Raises:
      UnidentifiedError: nothing was measured, too few updates, or a signal that may be zero.
    """
    measured = [row for row in rows if math.isfinite(row.get(SIGNAL, math.nan) + row.get(NOISE, math.nan))]
    if not measured:
        raise UnidentifiedError(
            f"these rows have no {NOISE}: train with train.noise_scale=true and train.accumulation of 2 or more"
        )
    used = measured[-max(1, round(last * len(measured))) :]
    number = min(BLOCKS, len(used) // SHORTEST)
    if number < FEWEST_BLOCKS:
        raise UnidentifiedError(
            f"{len(used)} updates are too few for a noise scale with an interval: measure "
            f"{math.ceil(FEWEST_BLOCKS * SHORTEST / last)} or more"
        )
    size = len(used) // number
    values = np.array([[row[NOISE], row[SIGNAL]] for row in used[-number * size :]], np.float64)
    means = values.reshape(number, size, 2).mean(axis=1)
    tokens = used[-1]["tokens_seen"] / used[-1]["step"]
    return _ratio(means, tokens, len(used), confidence)


def _ratio(means: Float[np.ndarray, "blocks 2"], tokens: float, updates: int, confidence: float) -> Estimate:
    """`tokens` times the mean of the first column over that of the second, with Fieller's interval."""
    number = len(means)
    noise, signal = means.mean(axis=0).tolist()
    spread = np.cov(means, rowvar=False) / number * stats.t.ppf((1 + confidence) / 2, number - 1) ** 2
    (noises, both), (_, signals) = spread.tolist()
    curve = signal**2 - signals
    if signal <= 0 or curve <= 0:
        least = max(0.0, tokens * noise / (max(signal, 0.0) + math.sqrt(signals)))
        raise UnidentifiedError(
            f"over {updates} updates of {tokens:,.0f} tokens the gradient cannot be told from its noise, so that the "
            f"noise scale has no upper end (it is about {least:,.0f} tokens or more): measure more updates, or larger "
            "batches"
        )
    middle = (noise * signal - both) / curve
    half = math.sqrt(max(0.0, middle**2 - (noise**2 - noises) / curve))
    low, high = max(0.0, middle - half), max(0.0, middle + half)
    return Estimate(tokens * max(0.0, noise / signal), tokens * low, tokens * high)


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The noise scale of a run as `summary.json` holds it: tokens and their interval, or why there is none."""
    try:
        found = critical_batch(rows)
    except UnidentifiedError as reason:
        return {TOKENS: None, LOW: None, HIGH: None, REFUSED: str(reason)}
    return {TOKENS: round(found.value, 1), LOW: round(found.low, 1), HIGH: round(found.high, 1)}


def sentence(summary: Mapping[str, Any]) -> str:
    """What a summary says of the noise scale, in words; nothing where it was not measured."""
    if REFUSED in summary:
        return f"gradient noise scale: {summary[REFUSED]}"
    if summary.get(TOKENS) is None:
        return ""
    own = summary["tokens_seen"] / summary["step"]
    return (
        f"gradient noise scale: {summary[TOKENS]:,.0f} tokens ({summary[LOW]:,.0f} to {summary[HIGH]:,.0f}) over the "
        f"last {LAST:.0%} of the run, a batch has {own:,.0f}"
    )


# --- from runs with several batches -----------------------------------------------------------------------------------


class Reached(NamedTuple):
    """How a run came to the target: its raw tokens an update, and the updates that it took."""

    batch: float
    steps: float


@dataclass(frozen=True)
class TradeOff:
    """Updates `S` and tokens `E` to one loss: `(S / S_min - 1) (E / E_min - 1) = 1`.

    Attributes:
      critical: `E_min / S_min` tokens: the batch at which both are twice their least.
      min_steps: `S_min`, updates with a batch without end.
      min_tokens: `E_min`, tokens with the smallest batch.
      scatter: standard deviation of log E about the curve, per degree of freedom.
      runs: what it was fitted to.
      target: the loss, where it is known.
    """

    critical: Estimate
    min_steps: Estimate
    min_tokens: Estimate
    scatter: float
    runs: tuple[Reached, ...]
    target: float | None = None

    def steps(self, batch: float) -> float:
        """Updates that a batch of so many tokens needs."""
        return self.min_steps.value * (1 + self.critical.value / batch)

    def sentence(self) -> str:
        """In words."""
        found = self.critical
        to = "" if self.target is None else f" to a loss of {self.target:.4g}"
        return (
            f"critical batch{to}: {found.value:,.0f} tokens ({found.low:,.0f} to {found.high:,.0f}), from "
            f"{len(self.runs)} runs with batches of {min(self.runs).batch:,.0f} to {max(self.runs).batch:,.0f}"
        )


def trade_off(
    runs: Sequence[Reached],
    target: float | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
) -> TradeOff:
    """The curve through runs that reached one loss, by least squares in log tokens, with bootstrap intervals.

    On the curve `E = E_min (1 + B / B_crit)`: of `B_crit` candidates are tried, `E_min` follows from each.

    Raises:
      UnidentifiedError: fewer than four batches, too narrow a range of them, or all of them on one side of the critical
        one.
    """
    batch, steps = np.array(runs, np.float64).reshape(-1, 2).T
    different = np.unique(np.round(np.log(batch), 6))
    range_ = batch.max() / batch.min() if len(batch) else 1.0
    if len(different) < FEWEST_BATCHES or range_ < NARROWEST:
        raise UnidentifiedError(
            f"{len(different)} batches, the largest {range_:.3g} times the smallest, do not show how tokens grow with "
            f"the batch: reach the loss with {FEWEST_BATCHES} or more, over a factor of {NARROWEST:g} or more"
        )
    drawn = weights(sampling.draws, len(batch), sampling.generator())
    fits, inside = _fitted(np.concatenate([np.ones((1, len(batch))), drawn]), batch, steps)
    if not inside[0]:
        below = fits[0, 0] > np.log(batch).mean()
        side, remedy = ("below", "larger") if below else ("above", "smaller")
        raise UnidentifiedError(
            f"all batches from {batch.min():,.0f} to {batch.max():,.0f} tokens are far {side} the critical one: try "
            f"{remedy} ones"
        )
    sound = kept(inside[1:], "the critical batch lies far outside those tried", "try a wider range, or more seeds")
    freedom = len(batch) - 2
    log_critical, log_tokens = (
        interval(fits[0, column], fits[1:][sound, column], freedom, sampling.confidence) for column in (0, 1)
    )
    log_steps = interval(fits[0, 1] - fits[0, 0], (fits[1:, 1] - fits[1:, 0])[sound], freedom, sampling.confidence)
    left = np.log(steps * batch) - fits[0, 1] - np.log1p(batch / math.exp(fits[0, 0]))
    scatter = math.sqrt(float(left @ left) / freedom)
    return TradeOff(_exp(log_critical), _exp(log_steps), _exp(log_tokens), scatter, tuple(runs), target)


def _exp(found: Estimate) -> Estimate:
    return Estimate(math.exp(found.value), math.exp(found.low), math.exp(found.high))


def _fitted(
    weight: Float[np.ndarray, "draws runs"], batch: Float[np.ndarray, " runs"], steps: Float[np.ndarray, " runs"]
) -> tuple[Float[np.ndarray, "draws 2"], Any]:
    """log B_crit and log E_min of each draw, and whether the best candidate is not the first or the last."""
    candidates = np.linspace(math.log(batch.min() / REACH), math.log(batch.max() * REACH), GRID)
    left = np.log(steps * batch) - np.log1p(batch / np.exp(candidates)[:, None])
    total = weight.sum(axis=1, keepdims=True)
    squares = weight @ (left**2).T - (weight @ left.T) ** 2 / total
    best = squares.argmin(axis=1)
    inside = (best > 0) & (best < GRID - 1)
    rows, middle = np.arange(len(weight)), best.clip(1, GRID - 2)
    before, at, after = (squares[rows, middle + step] for step in (-1, 0, 1))
    bend = before - 2 * at + after
    shift = np.where(inside & (bend > 0), (before - after) / np.where(bend > 0, 2 * bend, 1.0), 0.0)
    log_critical = candidates[best] + shift.clip(-1, 1) * (candidates[1] - candidates[0])
    own = np.log(steps * batch) - np.log1p(batch / np.exp(log_critical)[:, None])
    log_tokens = (weight * own).sum(axis=1) / total[:, 0]
    return np.stack([log_critical, log_tokens], axis=1), inside


def reached(
    rows: Sequence[Mapping[str, Any]],
    curves: Mapping[str, Mapping[str, np.ndarray]],
    *,
    target: float | None = None,
    measure: str = "heldout_loss",
) -> tuple[tuple[Reached, ...], float]:
    """When the cells of a sweep over batches came to one loss; of each batch the learning rate that came there first.

    Args:
      rows: of a sweep (`research.sweeps.rows.rows_of`): `id`, `point`, `step` and `tokens_seen`.
      curves: of its cells by id (`curves_of`): `heldout_step` and `heldout_loss`, or `step` and `loss`.
      target: the loss; none: the lowest that all batches reach.
      measure: `heldout_loss`, or `loss` of the training batches, smoothed.

    Returns:
      The runs, one a seed, for `trade_off`; and the target.

    Raises:
      UserError: no run has the measure, or a batch does not reach the target, or all of its curve lies below it.
    """
    place = "heldout_step" if measure.startswith("heldout") else "step"
    found: dict[float, dict[Any, list[Mapping[str, np.ndarray]]]] = {}
    for row in rows:
        curve = curves.get(row["id"], {})
        if row.get("step") and len(curve.get(measure, ())) > 1:
            batch = float(row["tokens_seen"] / row["step"])
            found.setdefault(batch, {}).setdefault(row["point"].get(RATE), []).append(curve)
    if not found:
        raise UserError(f"no run has a curve of {measure}: lower train.evaluate_every, or take measure='loss'")
    if target is None:
        # Of each batch the best rate counts, of its seeds the worst.
        target = max(
            min(max(float(curve[measure].min()) for curve in seeds) for seeds in rates.values())
            for rates in found.values()
        )
    runs: list[Reached] = []
    for batch, rates in sorted(found.items()):
        times = [[_steps_to(curve[place], curve[measure], target) for curve in seeds] for seeds in rates.values()]
        known = [np.array(steps, np.float64) for steps in times if None not in steps]
        if not known:
            raise UserError(f"no learning rate with a batch of {batch:,.0f} tokens reaches {target:.4g}: raise target")
        if min(map(np.min, known)) <= 0:
            raise UserError(f"the first {measure} of {batch:,.0f} tokens a batch is below {target:.4g}: lower target")
        fastest = min(known, key=lambda steps: float(np.log(steps).mean()))
        runs += [Reached(batch, steps) for steps in fastest.tolist()]
    return tuple(runs), target


def _steps_to(steps: Float[np.ndarray, " points"], losses: Float[np.ndarray, " points"], target: float) -> float | None:
    """Updates until a loss was first reached, between two points in log updates; 0: before the first, none: never."""
    least = np.minimum.accumulate(losses)
    if least[-1] > target:
        return None
    place = int(np.argmax(least <= target))
    if place == 0:
        return 0.0
    share = (least[place - 1] - target) / (least[place - 1] - least[place])
    return float(np.exp((1 - share) * math.log(steps[place - 1]) + share * math.log(steps[place])))

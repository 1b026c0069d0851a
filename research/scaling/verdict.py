"""Verdicts on ablations: paired by seed, with an effect's interval, tests, and what would settle what is open."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from research.errors import UserError

SIGNIFICANCE, POWER = 0.05, 0.8
EXACT_PAIRS = 16  # up to here all 2^pairs signs are tried
DRAWS, CHUNK = 100_000, 10_000
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Verdict:
    """A change against its baseline.

    Attributes:
      name: of the change.
      against: the baseline's name.
      effect: mean over seeds of the change's measure less the baseline's.
      low: lower end of the effect's interval, by Student's t over pairs.
      high: upper end.
      deviation: standard deviation of the paired differences.
      seeds: pairs.
      p: of the paired t test, two-sided.
      p_permutation: of the test that flips the signs of differences, two-sided.
      p_adjusted: of the t test, after Holm's correction for all comparisons of the question.
      threshold: of p, for this comparison after the correction.
      significance: of the question as a whole.
      verdict: `better`, `worse`, `equal` (within the margin) or `inconclusive`.
      more_seeds: how many more would settle it, none where it is settled or no number below a thousand would.
      margin: below which a difference does not matter; 0 where none was given.
      unit: of the measure.
    """

    name: str
    against: str
    effect: float
    low: float
    high: float
    deviation: float
    seeds: int
    p: float
    p_permutation: float
    p_adjusted: float
    threshold: float
    significance: float
    verdict: str
    more_seeds: int | None
    margin: float
    unit: str

    def sentence(self) -> str:
        """In words."""
        of = f" {self.unit}" if self.unit else ""
        found = f"{self.low:+.4g} to {self.high:+.4g}, {self.seeds} paired seeds, p = {self.p_adjusted:.2g}"
        size = f"{self.effect:+.4g}{of} ({found})"
        if self.verdict in ("better", "worse"):
            return f"{self.name} is {self.verdict} than {self.against}: {size}"
        if self.verdict == "equal":
            return f"{self.name} differs from {self.against} by less than {self.margin:g}{of}: {size}"
        largest = max(abs(self.low), abs(self.high))
        if self.more_seeds is None:
            settle = f"not even {MOST_SEEDS} seeds would settle an effect this small; it is below {largest:.2g}{of}"
        else:
            settle = (
                f"{self.more_seeds} more {'seed' if self.more_seeds == 1 else 'seeds'} would settle it with "
                f"{POWER:.0%} power, if effect and spread ({self.deviation:.2g}) are as seen"
            )
        return f"{self.name} against {self.against} is inconclusive: {size}; {settle}"

    def to_json(self) -> dict[str, Any]:
        """All attributes and the sentence."""
        return {**vars(self), "sentence": self.sentence()}


def verdicts(
    measured: Mapping[str, Mapping[int, float]],
    baseline: str,
    *,
    higher_is_better: bool = False,
    significance: float = SIGNIFICANCE,
    margin: float = 0.0,
    unit: str = "",
    seed: int = 0,
) -> list[Verdict]:
    """Each change against the baseline.

    Args:
      measured: by change (the baseline among them), the measure by seed.
      significance: chance of any false verdict among all comparisons (Holm 1979).
      margin: a difference that does not matter; a change whose interval lies within it is called equal.
      unit: of the measure, for sentences.
      seed: of the permutation test where pairs are too many to try all signs.

    Raises:
      UserError: no such baseline, nothing to compare, seeds that are not the same, or fewer than two.
    """
    if baseline not in measured:
        raise UserError(f"there is no baseline {baseline!r}: measured are {', '.join(measured)}")
    changes = [name for name in measured if name != baseline]
    if not changes:
        raise UserError(f"only the baseline {baseline!r} is measured: a verdict needs a change beside it")
    differences = {name: paired(measured[name], measured[baseline], name, baseline) for name in changes}
    raw = [_raw(name, baseline, found, significance, margin, unit, seed) for name, found in differences.items()]
    adjusted, thresholds = holm([one.p for one in raw], significance)
    return [
        _decided(replace(one, p_adjusted=p, threshold=threshold), higher_is_better, differences[one.name])
        for one, p, threshold in zip(raw, adjusted, thresholds, strict=True)
    ]


def from_rows(
    rows: Iterable[Mapping[str, Any]], measure: str, change: str, seed: str = "seed"
) -> dict[str, dict[int, float]]:
    """What `verdicts` takes, from rows: the measure by change and seed.

    Args:
      change: the column that says what was changed.

    Raises:
      UserError: a row lacks a column, or two rows have one change and seed.
    """
    found: dict[str, dict[int, float]] = {}
    for number, row in enumerate(rows, 1):
        for name in (measure, change, seed):
            if row.get(name) is None:
                raise UserError(
                    f"row {number} has no {name!r}: verdicts need the measure, the change and the seed of each run"
                )
        value, key = row[measure], int(row[seed])
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UserError(f"row {number}, column {measure!r} is {value!r}: it must be a finite number")
        of = found.setdefault(str(row[change]), {})
        if key in of:
            raise UserError(f"{row[change]!r} was run twice with seed {key}: keep one, or give the other its own seed")
        of[key] = float(value)
    return found


def paired(
    changed: Mapping[int, float], baseline: Mapping[int, float], name: str, against: str
) -> Float[np.ndarray, " pairs"]:
    """Differences by seed, change less baseline.

    Raises:
      UserError: the two were not run with the same seeds, or with fewer than two.
    """
    alone = sorted(set(changed) ^ set(baseline))
    if alone:
        raise UserError(
            f"{name!r} and {against!r} are unpaired: seeds {', '.join(map(str, alone))} were run for one alone; run "
            "them for both"
        )
    if len(changed) < 2:
        raise UserError(
            f"{name!r} and {against!r} were run with {len(changed)} seed: noise is unknown below two, run more"
        )
    return np.array([changed[seed] - baseline[seed] for seed in sorted(changed)], dtype=np.float64)


def permutation(differences: Float[np.ndarray, " pairs"], seed: int = 0) -> float:
    """Two-sided p of a mean as large under random signs: exact up to sixteen pairs, else over drawn signs.

    With n pairs no p below 2 / 2^n exists, so that five pairs cannot reach 0.05.
    """
    pairs, observed = len(differences), abs(float(differences.sum()))
    enough = observed * (1 - 1e-12) - 1e-300
    if pairs <= EXACT_PAIRS:
        numbers = np.arange(2 ** (pairs - 1), dtype=np.int64)  # the other half mirrors it
        sums = np.full(len(numbers), differences[-1])
        for place in range(pairs - 1):
            sums += np.where(numbers >> place & 1, -differences[place], differences[place])
        return float((np.abs(sums) >= enough).mean())
    generator, hits = np.random.default_rng(seed), 0
    for _ in range(DRAWS // CHUNK):
        signs: Bool[np.ndarray, "draws pairs"] = generator.random((CHUNK, pairs)) < 0.5
        hits += int((np.abs(np.where(signs, differences, -differences).sum(axis=1)) >= enough).sum())
    return (hits + 1) / (DRAWS + 1)


def holm(p: Sequence[float], significance: float = SIGNIFICANCE) -> tuple[list[float], list[float]]:
    """Adjusted p values and the threshold that each raw one is held to (Holm 1979)."""
    order = sorted(range(len(p)), key=lambda place: p[place])
    adjusted, thresholds, most = [0.0] * len(p), [0.0] * len(p), 0.0
    for rank, place in enumerate(order):
        left = len(p) - rank
        most = max(most, min(1.0, left * p[place]))
        adjusted[place], thresholds[place] = most, significance / left
    return adjusted, thresholds


def seeds_needed(effect: float, deviation: float, significance: float, power: float = POWER) -> int | None:
    """Pairs at which a paired t test finds such an effect with such power; none if a thousand do not suffice."""
    if not deviation:
        return 2
    ratio = abs(effect) / deviation

    def enough(pairs: int) -> bool:
        critical = stats.t.ppf(1 - significance / 2, pairs - 1)
        shift = ratio * math.sqrt(pairs)
        # The tail on the wrong side is below one in forty of the power wherever that reaches 80 %.
        return bool(stats.nct.sf(critical, pairs - 1, shift) >= power)

    if not ratio or not enough(MOST_SEEDS):
        return None
    low, high = 1, MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _raw(
    name: str,
    against: str,
    found: Float[np.ndarray, " pairs"],
    significance: float,
    margin: float,
    unit: str,
    seed: int,
) -> Verdict:
    """Effect, interval and tests; no decision yet."""
    pairs, effect, deviation = len(found), float(found.mean()), float(found.std(ddof=1))
    if deviation <= 1e-12 * float(np.abs(found).max()):
        raise UserError(
            f"{name!r} differs from {against!r} by the same {effect:g} for every seed: seeds that change nothing are "
            "no repetitions; vary the seed of what is random"
        )
    error = deviation / math.sqrt(pairs)
    reach = float(stats.t.ppf(1 - significance / 2, pairs - 1)) * error
    p = float(2 * stats.t.sf(abs(effect) / error, pairs - 1))
    return Verdict(
        name=name,
        against=against,
        effect=effect,
        low=effect - reach,
        high=effect + reach,
        deviation=deviation,
        seeds=pairs,
        p=p,
        p_permutation=permutation(found, seed),
        p_adjusted=p,
        threshold=significance,
        significance=significance,
        verdict="inconclusive",
        more_seeds=None,
        margin=margin,
        unit=unit,
    )


def _decided(one: Verdict, higher_is_better: bool, found: Float[np.ndarray, " pairs"]) -> Verdict:
    if -one.margin < one.low and one.high < one.margin:
        return replace(one, verdict="equal")
    if one.p_adjusted <= one.significance:
        return replace(one, verdict="better" if (one.effect > 0) == higher_is_better else "worse")
    needed = seeds_needed(one.effect, one.deviation, one.threshold)
    return replace(one, more_seeds=None if needed is None else max(1, needed - len(found)))

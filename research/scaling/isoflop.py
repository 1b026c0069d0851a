"""Hoffmann's second approach: at each budget a parabola in log N, whose minimum is the size that the budget calls for.

Intervals are of residuals, not of runs: a budget has a handful of sizes, of which none can be spared. Residuals of all
budgets, relative to the loss and scaled by leverage and by Student's t, are drawn with replacement and fitted anew.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from research.scaling import bootstrap
from research.scaling.answers import Answer, Optimum, Parabola
from research.scaling.bootstrap import Estimate, Sampling, UnidentifiedError
from research.scaling.parametric import exponential
from research.scaling.rows import Runs

SIZES, BUDGETS, FREEDOM = 3, 3, 3
APART, WIDEST = 0.2, 0.4  # in log C: budgets are told apart by a gap, and are no budgets if wider
POINTS = 41
FORM = "log N* = k_N + a log C, log D* = k_D + b log C, from minima of parabolas in log N"


@dataclass(frozen=True)
class Budget:
    """Runs of one budget.

    Attributes:
      flops: geometric mean of theirs.
      rows: which runs.
      log_n: log N, about `middle`.
      middle: mean log N.
      design: of the parabola, `[runs, 3]`.
      inverse: its pseudo-inverse.
      loss: measured.
      log_d: slope and level of log D in log N at this budget, `(level at middle, slope)`.
    """

    flops: float
    rows: Int[np.ndarray, " runs"]
    log_n: Float[np.ndarray, " runs"]
    middle: float
    design: Float[np.ndarray, "runs 3"]
    inverse: Float[np.ndarray, "3 runs"]
    loss: Float[np.ndarray, " runs"]
    log_d: tuple[float, float]

    @classmethod
    def of(cls, runs: Runs, rows: Int[np.ndarray, " runs"]) -> "Budget":
        """The runs of some rows, as one budget."""
        log_n = np.log(runs.parameters[rows])
        middle = float(log_n.mean())
        x = log_n - middle
        design = np.stack([np.ones_like(x), x, x**2], axis=1)
        level, slope = np.polynomial.polynomial.polyfit(x, np.log(runs.tokens[rows]), 1)
        flops = float(np.exp(np.log(runs.flops[rows]).mean()))
        return cls(
            flops, rows, x, middle, design, np.linalg.pinv(design), runs.loss[rows], (float(level), float(slope))
        )

    def minimum(
        self, loss: Float[np.ndarray, "draws runs"]
    ) -> tuple[Float[np.ndarray, " draws"], Float[np.ndarray, " draws"]]:
        """log N where the parabola is least, NaN where it has no minimum among the sizes; and the loss there."""
        level, slope, bend = (loss @ self.inverse.T).T
        curved = bend > 0
        place = np.where(curved, -slope / np.where(curved, 2 * bend, 1.0), np.nan)
        inside = (place >= self.log_n.min()) & (place <= self.log_n.max())
        return np.where(inside, place + self.middle, np.nan), level + slope * place / 2

    def tokens(self, log_n: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """log D that goes with log N at this budget."""
        return self.log_d[0] + self.log_d[1] * (log_n - self.middle)


def group(runs: Runs) -> tuple[list[Budget], list[str]]:
    """Budgets with enough sizes, and what was left out.

    Raises:
      UnidentifiedError: fewer than three budgets have three sizes.
    """
    order = np.argsort(runs.flops, kind="stable")
    cuts = np.flatnonzero(np.diff(np.log(runs.flops[order])) > APART) + 1
    found, notes = [], []
    for rows in np.split(order, cuts):
        if np.ptp(np.log(runs.flops[rows])) > WIDEST:
            raise UnidentifiedError(
                f"FLOPs of the runs from {runs.flops[rows[0]]:.2e} to {runs.flops[rows[-1]]:.2e} form no budgets: "
                "isoFLOP parabolas need runs of equal compute at several sizes"
            )
        sizes = len(np.unique(np.round(np.log(runs.parameters[rows]), 3)))
        if sizes < SIZES:
            notes.append(f"the budget of {runs.flops[rows].mean():.2e} FLOPs has {sizes} sizes and was left out")
        else:
            found.append(Budget.of(runs, rows[np.argsort(runs.parameters[rows], kind="stable")]))
    if len(found) < BUDGETS:
        raise UnidentifiedError(
            f"{len(found)} budgets have {SIZES} sizes or more: exponents need {BUDGETS} such budgets"
        )
    return found, notes


def answer(runs: Runs, asked: Sequence[float], sampling: Sampling) -> Answer:
    """Parabolas, exponents a and b, and optima for budgets.

    Raises:
      UnidentifiedError: a parabola has no minimum among its sizes, or there are too few sizes or budgets.
    """
    budgets, notes = group(runs)
    minima = [budget.minimum(budget.loss[None]) for budget in budgets]
    for budget, (place, _) in zip(budgets, minima, strict=True):
        if np.isnan(place[0]):
            raise UnidentifiedError(_no_minimum(runs, budget))
    log_c = np.log([budget.flops for budget in budgets])
    best = np.array([float(place[0]) for place, _ in minima])
    losses, residual = _redrawn(budgets, sampling)
    drawn = np.stack([budget.minimum(loss)[0] for budget, loss in zip(budgets, losses, strict=True)], axis=1)
    remedy = "add sizes on both sides of the minimum, or more seeds"
    drawn = drawn[bootstrap.kept(np.isfinite(drawn).all(axis=1), "a parabola loses its minimum", remedy)]
    sizes = np.concatenate([best[None], drawn])
    tokens = np.stack([budget.tokens(sizes[:, place]) for place, budget in enumerate(budgets)], axis=1)
    (n_lines, scale), (d_lines, _) = _lines(log_c, sizes), _lines(log_c, tokens)
    if scale > 1:
        notes.append(
            f"minima scatter {scale:.1f} times as much as their own noise explains, and intervals are wider by it"
        )
    between, centre = _percentiles(sampling.confidence), log_c.mean()
    optima = []
    for flops in asked:
        x = float(np.log(flops) - centre)
        log_n, log_d = (between(lines[:, 0] + lines[:, 1] * x) for lines in (n_lines, d_lines))
        optima.append(Optimum(float(flops), exponential(log_n), exponential(log_d)))
    parabolas = [
        Parabola(
            budget.flops,
            tuple(runs.names[row] for row in budget.rows.tolist()),
            _curve(budget),
            exponential(between(sizes[:, i])),
            float(minima[i][1][0]),
        )
        for i, budget in enumerate(budgets)
    ]
    estimates = {"a": between(n_lines[:, 1]), "b": between(d_lines[:, 1])}
    return Answer(
        approach="isoflop",
        form=FORM,
        count=runs.count,
        runs=sum(len(budget.rows) for budget in budgets),
        estimates=estimates,
        residual=residual,
        optima=optima,
        parabolas=parabolas,
        notes=[*runs.notes, *notes],
    )


def _redrawn(budgets: Sequence[Budget], sampling: Sampling) -> tuple[list[Float[np.ndarray, "draws runs"]], float]:
    """Losses of each budget in each draw; and the standard deviation of the residuals, relative to the loss."""
    fitted = [budget.design @ (budget.inverse @ budget.loss) for budget in budgets]
    freedom = sum(len(budget.rows) - SIZES for budget in budgets)
    if freedom < FREEDOM:
        raise UnidentifiedError(
            f"the parabolas have {freedom} runs beyond the three that each needs, too few to know the noise: add a "
            "fourth size to the budgets"
        )
    relative = [(budget.loss - fit) / fit for budget, fit in zip(budgets, fitted, strict=True)]
    leverage = [np.einsum("ij,ji->i", budget.design, budget.inverse) for budget in budgets]
    deviation = float(np.sqrt(sum((r**2).sum() for r in relative) / freedom))
    scaled = np.concatenate([r / np.sqrt(1 - np.minimum(h, 0.95)) for r, h in zip(relative, leverage, strict=True)])
    scaled -= scaled.mean()
    # Exact fits of three sizes leave zeros that are no noise: the spread is set to what the degrees of freedom say.
    tail = (1 - sampling.confidence) / 2
    scaled *= deviation / max(float(scaled.std()), 1e-300) * stats.t.ppf(tail, freedom) / stats.norm.ppf(tail)
    generator = sampling.generator()
    drawn = [fit * (1 + generator.choice(scaled, size=(sampling.draws, len(fit)))) for fit in fitted]
    return drawn, deviation


def _lines(
    log_c: Float[np.ndarray, " budgets"], places: Float[np.ndarray, "draws budgets"]
) -> tuple[Float[np.ndarray, "draws 2"], float]:
    """Level (at the mean budget) and slope of each row's line, the first row being the measured one; and the scale.

    Where the minima scatter about their line more than their own noise explains, draws are spread by the root of chi
    squared per degree of freedom, as the Particle Data Group does with measurements that disagree.
    """
    x = log_c - log_c.mean()
    design = np.stack([np.ones_like(x), x], axis=1)
    lines = places @ np.linalg.pinv(design).T
    left = places[0] - design @ lines[0]
    chi_squared = float((left**2 / (places[1:].var(axis=0) + 1e-300)).sum())
    scale = max(1.0, float(np.sqrt(chi_squared / (len(x) - 2))))
    return lines[:1] + (lines - lines[:1]) * scale, scale


def _percentiles(confidence: float) -> Callable[[Float[np.ndarray, " draws"]], Estimate]:
    """Of draws whose first is the value: plain percentiles, since the residuals were scaled for how few they are."""
    tail = (1 - confidence) / 2

    def between(draws: Float[np.ndarray, " draws"]) -> Estimate:
        value = float(draws[0])
        low, high = np.quantile(draws[1:], [tail, 1 - tail])
        return Estimate(value, float(min(low, value)), float(max(high, value)))

    return between


def _curve(budget: Budget) -> tuple[tuple[float, float], ...]:
    """Points along a parabola, over the sizes of its runs."""
    x = np.linspace(budget.log_n.min(), budget.log_n.max(), POINTS)
    y = np.polynomial.polynomial.polyval(x, budget.inverse @ budget.loss)
    return tuple((float(np.exp(a + budget.middle)), float(b)) for a, b in zip(x, y, strict=True))


def _no_minimum(runs: Runs, budget: Budget) -> str:
    bend = float((budget.inverse @ budget.loss)[2])
    sizes = np.exp(budget.log_n + budget.middle)
    if bend <= 0:
        return f"losses at {budget.flops:.2e} FLOPs do not curve upwards over their sizes: add sizes on both sides"
    slope = float((budget.inverse @ budget.loss)[1])
    side = "smaller" if -slope / (2 * bend) < budget.log_n.min() else "larger"
    return (
        f"the parabola at {budget.flops:.2e} FLOPs has no minimum among its sizes ({sizes.min():.3g} to "
        f"{sizes.max():.3g}): add {side} sizes"
    )

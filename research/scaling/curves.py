"""Hoffmann's first approach: which size is lowest at each FLOP along the training curves.

At each of many budgets the lowest curve is found, and its size refined by a parabola through it and its neighbours,
since sizes come in steps. Intervals: the runs' own deviations from a smooth surface (a whole curve's at once, as its
points share one run's luck) are dealt anew to the runs, and the envelope is taken again; that the envelope is biased
shows there, too, because the surface's own exponents are known, and is taken off.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from research.scaling import bootstrap
from research.scaling.answers import Answer, Optimum
from research.scaling.bootstrap import Estimate, Sampling, UnidentifiedError
from research.scaling.fit import fit
from research.scaling.forms import Chinchilla, Points
from research.scaling.identify import check_exponents
from research.scaling.parametric import exponential
from research.scaling.rows import Runs

CURVES, ROWS, LEVELS, SAMPLED, FEWEST = 8, 3, 60, 48, 6
THINNED = 7  # places of a curve from one that the surface is fitted to, to the next
MOST_TAKEN = 0.9
FORM = "log N* = k_N + a log C, log D* = k_D + b log C, from the lowest training curve at each C"


@dataclass(frozen=True)
class Bundle:
    """Training curves at the same relative places.

    Attributes:
      log_n: log N of each curve, ascending.
      log_c: log C along each curve, even.
      log_loss: interpolated there.
      factor: log of C / (N D).
    """

    log_n: Float[np.ndarray, " curves"]
    log_c: Float[np.ndarray, "curves places"]
    log_loss: Float[np.ndarray, "curves places"]
    factor: float

    @classmethod
    def of(cls, runs: Runs) -> "Bundle":
        """Curves of runs.

        Raises:
          UnidentifiedError: there are no curves, or too few.
        """
        if runs.curve is None:
            raise UnidentifiedError(
                "minima over training curves need the curves: say with --curve which column tells runs apart"
            )
        found = []
        for number in np.unique(runs.curve):
            rows = np.flatnonzero(runs.curve == number)
            rows = rows[np.argsort(runs.flops[rows], kind="stable")]
            if len(rows) < ROWS or np.ptp(np.log(runs.flops[rows])) < 0.1:
                continue
            log_c = np.linspace(np.log(runs.flops[rows[0]]), np.log(runs.flops[rows[-1]]), SAMPLED)
            loss = np.interp(log_c, np.log(runs.flops[rows]), np.log(runs.loss[rows]))
            found.append((float(np.log(runs.parameters[rows]).mean()), log_c, loss))
        sizes = len({round(size, 3) for size, _, _ in found})
        if sizes < CURVES:
            raise UnidentifiedError(
                f"{sizes} sizes have a training curve of {ROWS} points: an envelope needs {CURVES} or more"
            )
        found.sort(key=lambda curve: curve[0])
        n, c, loss = (np.array([curve[i] for curve in found]) for i in range(3))
        return cls(n, c, loss, float(np.log(runs.flops_factor)))

    def levels(self) -> Float[np.ndarray, " levels"]:
        """log C at which the envelope is looked at: where at least three curves are."""
        ends = np.sort(self.log_c[:, 0])[2], np.sort(self.log_c[:, -1])[-3]
        return np.linspace(*ends, LEVELS)

    def envelope(self, log_loss: Float[np.ndarray, "draws curves places"]) -> tuple[np.ndarray, np.ndarray]:
        """Slope and level of log N* in log C about the mean level, for each draw; NaN where minima are too few."""
        levels = self.levels()
        count = len(log_loss)
        table = np.full((count, len(levels), len(self.log_n)), np.inf)
        for i in range(len(self.log_n)):
            inside = (levels >= self.log_c[i, 0]) & (levels <= self.log_c[i, -1])
            step = self.log_c[i, 1] - self.log_c[i, 0]
            place = (levels[inside] - self.log_c[i, 0]) / step
            left = np.minimum(place.astype(int), SAMPLED - 2)
            share = place - left
            table[:, inside, i] = log_loss[:, i, left] * (1 - share) + log_loss[:, i, left + 1] * share
        best = self._refined(table)
        known = np.isfinite(best)
        x = (levels - levels.mean())[None] + np.zeros_like(best)
        size = known.sum(axis=1)
        enough = size >= FEWEST
        safe = np.maximum(size, 1)
        mean_x, mean_y = (np.where(known, v, 0).sum(axis=1) / safe for v in (x, best))
        over = np.where(known, (x - mean_x[:, None]) ** 2, 0).sum(axis=1)
        slope = np.where(known, (x - mean_x[:, None]) * (best - mean_y[:, None]), 0).sum(axis=1) / np.maximum(
            over, 1e-9
        )
        level = mean_y - slope * mean_x
        return np.where(enough, slope, np.nan), np.where(enough, level, np.nan)

    def _refined(self, table: Float[np.ndarray, "draws levels curves"]) -> Float[np.ndarray, "draws levels"]:
        """log N of the lowest curve at each level, by the parabola through it and its neighbours; NaN at either end."""
        lowest = table.argmin(axis=2)
        inner = lowest.clip(1, table.shape[2] - 2)
        y0, y1, y2 = (np.take_along_axis(table, (inner + k)[..., None], 2)[..., 0] for k in (-1, 0, 1))
        x0, x1, x2 = (self.log_n[inner + k] for k in (-1, 0, 1))
        whole = (lowest == inner) & np.isfinite(y0) & np.isfinite(y2) & (x1 > x0) & (x2 > x1)
        first = np.divide(y1 - y0, x1 - x0, out=np.zeros_like(y1), where=whole)
        second = np.divide(y2 - y1, x2 - x1, out=np.zeros_like(y1), where=whole)
        bend = np.divide(second - first, x2 - x0, out=np.ones_like(y1), where=whole)
        place = (x0 + x1) / 2 - first / (2 * np.where(bend > 0, bend, 1.0))
        return np.where(whole & (bend > 0), np.clip(place, x0, x2), np.nan)


def answer(runs: Runs, asked: Sequence[float], sampling: Sampling) -> Answer:
    """Exponents a and b, and optima for budgets.

    Raises:
      UnidentifiedError: there are too few curves, or no minimum lies between the sizes.
    """
    bundle = Bundle.of(runs)
    slope, level = bundle.envelope(bundle.log_loss[None])
    if not np.isfinite(slope[0]):
        raise UnidentifiedError(
            "the lowest training curve is the smallest or the largest size at nearly every budget: add sizes on that "
            "side, or train them longer"
        )
    surface, taken, truth = _surface(bundle, runs)
    drawn = bundle.envelope(surface + _dealt(bundle.log_loss - surface, taken, sampling))
    sound = bootstrap.kept(np.isfinite(drawn[0]), "the envelope loses its minima", "add curves of other sizes")
    centre = float(bundle.levels().mean())
    confidence = sampling.confidence
    a = _corrected(float(slope[0]), drawn[0][sound] - truth[0], confidence)
    optima = []
    for flops in asked:
        x = float(np.log(flops)) - centre
        gap = drawn[1][sound] + drawn[0][sound] * x - (truth[1] + truth[0] * x)
        size = _corrected(float(level[0] + slope[0] * x), gap, confidence)
        rest = float(np.log(flops)) - bundle.factor
        tokens = Estimate(rest - size.value, rest - size.high, rest - size.low)
        optima.append(Optimum(float(flops), exponential(size), exponential(tokens)))
    b = Estimate(1 - a.value, 1 - a.high, 1 - a.low)
    return Answer(
        approach="curves",
        form=FORM,
        count=runs.count,
        runs=len(bundle.log_n),
        estimates={"a": a, "b": b},
        residual=float((bundle.log_loss - surface).std()),
        optima=optima,
        notes=[*runs.notes, "a curve that decays later is worse than a run that was planned so short: minima move"],
    )


def _surface(
    bundle: Bundle, runs: Runs
) -> tuple[Float[np.ndarray, "curves places"], Float[np.ndarray, " curves"], tuple[float, float]]:
    """A smooth surface through all curves; the share of the variance of each curve's luck that it took up, if luck is
    one number a run; and slope and level of the surface's own optimum.
    """
    log_n = np.repeat(bundle.log_n, SAMPLED)
    log_d = bundle.log_c.ravel() - bundle.factor - log_n
    points = Points.of(np.exp(log_n), np.exp(log_d))
    form = Chinchilla()
    some = np.tile(np.arange(SAMPLED) % THINNED == 0, len(bundle.log_n))
    fitted = points.at(log_n[some], log_d[some])
    theta = fit(form, fitted, bundle.log_loss.ravel()[some], np.inf)
    check_exponents(form, theta, points)
    predicted, jacobian = form.predict(theta[None], points)
    basis = np.linalg.qr(jacobian[0])[0].reshape(*bundle.log_c.shape, -1)
    of_runs = basis.sum(axis=1) / np.sqrt(SAMPLED)
    shared = of_runs @ of_runs.T
    taken = 2 * np.diag(shared) - (shared**2).sum(axis=1)
    slope = float(form.natural(theta[None], points)["a"][0])
    middle = float(bundle.levels().mean())
    best, _ = form.optimum(theta[None], points, float(np.exp(middle)), runs.flops_factor)
    return predicted[0].reshape(bundle.log_c.shape), taken, (slope, float(best[0]))


def _dealt(
    residuals: Float[np.ndarray, "curves places"], taken: Float[np.ndarray, " curves"], sampling: Sampling
) -> Float[np.ndarray, "draws curves places"]:
    """Whole residual curves dealt to the runs with replacement and random sign, scaled for what the surface took up."""
    generator, count = sampling.generator(), len(residuals)
    tail, freedom = (1 - sampling.confidence) / 2, count - Chinchilla.num_coefficients
    widened = stats.t.ppf(tail, freedom) / stats.norm.ppf(tail)
    scaled = residuals * (widened / np.sqrt(1 - np.minimum(taken, MOST_TAKEN)))[:, None]
    chosen = generator.integers(count, size=(sampling.draws, count))
    return scaled[chosen] * generator.choice(np.array([-1.0, 1.0]), size=(sampling.draws, count, 1))


def _corrected(value: float, gaps: Float[np.ndarray, " draws"], confidence: float) -> Estimate:
    """The value less its bias, with the basic bootstrap's interval."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(gaps, [tail, 1 - tail])
    centre = value - float(np.median(gaps))
    return Estimate(centre, float(value - high), float(value - low))

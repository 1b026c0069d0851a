"""Fits a law to runs by Huber's loss on logarithms: many starts, or many resamples, in one array program."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from research.scaling.forms import Form, Points

HUBER = 1e-3  # Hoffmann et al. 2022, appendix D.3
SCREENING, KEPT = 12, 24
MAX_ITERATIONS, MAX_HALVINGS = 400, 30
FLAT = 1e-9  # largest component of the gradient, relative to Huber's delta times the number of runs
ARMIJO = 1e-4
RIDGE, TINY = 1e-9, 1e-30

Evaluation = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Fitted:
    """Minima of a batch of problems.

    Attributes:
      theta: coefficients.
      objective: sum over runs of Huber's loss at the minimum.
      converged: whether the search ended by itself, at finite numbers.
    """

    theta: Float[np.ndarray, "fits coefficients"]
    objective: Float[np.ndarray, " fits"]
    converged: Bool[np.ndarray, " fits"]


def huber(
    residuals: Float[np.ndarray, "..."], delta: float
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Huber's loss (r^2 / 2 within delta, straight beyond it) and its derivative; plain squares for delta = inf."""
    slope = np.clip(residuals, -delta, delta)
    return slope * (residuals - slope / 2), slope


def fit(
    form: Form, points: Points, log_loss: Float[np.ndarray, " runs"], delta: float = HUBER
) -> Float[np.ndarray, " coefficients"]:
    """The best coefficients from the form's grid of starts.

    All starts are improved a little, the best go on to the end. The objective is the sum over runs, not the mean: a
    mean makes gradients so small that an optimizer's usual tolerance stops it early (Besiroglu et al. 2024).
    """
    starts = form.starts(points, log_loss)
    screened = minimise(form, points, starts, log_loss[None], delta=delta, iterations=SCREENING)
    order = np.argsort(np.nan_to_num(screened.objective, nan=np.inf), kind="stable")
    ended = minimise(form, points, screened.theta[order[:KEPT]], log_loss[None], delta=delta)
    return ended.theta[int(np.nan_to_num(ended.objective, nan=np.inf).argmin())]


def minimise(
    form: Form,
    points: Points,
    starts: Float[np.ndarray, "fits coefficients"],
    log_loss: Float[np.ndarray, "rows runs"],
    weights: Float[np.ndarray, "rows_of_weights runs"] | None = None,
    delta: float = HUBER,
    iterations: int = MAX_ITERATIONS,
    tolerance: float = 0.0,
) -> Fitted:
    """Minimises sum_i w_i Huber(prediction_i - log L_i) from each row of starts, by BFGS with derivatives by hand.

    The first inverse Hessian is Gauss and Newton's, so that no coefficient needs a scale. With at most seven
    coefficients the limited memory of L-BFGS would save nothing.

    Args:
      log_loss: one row for all problems, or one each (bootstraps of residuals).
      weights: likewise (bootstraps of runs); ones where none are given.
      tolerance: a search also ends where a step gains less than this share of the objective.
    """
    problem = _Problem(form, points, log_loss, weights, delta, len(starts))
    active = np.arange(len(starts))
    theta, ended = starts.copy(), np.zeros(len(starts), dtype=bool)
    value, slope, inverse = problem.evaluate(theta, active)
    fresh = np.ones(len(starts), dtype=bool)
    enough = FLAT * min(delta, 1.0) * len(points)
    for _ in range(iterations):
        step = -np.einsum("kij,kj->ki", inverse[active], slope[active])
        uphill = np.einsum("ki,ki->k", step, slope[active]) >= 0
        step[uphill] = -slope[active[uphill]]
        moved, new, there = problem.search(theta[active], step, value[active], slope[active], active)
        new_value, new_slope, newton = there
        updated = _updated(inverse[active], new - theta[active], new_slope - slope[active])
        # A search that fails is begun anew with Gauss and Newton's matrix; one that fails even so has arrived.
        over = (np.abs(new_slope).max(axis=1) < enough) | (~moved & fresh[active])
        over |= moved & (value[active] - new_value < tolerance * new_value)
        inverse[active] = np.where(moved[:, None, None], updated, newton)
        fresh[active] = ~moved
        theta[active], value[active], slope[active], ended[active] = new, new_value, new_slope, over
        active = active[~over]
        if not len(active):
            break
    return Fitted(theta, value, ended & np.isfinite(value) & np.isfinite(theta).all(axis=1))


class _Problem:
    """The objectives of a batch of problems over the same points."""

    def __init__(
        self,
        form: Form,
        points: Points,
        log_loss: Float[np.ndarray, "rows runs"],
        weights: Float[np.ndarray, "rows_of_weights runs"] | None,
        delta: float,
        count: int,
    ) -> None:
        self.form, self.points, self.delta = form, points, delta
        self.log_loss = np.broadcast_to(log_loss, (count, len(points)))
        self.weights = np.broadcast_to(np.ones((1, 1)) if weights is None else weights, (count, len(points)))

    def evaluate(self, theta: Float[np.ndarray, "fits coefficients"], rows: Int[np.ndarray, " fits"]) -> Evaluation:
        """Objective `[fits]`, gradient, and Gauss and Newton's inverse Hessian under Huber's weights."""
        predicted, jacobian = self.form.predict(theta, self.points)
        residuals, weights = predicted - self.log_loss[rows], self.weights[rows]
        cost, slope = huber(residuals, self.delta)
        value = (weights * cost).sum(axis=1)
        gradient = np.einsum("kn,knp->kp", weights * slope, jacobian)
        curved = weights if np.isinf(self.delta) else weights * self.delta / np.maximum(np.abs(residuals), self.delta)
        hessian = np.matmul((curved[..., None] * jacobian).swapaxes(1, 2), jacobian)
        ridge = RIDGE * np.einsum("kpp->k", hessian)[:, None, None] + TINY
        return value, gradient, np.linalg.inv(hessian + ridge * np.eye(theta.shape[1]))

    def search(
        self,
        theta: Float[np.ndarray, "fits coefficients"],
        step: Float[np.ndarray, "fits coefficients"],
        value: Float[np.ndarray, " fits"],
        slope: Float[np.ndarray, "fits coefficients"],
        rows: Int[np.ndarray, " fits"],
    ) -> tuple[Bool[np.ndarray, " fits"], Float[np.ndarray, "fits coefficients"], Evaluation]:
        """Halves each step until the objective falls enough (Armijo); says which moved, where to, and what is there."""
        descent = np.einsum("ki,ki->k", step, slope)
        length = np.minimum(1.0, 3.0 / np.maximum(np.abs(step).max(axis=1), 1e-12))
        new, moved = theta.copy(), np.zeros(len(theta), dtype=bool)
        open_ = np.arange(len(theta))
        for _ in range(MAX_HALVINGS):
            trial = theta[open_] + length[open_, None] * step[open_]
            predicted, _ = self.form.predict(trial, self.points)
            cost, _ = huber(predicted - self.log_loss[rows[open_]], self.delta)
            good = (self.weights[rows[open_]] * cost).sum(axis=1) < value[open_] + ARMIJO * length[open_] * descent[
                open_
            ]
            new[open_[good]], moved[open_[good]] = trial[good], True
            open_ = open_[~good]
            length[open_] /= 2
            if not len(open_):
                break
        return moved, new, self.evaluate(new, rows)


def _updated(
    inverse: Float[np.ndarray, "fits coefficients coefficients"],
    gap: Float[np.ndarray, "fits coefficients"],
    turn: Float[np.ndarray, "fits coefficients"],
) -> Float[np.ndarray, "fits coefficients coefficients"]:
    """BFGS's update of the inverse Hessian; none where the curvature along the step is not positive."""
    along = np.einsum("ki,ki->k", gap, turn)
    sound = along > 1e-12 * np.sqrt((gap**2).sum(axis=1) * (turn**2).sum(axis=1)) + 1e-300
    rho = np.where(sound, 1 / np.where(sound, along, 1.0), 0.0)[:, None, None]
    left = np.eye(gap.shape[1]) - rho * gap[:, :, None] * turn[:, None, :]
    return left @ inverse @ left.swapaxes(1, 2) + rho * gap[:, :, None] * gap[:, None, :]

"""The law of data that repeats: what the second, fourth, sixteenth epoch is worth (Muennighoff et al. 2023)."""

from collections.abc import Mapping
from itertools import product
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from research.scaling.forms import Chinchilla, Coefficients, Form, Named, Points, Predicted, Starts, log_sum

CHINCHILLA = Chinchilla()
SMALLEST, LARGEST = -6.0, 12.0  # of the logarithms of the two constants of decay, while a search wanders
MOST_EPOCHS = 50.0  # log of them, likewise


class DataConstrained(Form):
    """L = E + A / N'^alpha + B / D'^beta, where N' and D' are worth less than the N and D that were used.

    D' = U_D (1 + R_D* (1 - exp(-R_D / R_D*))), with U_D distinct tokens and R_D = D / U_D - 1 repetitions; N' likewise,
    with U_N = min(N, what is compute-optimal for U_D tokens) and R_N = N / U_N - 1 (Muennighoff et al. 2023, section
    3.1 and appendix A). All seven coefficients are fitted together.

    Args:
      excess: whether parameters beyond U_N are worth less, too; without it N' = N, and R_N* does not exist.
    """

    name: ClassVar[str] = "data"
    source: ClassVar[str] = "Muennighoff et al. 2023, section 3.1 and appendix A"
    exponents: ClassVar[tuple[str, ...]] = ("alpha", "beta")

    def __init__(self, excess: bool = True) -> None:
        self.excess = excess
        self.num_coefficients = 7 if excess else 6
        self.formula = (
            "L(N, D, U) = E + A / N'^alpha + B / D'^beta, D' = U (1 + R_D* (1 - exp(-(D / U - 1) / R_D*)))"
            + (", N' likewise from U_N and R_N*" if excess else ", N' = N")
        )

    def predict(self, theta: Coefficients, points: Points) -> Predicted:
        """Coefficients: those of Chinchilla's law, then log R_D*, log R_N*."""
        log_a, log_b, log_e, alpha, beta = (column[:, None] for column in theta.T[:5])
        log_d, by_r_d, _ = effective(points.log_unique, points.log_tokens, theta[:, 5, None])
        log_n = np.broadcast_to(points.log_parameters, log_d.shape)
        by_unique = by_r_n = np.zeros_like(log_d)
        inside = np.zeros(log_d.shape, dtype=bool)
        optimal, slopes = self.unique_parameters(theta, points)
        if self.excess:
            inside = optimal < points.log_parameters
            log_n, by_r_n, by_unique = effective(
                np.minimum(optimal, points.log_parameters), points.log_parameters, theta[:, 6, None]
            )
        x, y = log_n - points.centre_parameters, log_d - points.centre_tokens
        total, (first, second, floor) = log_sum(log_a - alpha * x, log_b - beta * y, log_e)
        along_n = -alpha * first
        gradient = [first, second, floor, -x * first, -y * second, -beta * second * by_r_d]
        if self.excess:
            through = along_n * by_unique * inside
            for place, slope in slopes.items():
                gradient[place] = gradient[place] + through * slope
            gradient.append(along_n * by_r_n)
        return total, np.stack(gradient, axis=-1)

    def unique_parameters(
        self, theta: Coefficients, points: Points
    ) -> tuple[Float[np.ndarray, "fits runs"], Mapping[int, Float[np.ndarray, "fits runs"]]]:
        """log U_N before it is limited by N: where alpha A / N^alpha = beta B / U_D^beta; and its derivatives."""
        log_a, log_b, _, alpha, beta = (column[:, None] for column in theta.T[:5])
        safe_a, safe_b = np.maximum(alpha, 1e-3), np.maximum(beta, 1e-3)
        u = points.log_unique[None] - points.centre_tokens
        log_n = (log_a + np.log(safe_a) - log_b - np.log(safe_b) + beta * u) / safe_a
        slopes = {
            0: 1 / safe_a + 0 * u,
            1: -1 / safe_a + 0 * u,
            3: (1 / safe_a - log_n) / safe_a,
            4: (u - 1 / safe_b) / safe_a,
        }
        return log_n + points.centre_parameters, slopes

    def starts(self, points: Points, log_loss: Float[np.ndarray, " runs"]) -> Starts:
        """A thinned grid of Chinchilla's, times constants of decay from 1 to 50 epochs."""
        middle = float(log_loss.mean())
        shares, floor = middle + np.log([0.05, 0.25]), float(log_loss.min()) + np.log([0.5, 0.9])
        decays = (
            list(product(np.log([1.0, 5.0, 20.0]), np.log([2.0, 15.0])))
            if self.excess
            else [(value,) for value in np.log([1.0, 5.0, 20.0, 50.0])]
        )
        grid = product(shares, shares, floor, (0.2, 0.4, 0.8), (0.2, 0.4, 0.8), decays)
        return np.array([(*rest, *decay) for *rest, decay in grid])

    def natural(self, theta: Coefficients, points: Points) -> Named:
        """Chinchilla's names, and R_D*, R_N*: the repetitions after which nearly all of their worth is used."""
        found = dict(CHINCHILLA.natural(theta[:, :5], points))
        found["R_D*"] = np.exp(theta[:, 5])
        if self.excess:
            found["R_N*"] = np.exp(theta[:, 6])
        return found


def effective(
    log_unique: Float[np.ndarray, "..."], log_used: Float[np.ndarray, "..."], log_decay: Float[np.ndarray, "fits 1"]
) -> tuple[Float[np.ndarray, "fits runs"], Float[np.ndarray, "fits runs"], Float[np.ndarray, "fits runs"]]:
    """log of what is worth U (1 + R* (1 - exp(-R / R*))), R = used / U - 1; its slopes in log R* and in log U."""
    decay = np.exp(np.clip(log_decay, SMALLEST, LARGEST))
    repeats = np.expm1(np.clip(log_used - log_unique, 0.0, MOST_EPOCHS))
    ratio = repeats / decay
    left = np.exp(-ratio)
    worth = 1 + decay * -np.expm1(-ratio)
    by_decay = decay * (-np.expm1(-ratio) - ratio * left) / worth
    by_unique = (worth - (repeats + 1) * left) / worth
    return log_unique + np.log(worth), by_decay, by_unique

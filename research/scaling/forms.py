"""Laws that give a run's loss from its size and its data: what they predict, how that changes, what they call optimal.

Every law works in natural logarithms, on a batch of coefficient vectors at once, with derivatives by hand: a thousand
bootstrap refits are one array program. Logarithms of parameters and tokens are taken relative to a centre of the runs,
so that a term and its exponent do not move together; `natural` undoes it.
"""

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np
from jaxtyping import Float

REACH, SWEPT = 12.0, 961  # the numeric optimum looks at N from sqrt(N D) / e^REACH to sqrt(N D) e^REACH
CHUNK = 128

Coefficients = Float[np.ndarray, "fits coefficients"]
Starts = Float[np.ndarray, "starts coefficients"]
Predicted = tuple[Float[np.ndarray, "fits runs"], Float[np.ndarray, "fits runs coefficients"]]  # log loss, slopes
Named = Mapping[str, Float[np.ndarray, " fits"]]
Best = tuple[Float[np.ndarray, " fits"], Float[np.ndarray, " fits"]]  # log N, log loss


@dataclass(frozen=True)
class Points:
    """Where losses were measured, or are asked for.

    Attributes:
      log_parameters: log N.
      log_tokens: log D, of tokens seen.
      log_unique: log of the distinct tokens that were there to be seen; equal to `log_tokens` where nothing repeats.
      centre_parameters: log N that exponents turn about.
      centre_tokens: log D likewise.
    """

    log_parameters: Float[np.ndarray, " runs"]
    log_tokens: Float[np.ndarray, " runs"]
    log_unique: Float[np.ndarray, " runs"]
    centre_parameters: float
    centre_tokens: float

    @classmethod
    def of(
        cls,
        parameters: Float[np.ndarray, " runs"],
        tokens: Float[np.ndarray, " runs"],
        unique: Float[np.ndarray, " runs"] | None = None,
    ) -> "Points":
        """Points of runs, centred on them."""
        log_n, log_d = np.log(parameters), np.log(tokens)
        log_u = log_d if unique is None else np.minimum(log_d, np.log(unique))
        return cls(log_n, log_d, log_u, float(log_n.mean()), float(log_d.mean()))

    def at(
        self,
        log_parameters: Float[np.ndarray, " asked"],
        log_tokens: Float[np.ndarray, " asked"],
        log_unique: Float[np.ndarray, " asked"] | None = None,
    ) -> "Points":
        """Other points with the same centre, so that coefficients mean the same."""
        unique = log_tokens if log_unique is None else np.minimum(log_tokens, log_unique)
        return Points(log_parameters, log_tokens, unique, self.centre_parameters, self.centre_tokens)

    def __len__(self) -> int:
        return len(self.log_parameters)


class Form(abc.ABC):
    """A law L(N, D). Coefficients are rows of `[fits, coefficients]`."""

    name: ClassVar[str]
    formula: str
    source: ClassVar[str]
    num_coefficients: int
    exponents: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def predict(self, theta: Coefficients, points: Points) -> Predicted:
        """Log loss, and its derivatives with respect to the coefficients."""

    @abc.abstractmethod
    def starts(self, points: Points, log_loss: Float[np.ndarray, " runs"]) -> Starts:
        """A grid of coefficients to start from."""

    @abc.abstractmethod
    def natural(self, theta: Coefficients, points: Points) -> Named:
        """The coefficients as the source names them, and what follows from them (compute-optimal exponents a, b)."""

    def optimum(
        self, theta: Coefficients, points: Points, budget: float, flops_factor: float, unique: float | None = None
    ) -> Best:
        """log N and log loss that are best for a budget of FLOPs, where budget = flops_factor N D.

        Found by sweeping sizes, with a parabola through the best and its neighbours; laws that have a closed form use
        it instead.
        """
        product_nd = float(np.log(budget / flops_factor))
        sizes = np.linspace(product_nd / 2 - REACH, product_nd / 2 + REACH, SWEPT)
        limit = None if unique is None else np.full(SWEPT, np.log(unique))
        swept = points.at(sizes, product_nd - sizes, limit)
        losses = np.concatenate([self.predict(theta[k : k + CHUNK], swept)[0] for k in range(0, len(theta), CHUNK)])
        best = losses.argmin(axis=1).clip(1, SWEPT - 2)
        before, least, after = (losses[np.arange(len(theta)), best + step] for step in (-1, 0, 1))
        bend = before - 2 * least + after
        shift = np.where(bend > 0, (before - after) / np.where(bend > 0, 2 * bend, 1.0), 0.0).clip(-1, 1)
        return sizes[best] + shift * (sizes[1] - sizes[0]), least - (before - after) * shift / 4


class Chinchilla(Form):
    """L = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, equation 2): three losses that add."""

    name = "parametric"
    formula = "L(N, D) = E + A / N^alpha + B / D^beta"
    source = "Hoffmann et al. 2022, section 3.3 and appendix D.3; Besiroglu et al. 2024"
    num_coefficients = 5
    exponents = ("alpha", "beta")

    def predict(self, theta: Coefficients, points: Points) -> Predicted:
        """Coefficients: log A and log B at the centre, log E, alpha, beta."""
        x, y = points.log_parameters - points.centre_parameters, points.log_tokens - points.centre_tokens
        log_a, log_b, log_e, alpha, beta = (column[:, None] for column in theta.T)
        total, shares = log_sum(log_a - alpha * x[None], log_b - beta * y[None], log_e + np.zeros((1, len(x))))
        gradient = np.stack([*shares, -x[None] * shares[0], -y[None] * shares[1]], axis=-1)
        return total, gradient

    def starts(self, points: Points, log_loss: Float[np.ndarray, " runs"]) -> Starts:
        """Exponents of 0 to 2 (Hoffmann et al., appendix D.3); the other terms as shares of the mean loss.

        The published grid sets A and B at N = D = 1, far outside the runs, so that most of its starts lie where one
        term hides the others; here the shares are set at the centre of the runs.
        """
        middle, shares = float(log_loss.mean()), np.log([0.03, 0.3])
        exponents = (0.15, 0.35, 0.7, 1.2)
        floor = float(log_loss.min()) + np.log([0.3, 0.9])
        return np.array(list(product(middle + shares, middle + shares, floor, exponents, exponents)))

    def natural(self, theta: Coefficients, points: Points) -> Named:
        """E, A, B, alpha, beta, and a = beta / (alpha + beta), b = alpha / (alpha + beta)."""
        log_a, log_b, log_e, alpha, beta = theta.T
        whole = alpha + beta
        with np.errstate(over="ignore"):  # a draw whose exponent is at its bound may have an A beyond all numbers
            at_one = np.exp(log_a + alpha * points.centre_parameters), np.exp(log_b + beta * points.centre_tokens)
        return {
            "E": np.exp(log_e),
            "A": at_one[0],
            "B": at_one[1],
            "alpha": alpha,
            "beta": beta,
            "a": beta / whole,
            "b": alpha / whole,
        }

    def optimum(
        self, theta: Coefficients, points: Points, budget: float, flops_factor: float, unique: float | None = None
    ) -> Best:
        """Closed form: where alpha A / N^alpha = beta B / D^beta (Hoffmann et al. 2022, equation 4)."""
        log_a, log_b, log_e, alpha, beta = theta.T
        product_nd = np.log(budget / flops_factor)
        log_a = log_a + alpha * points.centre_parameters
        log_b = log_b + beta * points.centre_tokens
        log_n = (np.log(alpha) - np.log(beta) + log_a - log_b + beta * product_nd) / (alpha + beta)
        loss, _ = log_sum(log_a - alpha * log_n, log_b - beta * (product_nd - log_n), log_e)
        return log_n, loss


class Kaplan(Form):
    """L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D (Kaplan et al. 2020, equation 1.5): no floor."""

    name = "kaplan"
    formula = "L(N, D) = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D"
    source = "Kaplan et al. 2020, equation 1.5"
    num_coefficients = 4
    exponents = ("alpha_N", "alpha_D")

    def predict(self, theta: Coefficients, points: Points) -> Predicted:
        """Coefficients: log (N_c / N)^alpha_N and log (D_c / D)^alpha_D at the centre, log alpha_N, log alpha_D."""
        x, y = points.log_parameters - points.centre_parameters, points.log_tokens - points.centre_tokens
        size, data = (column[:, None] for column in theta.T[:2])
        alpha_n, alpha_d = (np.exp(np.clip(column, -20, 5))[:, None] for column in theta.T[2:])
        by_size, by_data = size - alpha_n * x[None], data - alpha_d * y[None]
        inner, shares = log_sum(by_size / alpha_d, by_data / alpha_d)
        bend = inner * alpha_d - shares[0] * by_size - shares[1] * by_data
        slopes = [-x[None] * alpha_n * shares[0], bend - y[None] * alpha_d * shares[1]]
        return alpha_d * inner, np.stack([*shares, *slopes], axis=-1)

    def starts(self, points: Points, log_loss: Float[np.ndarray, " runs"]) -> Starts:
        """Either term at a share of the mean loss, exponents from 0.03 to 1."""
        shares, exponents = float(log_loss.mean()) + np.log([0.1, 0.5, 0.9]), np.log([0.03, 0.1, 0.3, 1.0])
        return np.array(list(product(shares, shares, exponents, exponents)))

    def natural(self, theta: Coefficients, points: Points) -> Named:
        """N_c, D_c, alpha_N, alpha_D, and a, b of the minimum of this law at N D fixed.

        These are not the exponents of Kaplan et al., section 6, who stop training far from convergence.
        """
        size, data, log_n, log_d = theta.T
        alpha_n, alpha_d = np.exp(log_n), np.exp(log_d)
        return {
            "N_c": np.exp(size / alpha_n + points.centre_parameters),
            "D_c": np.exp(data / alpha_d + points.centre_tokens),
            "alpha_N": alpha_n,
            "alpha_D": alpha_d,
            "a": alpha_d / (alpha_n + alpha_d),
            "b": alpha_n / (alpha_n + alpha_d),
        }

    def optimum(
        self, theta: Coefficients, points: Points, budget: float, flops_factor: float, unique: float | None = None
    ) -> Best:
        """Closed form: where (alpha_N / alpha_D) (N_c / N)^(alpha_N / alpha_D) = D_c / D."""
        size, data, log_alpha_n, log_alpha_d = theta.T
        alpha_d, ratio = np.exp(log_alpha_d), np.exp(log_alpha_n - log_alpha_d)
        product_nd = np.log(budget / flops_factor)
        log_nc = size / np.exp(log_alpha_n) + points.centre_parameters
        log_dc = data / alpha_d + points.centre_tokens
        log_n = (np.log(ratio) + ratio * log_nc - log_dc + product_nd) / (1 + ratio)
        inner, _ = log_sum(ratio * (log_nc - log_n), log_dc - (product_nd - log_n))
        return log_n, alpha_d * inner


class Ladder(Form):
    """L = E + K / C^gamma along one line of sizes, C being N D: all that a ladder of fixed D / N can show."""

    name = "ladder"
    formula = "L(C) = E + K / C^gamma, along the line of the runs"
    source = "Hestness et al. 2017, section 3; Kaplan et al. 2020, equation 1.3, with a floor"
    num_coefficients = 3
    exponents = ("gamma",)

    def predict(self, theta: Coefficients, points: Points) -> Predicted:
        """Coefficients: log K at the centre, log E, gamma; C is N D."""
        z = points.log_parameters + points.log_tokens - points.centre_parameters - points.centre_tokens
        log_k, log_e, gamma = (column[:, None] for column in theta.T)
        total, shares = log_sum(log_k - gamma * z[None], log_e + np.zeros((1, len(z))))
        return total, np.stack([*shares, -z[None] * shares[0]], axis=-1)

    def starts(self, points: Points, log_loss: Float[np.ndarray, " runs"]) -> Starts:
        """Shares of the mean loss, exponents from 0.02 to 1."""
        shares = float(log_loss.mean()) + np.log([0.05, 0.3, 0.8])
        floor = float(log_loss.min()) + np.log([0.1, 0.5, 0.9])
        return np.array(list(product(shares, floor, (0.02, 0.05, 0.15, 0.4, 1.0))))

    def natural(self, theta: Coefficients, points: Points) -> Named:
        """E, K (of N D), gamma."""
        log_k, log_e, gamma = theta.T
        centre = points.centre_parameters + points.centre_tokens
        return {"E": np.exp(log_e), "K": np.exp(log_k + gamma * centre), "gamma": gamma}


def log_sum(*terms: Float[np.ndarray, "..."]) -> tuple[Float[np.ndarray, "..."], list[Float[np.ndarray, "..."]]]:
    """log of the sum of exponentials, and each one's share of the sum, without overflow."""
    terms = tuple(np.broadcast_arrays(*terms))
    most = np.maximum.reduce(terms)
    parts = [np.exp(term - most) for term in terms]
    whole = np.add.reduce(parts)
    return most + np.log(whole), [part / whole for part in parts]

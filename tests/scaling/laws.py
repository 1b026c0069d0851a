"""Synthetic runs from laws that are known."""

import numpy as np

from research.scaling.rows import Runs

# Near Besiroglu et al. 2024.
E, A, B, ALPHA, BETA = 1.82, 482.0, 2085.0, 0.348, 0.366
EXPONENT_A, EXPONENT_B = BETA / (ALPHA + BETA), ALPHA / (ALPHA + BETA)
G = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
R_D, R_N = 15.4, 5.3  # Muennighoff et al. 2023, section 5


def loss(parameters: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return E + A / parameters**ALPHA + B / tokens**BETA


def best_size(flops: float) -> float:
    """Hoffmann et al. 2022, equation 4."""
    return G * (flops / 6) ** EXPONENT_A


def repeated_loss(parameters: np.ndarray, tokens: np.ndarray, unique: np.ndarray) -> np.ndarray:
    """Muennighoff et al. 2023, section 3.1, written as it stands there."""
    unique_tokens = np.minimum(tokens, unique)
    repeats = tokens / unique_tokens - 1
    data = unique_tokens + unique_tokens * R_D * (1 - np.exp(-repeats / R_D))
    called_for = G * (unique_tokens * G) ** (EXPONENT_A / EXPONENT_B)
    unique_parameters = np.minimum(parameters, called_for)
    excess = parameters / unique_parameters - 1
    size = unique_parameters + unique_parameters * R_N * (1 - np.exp(-excess / R_N))
    return loss(size, data)


def make(parameters: np.ndarray, tokens: np.ndarray, noise: float = 0.0, seed: int = 0) -> Runs:
    generator = np.random.default_rng(seed)
    measured = loss(parameters, tokens) * np.exp(noise * generator.standard_normal(len(parameters)))
    names = tuple(f"run-{number}" for number in range(len(parameters)))
    return Runs(names, parameters, tokens, 6 * parameters * tokens, measured)


def isoflop(noise: float = 0.0, seed: int = 0, budgets: int = 5, sizes: int = 7, span: float = 0.6) -> Runs:
    """Budgets from 1e17 to 1e20 FLOPs, sizes `span` powers of ten to either side of the best."""
    flops = np.repeat(np.logspace(17, 20, budgets), sizes)
    best = np.array([best_size(value) for value in flops])
    parameters = best * np.tile(np.logspace(-span, span, sizes), budgets)
    return make(parameters, flops / 6 / parameters, noise, seed)


def curves(noise: float = 0.0, seed: int = 0, sizes: int = 16, points: int = 24) -> Runs:
    """Training curves, each with a luck of its own and a little jitter along it."""
    generator = np.random.default_rng(seed)
    parameters = np.repeat(np.logspace(7, 9, sizes), points)
    tokens = np.tile(20 * np.logspace(-1.2, 0.8, points), sizes) * parameters
    luck = np.repeat(noise * generator.standard_normal(sizes), points)
    measured = loss(parameters, tokens) * np.exp(luck + noise / 3 * generator.standard_normal(len(luck)))
    names = tuple(str(number) for number in np.repeat(np.arange(sizes), points))
    which = np.repeat(np.arange(sizes), points)
    return Runs(names, parameters, tokens, 6 * parameters * tokens, measured, curve=which)


def rescaled(runs: Runs, parameters: float = 1.0, tokens: float = 1.0, measure: float = 1.0) -> Runs:
    """The same runs in other units."""
    changed = {"parameters": runs.parameters * parameters, "tokens": runs.tokens * tokens, "loss": runs.loss * measure}
    flops = runs.flops * parameters * tokens
    return Runs(**{**vars(runs), **changed, "flops": flops})

"""How often intervals hold the truth: fits of many synthetic data sets whose law is known."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from research.scaling import curves, isoflop, parametric
from research.scaling.answers import Answer
from research.scaling.bootstrap import Sampling
from research.scaling.constrained import DataConstrained
from research.scaling.forms import Chinchilla, Form, Kaplan, Ladder
from research.scaling.rows import Runs
from tests.scaling import laws

BUDGET, REFITS, NOISE = 1e21, 200, 0.004
OPTIMUM = {"N": laws.best_size(BUDGET), "D": BUDGET / 6 / laws.best_size(BUDGET)}
LAW = {"E": laws.E, "A": laws.A, "B": laws.B, "alpha": laws.ALPHA, "beta": laws.BETA}
KAPLAN = {"N_c": 8.8e13, "D_c": 5.4e13, "alpha_N": 0.076, "alpha_D": 0.103}  # Kaplan et al. 2020, table 2
LADDER = {"E": 1.8, "K": 60.0, "gamma": 0.12}
Draw = Callable[[int], tuple[Answer, Mapping[str, float]]]


def parametric_draw(seed: int) -> tuple[Answer, Mapping[str, float]]:
    """Hoffmann's third approach, with a run held out at the budget, twenty times any that is fitted."""
    best = np.array([laws.best_size(BUDGET)])
    held = laws.make(best, BUDGET / 6 / best, NOISE, 10_000 + seed)
    truth = {**LAW, "a": laws.EXPONENT_A, "b": laws.EXPONENT_B, **OPTIMUM}
    truth |= {"loss": float(laws.loss(best, BUDGET / 6 / best)[0]), "held out": float(held.loss[0])}
    return _law(Chinchilla(), laws.isoflop(NOISE, seed), seed, held), truth


def kaplan_draw(seed: int) -> tuple[Answer, Mapping[str, float]]:
    """Kaplan's law on a grid of sizes and token counts."""
    runs = laws.isoflop()
    ratio = KAPLAN["alpha_N"] / KAPLAN["alpha_D"]
    exact = ((KAPLAN["N_c"] / runs.parameters) ** ratio + KAPLAN["D_c"] / runs.tokens) ** KAPLAN["alpha_D"]
    whole = KAPLAN["alpha_N"] + KAPLAN["alpha_D"]
    truth = {**KAPLAN, "a": KAPLAN["alpha_D"] / whole, "b": KAPLAN["alpha_N"] / whole}
    return _law(Kaplan(), _noisy(runs, exact, seed), seed), truth


def ladder_draw(seed: int) -> tuple[Answer, Mapping[str, float]]:
    """Twelve sizes at twenty tokens a parameter."""
    parameters = np.logspace(6.5, 9, 12)
    runs = laws.make(parameters, 20 * parameters)
    exact = LADDER["E"] + LADDER["K"] / (runs.parameters * runs.tokens) ** LADDER["gamma"]
    return _law(Ladder(), _noisy(runs, exact, seed), seed), LADDER


def data_draw(seed: int) -> tuple[Answer, Mapping[str, float]]:
    """Sizes, distinct tokens and epochs crossed; too few parameters for any excess."""
    sizes, unique, epochs = (
        grid.ravel() for grid in np.meshgrid(np.logspace(6, 8, 4), np.logspace(8, 10, 4), [1, 4, 16, 50])
    )
    tokens = unique * epochs
    runs = laws.make(sizes, tokens)
    worth = unique * (1 + laws.R_D * (1 - np.exp(-(epochs - 1) / laws.R_D)))
    runs = Runs(**{**vars(runs), "unique": unique})
    answer = _law(DataConstrained(excess=False), _noisy(runs, laws.loss(sizes, worth), seed), seed)
    return answer, {**LAW, "R_D*": laws.R_D}


def isoflop_draw(seed: int) -> tuple[Answer, Mapping[str, float]]:
    """Hoffmann's second approach, on the same runs as the third."""
    answer = isoflop.answer(laws.isoflop(NOISE, seed), [BUDGET], Sampling(REFITS, seed=seed))
    return answer, {"a": laws.EXPONENT_A, "b": laws.EXPONENT_B, **OPTIMUM}


def curves_draw(seed: int) -> tuple[Answer, Mapping[str, float]]:
    """Hoffmann's first approach."""
    answer = curves.answer(laws.curves(NOISE, seed), [BUDGET], Sampling(REFITS, seed=seed))
    return answer, {"a": laws.EXPONENT_A, "b": laws.EXPONENT_B, **OPTIMUM}


def predictions_draw(form: Form, places: Runs, seeds: int, exact: Callable[[Runs], np.ndarray]) -> Draw:
    """Runs of a law at places, with seeds, and one new run at each of 2 and 4 times their largest budget."""

    def draw(seed: int) -> tuple[Answer, Mapping[str, float]]:
        runs = places.take(np.repeat(np.arange(len(places)), seeds))
        runs = replace(runs, names=tuple(f"run-{number}" for number in range(len(runs))))
        further = [float(runs.flops.max()) * factor for factor in FURTHER]
        best = np.array([laws.best_size(value) for value in further])
        sizes = np.sqrt(np.array(further) / 120) if form.name == "ladder" else best
        held = laws.make(sizes, np.array(further) / 6 / sizes)
        held = _noisy(held, exact(held), 10_000 + seed)
        answer = _law(form, _noisy(runs, exact(runs), seed), seed, held)
        return answer, {f"{k} times": float(loss) for k, loss in zip(FURTHER, held.loss, strict=True)}

    return draw


def _plain(runs: Runs) -> np.ndarray:
    return laws.loss(runs.parameters, runs.tokens)


def _along(runs: Runs) -> np.ndarray:
    return LADDER["E"] + LADDER["K"] / (runs.parameters * runs.tokens) ** LADDER["gamma"]


def _rungs(count: int) -> Runs:
    parameters = np.logspace(6.5, 9, count)
    return laws.make(parameters, 20 * parameters)


FURTHER = (2, 4)
PREDICTIONS: Mapping[str, Draw] = {
    "twelve cells": predictions_draw(Chinchilla(), laws.isoflop(budgets=3, sizes=4), 1, _plain),
    "twelve cells of three seeds": predictions_draw(Chinchilla(), laws.isoflop(budgets=3, sizes=4), 3, _plain),
    "seven rungs": predictions_draw(Ladder(), _rungs(7), 1, _along),
    "six rungs of three seeds": predictions_draw(Ladder(), _rungs(6), 3, _along),
}
DRAWS: Mapping[str, Draw] = {
    "curves": curves_draw,
    "isoflop": isoflop_draw,
    "parametric": parametric_draw,
    "kaplan": kaplan_draw,
    "data": data_draw,
    "ladder": ladder_draw,
}


def coverage(draw: Draw, draws: int) -> dict[str, float]:
    """Share of data sets whose interval holds the truth, by quantity."""
    hits: dict[str, list[bool]] = {}
    for seed in range(draws):
        answer, truth = draw(seed)
        found = dict(answer.estimates)
        for optimum in answer.optima:
            found |= {"N": optimum.parameters, "D": optimum.tokens}
            found |= {} if optimum.loss is None else {"loss": optimum.loss}
        if len(answer.predictions) == len(FURTHER):
            found |= {f"{k} times": one.predicted for k, one in zip(FURTHER, answer.predictions, strict=True)}
        elif answer.predictions:
            found["held out"] = answer.predictions[0].predicted
        for name in truth:
            hits.setdefault(name, []).append(found[name].covers(truth[name]))
    return {name: float(np.mean(found)) for name, found in hits.items()}


def _law(form: Form, runs: Runs, seed: int, held: Runs | None = None) -> Answer:
    return parametric.answer(form, runs, [BUDGET], held, Sampling(REFITS, seed=seed))


def _noisy(runs: Runs, exact: np.ndarray, seed: int) -> Runs:
    noise = NOISE * np.random.default_rng(seed).standard_normal(len(exact))
    return Runs(**{**vars(runs), "loss": exact * np.exp(noise)})

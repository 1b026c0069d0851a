"""A law of size and data, fitted to runs, with intervals: Hoffmann's third approach, Kaplan's law, repeated data."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from research.scaling import bootstrap
from research.scaling.answers import Answer, Optimum, Prediction
from research.scaling.bootstrap import Estimate, Sampling, UnidentifiedError
from research.scaling.constrained import DataConstrained
from research.scaling.fit import HUBER, fit, minimise
from research.scaling.forms import Chinchilla, Form, Kaplan, Ladder, Points
from research.scaling.identify import SPARE, believable, check_exponents, check_runs
from research.scaling.rows import Runs

REPEATED, EXCESSIVE, ENOUGH = 1.5, 1.5, 3
REFIT = 1e-9
MISSES = 0.05  # p below which a law is said to miss something
FLOOR = 0.01  # a floor E below this share of the least loss is none


class Law:
    """A form fitted to runs: the best coefficients, and those of the bootstrap draws.

    Raises:
      UnidentifiedError: the runs cannot tell what the coefficients are.
    """

    def __init__(self, form: Form, runs: Runs, sampling: Sampling, delta: float = HUBER) -> None:
        check_runs(form, runs)
        self.form, self.runs, self.sampling, self.delta = form, runs, sampling, delta
        unique = runs.unique if form.name == "data" else None
        self.points = Points.of(runs.parameters, runs.tokens, unique)
        self.log_loss = np.log(runs.loss)
        self.best = fit(form, self.points, self.log_loss, delta)
        check_exponents(form, self.best, self.points)
        own = form.predict(self.best[None], self.points)[0][0]
        self.lacks = lack_of_fit(self.log_loss - own, runs.places(), form.num_coefficients)
        self.groups = runs.places() if self.lacks else np.arange(len(runs))
        self.draws = self._draws()

    @property
    def freedom(self) -> int:
        """Runs less coefficients; places less coefficients where runs of one place share what the law misses."""
        return int(self.groups.max()) + 1 - self.form.num_coefficients

    def _draws(self) -> Float[np.ndarray, "draws coefficients"]:
        count = self.sampling.draws
        weights = bootstrap.weights(count, len(self.runs), self.sampling.generator(), self.groups)
        starts = np.repeat(self.best[None], count, axis=0)
        found = minimise(
            self.form, self.points, starts, self.log_loss[None], weights, delta=self.delta, tolerance=REFIT
        )
        sound = found.converged & believable(self.form, found.theta, self.points)
        remedy = "add runs at other sizes and token counts, or repeat runs with other seeds"
        return found.theta[bootstrap.kept(sound, "an exponent leaves its bounds", remedy)]

    def interval(self, value: float, draws: Float[np.ndarray, " draws"]) -> Estimate:
        """Of a quantity, from its draws."""
        return bootstrap.interval(value, draws, self.freedom, self.sampling.confidence)

    def estimates(self) -> dict[str, Estimate]:
        """Of the coefficients and what follows from them."""
        best = self.form.natural(self.best[None], self.points)
        drawn = self.form.natural(self.draws, self.points)
        return {name: self.interval(float(best[name][0]), drawn[name]) for name in best}

    def residuals(self) -> Float[np.ndarray, " runs"]:
        """log loss less the fit, scaled up for the coefficients that were fitted to it."""
        predicted, _ = self.form.predict(self.best[None], self.points)
        return (self.log_loss - predicted[0]) * np.sqrt(len(self.runs) / max(1, self.freedom))

    def optimum(self, budget: float, unique: float | None = None) -> Optimum:
        """Best N and D for a budget of FLOPs, and the loss there."""
        factor, confidence = self.runs.flops_factor, self.sampling.confidence
        best_n, best_loss = self.form.optimum(self.best[None], self.points, budget, factor, unique)
        log_n, log_loss = self.form.optimum(self.draws, self.points, budget, factor, unique)
        log_nd = np.log(budget / factor)
        size = bootstrap.interval(float(best_n[0]), log_n, self.freedom, confidence)
        tokens = bootstrap.interval(float(log_nd - best_n[0]), log_nd - log_n, self.freedom, confidence)
        loss = bootstrap.interval(float(best_loss[0]), log_loss, self.freedom, confidence)
        return Optimum(budget, exponential(size), exponential(tokens), exponential(loss))

    def predictions(self, held: Runs) -> list[Prediction]:
        """Of runs that were not fitted: the fit's own uncertainty, and the scatter that a new run will have.

        The scatter is that of the fitted runs about the law, which is the noise of a seed and what the law misses
        among them. What it misses only beyond them is in no interval.
        """
        unique = None if held.unique is None or self.form.name != "data" else np.log(held.unique)
        asked = self.points.at(np.log(held.parameters), np.log(held.tokens), unique)
        best, drawn = self.form.predict(self.best[None], asked)[0][0], self.form.predict(self.draws, asked)[0]
        generator = np.random.default_rng([self.sampling.seed, 1])
        noise = generator.choice(self.residuals(), size=drawn.shape)
        return [
            Prediction(name, exponential(self.interval(float(best[i]), drawn[:, i] + noise[:, i])), float(held.loss[i]))
            for i, name in enumerate(held.names)
        ]

    def notes(self) -> list[str]:
        """What the fit could not say."""
        found = []
        if self.lacks:
            found.append(
                f"runs of one size and data agree with one another better than with the law (p = {self.lacks:.1g}): it "
                "misses something, and intervals count places, not runs"
            )
        natural = self.form.natural(self.best[None], self.points)
        if "E" in natural and natural["E"][0] < FLOOR * self.runs.loss.min():
            found.append("no floor E can be told from zero: the runs are too far from it")
        if self.form.name == "kaplan":
            found.append(
                "a and b are those of this law's minimum at equal C, not of Kaplan et al.'s training before convergence"
            )
        return found


def answer(
    form: Form, runs: Runs, budgets: Sequence[float], held: Runs | None, sampling: Sampling, delta: float = HUBER
) -> Answer:
    """Fits a law and says what follows.

    Raises:
      UnidentifiedError: the runs cannot tell.
    """
    law = Law(form, runs, sampling, delta)
    notes = law.notes()
    if held is not None:
        further = float(held.flops.max() / runs.flops.max())
        notes.append(
            "intervals of predictions hold the fit's uncertainty and the scatter of runs about it, and assume that "
            f"the form holds up to {further:.3g} times the largest budget that was fitted"
        )
    unique: float | None = None
    if form.name == "data" and runs.unique is not None:
        unique = float(runs.unique.max())
        notes.append(f"optima are for {unique:.4g} distinct tokens, the most that a run had")
    optima = [] if form.name == "ladder" else [law.optimum(budget, unique) for budget in budgets]
    return Answer(
        approach=form.name,
        form=form.formula,
        count=runs.count,
        runs=len(runs),
        estimates=law.estimates(),
        residual=float(law.residuals().std()),
        optima=optima,
        predictions=[] if held is None else law.predictions(held),
        notes=[*runs.notes, *notes],
    )


def lack_of_fit(
    residuals: Float[np.ndarray, " runs"], places: Int[np.ndarray, " runs"], coefficients: int
) -> float | None:
    """p of the F test that runs of one place differ as little from one another as from the law; none above 0.05, or
    where no place has several runs (Draper & Smith 1998, section 2.1).
    """
    count = np.bincount(places)
    means = np.bincount(places, residuals) / count
    between, within = len(count) - coefficients, len(places) - len(count)
    pure = float(((residuals - means[places]) ** 2).sum())
    if between < 1 or within < 1 or not pure:
        return None
    ratio = float((count * means**2).sum()) / between / (pure / within)
    p = float(stats.f.sf(ratio, between, within))
    return p if p < MISSES else None


def constrained_form(runs: Runs, delta: float = HUBER) -> DataConstrained:
    """The data-constrained law, with R_N* only where runs exceed the parameters that their distinct tokens call for.

    Raises:
      UnidentifiedError: too few runs repeat data.
    """
    if runs.unique is None:
        raise UnidentifiedError(
            "the data-constrained law needs the distinct tokens of each run: name their column with --unique"
        )
    repeated = int((runs.tokens > REPEATED * runs.unique).sum())
    if repeated < ENOUGH:
        raise UnidentifiedError(
            f"{repeated} runs see their data more than {REPEATED:g} times: what repetition is worth needs "
            f"{ENOUGH} or more, up to tens of epochs"
        )
    plain = DataConstrained(excess=False)
    check_runs(plain, runs)
    points = Points.of(runs.parameters, runs.tokens, runs.unique)
    best = fit(plain, points, np.log(runs.loss), delta)
    optimal, _ = plain.unique_parameters(best[None], points)
    excessive = int((points.log_parameters > optimal[0] + np.log(EXCESSIVE)).sum())
    return DataConstrained(excess=excessive >= ENOUGH and len(runs) >= 7 + SPARE)


def form_of(approach: str, runs: Runs, delta: float = HUBER) -> Form:
    """The form of an approach."""
    plain = {"parametric": Chinchilla(), "kaplan": Kaplan(), "ladder": Ladder()}
    return plain[approach] if approach in plain else constrained_form(runs, delta)


def exponential(logarithm: Estimate) -> Estimate:
    """Of an estimate of a logarithm."""
    return Estimate(*(float(np.exp(end)) for end in (logarithm.value, logarithm.low, logarithm.high)))

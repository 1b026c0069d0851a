"""Whether runs can tell the coefficients of a law; if not, why, and what runs would."""

import numpy as np
from jaxtyping import Bool, Float

from research.scaling.bootstrap import UnidentifiedError
from research.scaling.forms import Form, Points
from research.scaling.rows import Runs

LEAST, MOST = 0.01, 3.0  # bounds of a believable exponent
SPARE = 3  # runs beyond the coefficients
OFF_LINE = 0.15  # standard deviation of log D about a line in log N, below which N and D move as one


def check_runs(form: Form, runs: Runs) -> None:
    """Refuses runs that cannot identify the law.

    Raises:
      UnidentifiedError: too few runs or sizes, or N and D that move as one.
    """
    needed = form.num_coefficients + SPARE
    if len(runs) < needed:
        raise UnidentifiedError(
            f"{len(runs)} runs are too few for {form.num_coefficients} coefficients: {needed} is the least"
        )
    log_n, log_d = np.log(runs.parameters), np.log(runs.tokens)
    if form.name == "ladder":
        if _distinct(log_n + log_d) < form.num_coefficients + 1:
            raise UnidentifiedError("the runs have fewer than 4 budgets: a power law with a floor needs 4 or more")
        _check_line(log_n, log_d)
        return
    for name, values in (("sizes", log_n), ("token counts", log_d)):
        if _distinct(values) < 3:
            raise UnidentifiedError(f"the runs have {_distinct(values)} different {name}: an exponent needs 3 or more")
    scatter = _scatter(log_n, log_d)
    if scatter < OFF_LINE:
        raise UnidentifiedError(
            f"tokens follow from parameters in these runs (D is within {np.expm1(scatter):.1%} of a power of N), so "
            "that what size and what data gain cannot be told apart: add runs with other tokens per parameter, or use "
            "--approach ladder"
        )


def _check_line(log_n: Float[np.ndarray, " runs"], log_d: Float[np.ndarray, " runs"]) -> None:
    if (scatter := _scatter(log_n, log_d)) > OFF_LINE:
        raise UnidentifiedError(
            f"the runs lie on no line (D is {np.expm1(scatter):.0%} off any power of N), and a power law of compute "
            "alone holds along one: use --approach parametric"
        )


def _scatter(log_n: Float[np.ndarray, " runs"], log_d: Float[np.ndarray, " runs"]) -> float:
    """Standard deviation of log D about its line in log N, or of log N about its line in log D if that is less."""
    found = []
    for x, y in ((log_n, log_d), (log_d, log_n)):
        if np.ptp(x) > 1e-9:
            left = y - np.polynomial.polynomial.polyval(x, np.polynomial.polynomial.polyfit(x, y, 1))
            found.append(float(left.std()))
    return min(found, default=0.0)


def _distinct(values: Float[np.ndarray, " runs"]) -> int:
    """How many values differ by more than 5 %."""
    return 1 + int((np.diff(np.sort(values)) > 0.05).sum())


def check_exponents(form: Form, theta: Float[np.ndarray, " coefficients"], points: Points) -> None:
    """Refuses a fit whose exponent is at its bound.

    Raises:
      UnidentifiedError: it is.
    """
    natural = form.natural(theta[None], points)
    for name in form.exponents:
        value = float(natural[name][0])
        if not LEAST < value < MOST:
            raise UnidentifiedError(
                f"the best fit has {name} = {value:.3g}, at its bound ({LEAST:g} to {MOST:g}): the runs do not show "
                "that power law; widen the range of sizes and tokens"
            )


def believable(
    form: Form, theta: Float[np.ndarray, "draws coefficients"], points: Points
) -> Bool[np.ndarray, " draws"]:
    """Whether all exponents lie within bounds."""
    natural = form.natural(theta, points)
    sound = np.isfinite(theta).all(axis=1)
    for name in form.exponents:
        sound &= (natural[name] > LEAST) & (natural[name] < MOST)
    return sound

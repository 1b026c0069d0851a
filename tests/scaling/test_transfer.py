"""Best learning rates by size: found where they are, and not where nobody looked."""

import math

import pytest

from research.errors import UserError
from research.scaling.transfer import Transfer, transfer
from tests.small import assert_one_sentence

RATES = [2.0**-power for power in range(9, 3, -1)]


def made(exponent: float, widths: tuple[int, ...] = (32, 64, 128, 256), best: float = 0.013) -> Transfer:
    """Runs whose loss is a parabola in the logarithm of the rate, least at `best * (width / 32)^exponent`."""
    runs = [
        {"width": width, "rate": rate, "loss": 2 + 0.1 * math.log(rate / (best * (width / 32) ** exponent)) ** 2}
        for width in widths
        for rate in RATES
    ]
    return transfer(runs, "width", "rate", "loss")


@pytest.mark.parametrize("exponent", [0.0, -0.3, -0.5])
def test_the_best_rate_of_a_parabola_and_how_it_moves(exponent: float) -> None:
    found = made(exponent)
    assert found.exponent == pytest.approx(exponent, abs=1e-9)
    for optimum in found.optima:
        assert optimum.rate == pytest.approx(0.013 * (optimum.size / 32) ** exponent)
        assert optimum.loss == pytest.approx(2) and not optimum.edge
    assert found.optima[0].cost == pytest.approx(0, abs=0.01)
    assert (found.optima[-1].cost or 0) == pytest.approx(0.05 * math.log(8**exponent) ** 2, abs=0.01)


def test_what_is_best_at_an_edge_counts_in_no_exponent() -> None:
    found = made(-1.0, best=0.02)
    assert [optimum.edge for optimum in found.optima] == [False, False, False, True]
    assert found.exponent == pytest.approx(-1.0)
    assert made(0.0, best=1.0).exponent is None


def test_seeds_are_averaged_and_runs_that_diverged_are_left_out() -> None:
    runs = [{"width": 1, "rate": rate, "loss": 2 + math.log(rate * 50) ** 2} for rate in RATES]
    runs += [{**run, "width": 2} for run in runs]
    diverged = [{"width": 1, "rate": 1.0, "loss": math.nan}, {"width": 2, "rate": RATES[-1], "loss": math.inf}]
    plain, more = (transfer(given, "width", "rate", "loss") for given in (runs, runs + runs + diverged))
    assert more.optima[0] == plain.optima[0]
    assert more.optima[1].rate == pytest.approx(0.02)


def test_what_cannot_be_told_is_refused() -> None:
    runs = [{"width": width, "rate": rate, "loss": 1.0} for width in (1, 2) for rate in RATES[:2]]
    for given, named in ((runs, "three"), (runs[:2], "two or more")):
        with pytest.raises(UserError) as caught:
            transfer(given, "width", "rate", "loss")
        assert_one_sentence(str(caught.value), "width", named)

"""Intervals over documents: as wide as theory says, paired, and honest about too few of them."""

import numpy as np
import pytest

from research.evaluate import bootstrap


def test_an_interval_is_as_wide_as_the_standard_error_says() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    found = bootstrap.ratio(values, np.ones(400), bootstrap.resamples(400))
    assert found.low is not None and found.high is not None
    assert found.value == pytest.approx(values.mean()) and found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)


def test_documents_count_by_their_weight() -> None:
    numerator, denominator = np.array([1.0, 90.0] * 10), np.array([1.0, 9.0] * 10)
    assert bootstrap.ratio(numerator, denominator, bootstrap.resamples(20)).value == 9.1


def test_differences_are_of_the_same_documents() -> None:
    rng = np.random.default_rng(2)
    values, weights = rng.normal(5.0, 3.0, 50), rng.uniform(1.0, 2.0, 50)
    drawn = bootstrap.resamples(50)
    shifted = bootstrap.difference(values + 0.1 * weights, values, weights, drawn)
    assert shifted == pytest.approx((0.1, 0.1, 0.1))
    whole = bootstrap.ratio(values, weights, drawn)
    assert whole.high is not None and whole.low is not None and whole.high - whole.low > 0.5


def test_the_same_seed_draws_the_same_documents() -> None:
    np.testing.assert_array_equal(bootstrap.resamples(12), bootstrap.resamples(12))
    assert (bootstrap.resamples(12).sum(axis=1) == 12).all()


def test_few_documents_have_no_interval() -> None:
    values = np.arange(9.0)
    assert bootstrap.ratio(values, np.ones(9), bootstrap.resamples(9)) == (4.0, None, None)

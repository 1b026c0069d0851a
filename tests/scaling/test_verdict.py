import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from research.errors import UserError
from research.scaling.verdict import from_rows, holm, permutation, seeds_needed, verdicts

# Sixty-fourths are added without rounding.
differences = st.lists(st.integers(-640, 640), min_size=2, max_size=9).map(lambda counts: np.array(counts) / 64)


@settings(max_examples=40, deadline=None)
@given(differences)
def test_permutation_p_counts_all_signs(found: np.ndarray) -> None:
    sums = [abs(np.dot(signs, found)) for signs in itertools.product((-1.0, 1.0), repeat=len(found))]
    assert permutation(found) == np.mean([total >= abs(found.sum()) for total in sums])


def test_permutation_p_is_scipys() -> None:
    found = np.random.default_rng(1).normal(0.4, 1.0, 10)
    theirs = stats.permutation_test((found,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert permutation(found) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_many_pairs_are_drawn_with_a_seed() -> None:
    found = np.random.default_rng(2).normal(0.45, 1.0, 24)
    assert permutation(found, seed=3) == permutation(found, seed=3)
    assert permutation(found) == pytest.approx(stats.ttest_1samp(found, 0).pvalue, abs=0.01)


def test_effect_and_p_are_the_paired_t_tests() -> None:
    generator = np.random.default_rng(0)
    base = {seed: float(value) for seed, value in enumerate(generator.normal(3, 1, 6))}
    other = {seed: value + float(generator.normal(0.1, 0.05)) for seed, value in base.items()}
    (one,) = verdicts({"baseline": base, "changed": other}, "baseline")
    theirs = stats.ttest_rel(list(other.values()), list(base.values()))
    assert one.p == pytest.approx(theirs.pvalue) == pytest.approx(one.p_adjusted)
    assert (one.low, one.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert one.verdict == ("worse" if theirs.pvalue < 0.05 else "inconclusive")


def test_direction_follows_what_is_better() -> None:
    base = {0: 1.0, 1: 1.1, 2: 0.9, 3: 1.2}
    lower = {seed: value - 0.2 + 0.01 * seed for seed, value in base.items()}
    measured = {"baseline": base, "changed": lower}
    assert verdicts(measured, "baseline")[0].verdict == "better"
    assert verdicts(measured, "baseline", higher_is_better=True)[0].verdict == "worse"


def test_holm_is_the_stepwise_rule() -> None:
    """The example of Holm 1979's procedure: sorted p times what is left, never falling."""
    adjusted, thresholds = holm([0.01, 0.04, 0.03, 0.005])
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert thresholds == pytest.approx([0.05 / 3, 0.05, 0.025, 0.0125])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_its_stepwise_thresholds_reject(p: list[float]) -> None:
    adjusted, thresholds = holm(p)
    alive, order = True, sorted(range(len(p)), key=lambda place: p[place])
    for place in order:
        alive = alive and p[place] <= thresholds[place]
        assert (adjusted[place] <= 0.05) == alive or adjusted[place] == pytest.approx(0.05)


def test_more_comparisons_make_a_verdict_harder() -> None:
    base = dict(enumerate([1.0, 1.3, 0.8, 1.1, 0.95]))
    noise = [0.04, -0.05, 0.06, 0.01, -0.02]
    changed = {seed: value - 0.07 + noise[seed] for seed, value in base.items()}
    still = {f"other-{k}": {s: v + noise[(s + k) % 5] for s, v in base.items()} for k in range(4)}
    alone = verdicts({"baseline": base, "changed": changed}, "baseline")[0]
    among = verdicts({"baseline": base, "changed": changed, **still}, "baseline")[0]
    assert alone.verdict == "better" and among.verdict == "inconclusive" and among.more_seeds
    assert f"{among.more_seeds} more" in among.sentence()


def test_seeds_needed_have_the_power_that_is_claimed() -> None:
    pairs = seeds_needed(0.5, 1.0, 0.05)
    assert pairs == 34  # Cohen's table and every power calculator
    drawn = np.random.default_rng(0).normal(0.5, 1.0, (4000, pairs))
    assert np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.025)
    assert seeds_needed(1e-6, 1.0, 0.05) is None


def test_a_margin_lets_two_be_called_equal() -> None:
    base = {0: 1.0, 1: 1.1, 2: 0.9, 3: 1.2}
    same = {seed: value + 0.001 * (-1) ** seed for seed, value in base.items()}
    (one,) = verdicts({"baseline": base, "same": same}, "baseline", margin=0.01, unit="bits per byte")
    assert one.verdict == "equal" and "less than 0.01 bits per byte" in one.sentence()
    assert verdicts({"baseline": base, "same": same}, "baseline")[0].verdict == "inconclusive"


def test_false_verdicts_are_as_rare_as_promised() -> None:
    """Four comparisons of nothing: any verdict in about 5 % of the times; the bound is three deviations up."""
    generator, wrong = np.random.default_rng(0), 0
    for _ in range(150):
        table = generator.normal(0, 1, (5, 4))
        measured = {str(k): dict(enumerate(map(float, row))) for k, row in enumerate(table)}
        wrong += any(one.verdict != "inconclusive" for one in verdicts(measured, "0"))
    assert wrong / 150 < 0.105


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        ({"a": {0: 1.0}, "b": {0: 2.0}}, "with 1 seed"),
        ({"a": {0: 1.0, 1: 2.0}, "b": {0: 1.0, 2: 2.0}}, "seeds 1, 2"),
        ({"b": {0: 1.0, 1: 2.0}}, "no baseline"),
        ({"a": {0: 1.0, 1: 2.0}}, "only the baseline"),
        ({"a": {0: 1.0, 1: 2.0}, "b": {0: 1.0, 1: 2.0}}, "vary the seed"),
    ],
)
def test_what_cannot_be_judged_is_refused(measured: dict[str, dict[int, float]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        verdicts(measured, "a")


def test_rows_become_pairs() -> None:
    rows = [{"bits": 1.0 + k + seed, "change": name, "seed": seed} for k, name in enumerate("ab") for seed in (0, 1)]
    assert from_rows(rows, "bits", "change") == {"a": {0: 1.0, 1: 2.0}, "b": {0: 2.0, 1: 3.0}}
    with pytest.raises(UserError, match="twice with seed 1"):
        from_rows([*rows, rows[-1]], "bits", "change")
    with pytest.raises(UserError, match="row 1 has no 'loss'"):
        from_rows(rows, "loss", "change")


def test_a_verdict_is_json() -> None:
    measured = {"a": {0: 1.0, 1: 2.0, 2: 2.5}, "b": {0: 1.5, 1: 2.4, 2: 3.1}}
    (one,) = verdicts(measured, "a")
    record = json.loads(json.dumps(one.to_json()))
    assert record["sentence"] == one.sentence() and record["seeds"] == 3

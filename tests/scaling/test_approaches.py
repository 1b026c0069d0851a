import json

import numpy as np
import pytest

from research.errors import UserError
from research.scaling import curves, isoflop, parametric
from research.scaling.answers import Answer, record
from research.scaling.approaches import analyse
from research.scaling.bootstrap import Estimate, Sampling, UnidentifiedError, interval
from research.scaling.forms import Chinchilla, Kaplan
from research.scaling.page import page
from research.scaling.rows import Runs
from tests.scaling import laws

QUICK = Sampling(draws=60)


def test_exact_runs_give_the_law_back() -> None:
    """No noise: every estimate is the truth, and the intervals have next to no width."""
    answer = parametric.answer(Chinchilla(), laws.isoflop(), [1e21], laws.isoflop(), QUICK)
    truth = {"E": laws.E, "A": laws.A, "B": laws.B, "alpha": laws.ALPHA, "beta": laws.BETA, "a": laws.EXPONENT_A}
    for name, value in truth.items():
        assert answer.estimates[name].value == pytest.approx(value, rel=1e-3)
        assert answer.estimates[name].high - answer.estimates[name].low < 1e-2 * value
    (optimum,) = answer.optima
    assert optimum.parameters.value == pytest.approx(laws.best_size(1e21), rel=1e-3)
    assert 6 * optimum.parameters.value * optimum.tokens.value == pytest.approx(1e21)
    for prediction in answer.predictions:
        assert prediction.predicted.value == pytest.approx(prediction.measured, rel=1e-5)


def test_parabolas_find_the_minima_of_symmetric_valleys() -> None:
    """Where both exponents are equal, a budget's losses are symmetric in log N and the parabola's place is exact."""
    runs = laws.isoflop()
    valley = np.log(runs.parameters / np.array([laws.best_size(flops) for flops in runs.flops])) ** 2
    exact = Runs(**{**vars(runs), "loss": 2.0 + 0.05 * valley + 3.0 * runs.flops**-0.05})
    answer = isoflop.answer(exact, [1e22], QUICK)
    assert answer.estimates["a"].value == pytest.approx(laws.EXPONENT_A, abs=1e-9)
    assert answer.estimates["b"].value == pytest.approx(laws.EXPONENT_B, abs=1e-9)
    assert answer.optima[0].parameters.value == pytest.approx(laws.best_size(1e22), rel=1e-6)
    for parabola in answer.parabolas:
        assert parabola.parameters.value == pytest.approx(laws.best_size(parabola.flops), rel=1e-6)
        assert len(parabola.cells) == 7


def test_the_envelope_of_exact_curves_is_near_the_frontier() -> None:
    answer = curves.answer(laws.curves(), [1e19], QUICK)
    assert answer.estimates["a"].value == pytest.approx(laws.EXPONENT_A, abs=0.01)
    assert answer.optima[0].parameters.value == pytest.approx(laws.best_size(1e19), rel=0.05)


@pytest.mark.parametrize("approach", ["isoflop", "parametric", "kaplan"])
def test_units_change_nothing_but_the_units(approach: str) -> None:
    """Parameters in thousands, tokens in batches, losses in bits: exponents stay, sizes and losses are rescaled."""
    runs = laws.isoflop(noise=0.004)
    (one,) = analyse(runs, approach, [1e20], sampling=QUICK)
    (other,) = analyse(laws.rescaled(runs, 1e-3, 1e-2, 1 / np.log(2)), approach, [1e15], sampling=QUICK)
    for name in ("a", "b"):
        assert other.estimates[name].to_json() == pytest.approx(one.estimates[name].to_json(), abs=1e-4)
    assert other.optima[0].parameters.value == pytest.approx(one.optima[0].parameters.value * 1e-3, rel=0.02)
    if one.optima[0].loss is not None and other.optima[0].loss is not None:
        assert other.optima[0].loss.value == pytest.approx(one.optima[0].loss.value / np.log(2), rel=1e-3)


def test_the_seed_decides_the_interval() -> None:
    runs = laws.isoflop(noise=0.004)
    first, again, other = (isoflop.answer(runs, [1e20], Sampling(60, seed=seed)).to_json() for seed in (1, 1, 2))
    assert first == again != other


def test_order_of_runs_does_not_matter_to_the_estimate() -> None:
    runs = laws.isoflop(noise=0.004)
    mixed = runs.take(np.random.default_rng(0).permutation(len(runs)))
    for approach in ("isoflop", "parametric"):
        (one,), (other,) = (analyse(some, approach, sampling=QUICK) for some in (runs, mixed))
        for name in one.estimates:
            assert other.estimates[name].value == pytest.approx(one.estimates[name].value, rel=1e-3)


def test_the_data_constrained_law_says_what_repetition_is_worth() -> None:
    grids = np.meshgrid(np.logspace(6.5, 8.5, 4), np.logspace(8, 9.5, 3), [1.0, 4.0, 16.0, 64.0])
    sizes, unique, epochs = (grid.ravel() for grid in grids)
    runs = laws.make(sizes, unique * epochs)
    runs = Runs(**{**vars(runs), "unique": unique, "loss": laws.repeated_loss(sizes, unique * epochs, unique)})
    (answer,) = analyse(runs, "data", [1e20], sampling=QUICK)
    assert answer.estimates["R_D*"].value == pytest.approx(laws.R_D, rel=0.01)
    assert answer.estimates["R_N*"].value == pytest.approx(laws.R_N, rel=0.01)
    assert answer.estimates["alpha"].value == pytest.approx(laws.ALPHA, rel=0.01)


def test_kaplans_law_is_fitted_to_kaplans_runs() -> None:
    runs = laws.isoflop()
    exact = ((8.8e13 / runs.parameters) ** (0.076 / 0.103) + 5.4e13 / runs.tokens) ** 0.103
    answer = parametric.answer(Kaplan(), Runs(**{**vars(runs), "loss": exact}), [1e20], None, QUICK)
    for name, value in {"alpha_N": 0.076, "alpha_D": 0.103, "N_c": 8.8e13, "D_c": 5.4e13}.items():
        assert answer.estimates[name].value == pytest.approx(value, rel=1e-2)


def test_a_ladder_predicts_its_largest_rung() -> None:
    parameters = np.logspace(6.5, 9, 11)
    runs = laws.make(parameters, 20 * parameters, noise=0.002)
    fitted, held = runs.split(["largest"])
    (answer,) = analyse(fitted, "ladder", held=held, sampling=Sampling(200))
    (prediction,) = answer.predictions
    assert prediction.name == "run-10" and prediction.inside
    assert "inside the interval" in prediction.sentence()


def test_the_law_that_the_runs_scatter_least_about_predicts() -> None:
    """Losses without a floor: both laws can be fitted, and the one with a floor too many scatters more."""
    runs = laws.isoflop(budgets=4, sizes=6)
    exact = np.log((8.8e9 / runs.parameters) ** (0.175 / 0.209) + 3.6e10 / runs.tokens) * 0.209
    noise = 0.004 * np.random.default_rng(0).standard_normal(len(runs))
    fitted, held = Runs(**{**vars(runs), "loss": np.exp(exact + noise)}).split(["largest"])
    told = [analyse(fitted, name, held=held, sampling=QUICK)[0] for name in ("parametric", "kaplan")]
    assert all(answer.predictions for answer in told)
    assert told[1].residual < told[0].residual
    for given in (told, told[::-1]):
        found = record(given, 0.95, {})
        assert [one["by"] for one in found["predictions"]] == ["kaplan"] * len(held)
        assert [one["predicted"] for one in found["predictions"]] == [
            one.predicted.value for one in told[1].predictions
        ]
    assert record([Answer("isoflop", refused="no minimum")], 0.95, {})["predictions"] == []


def test_the_frontier_goes_from_the_smallest_run_to_ten_times_the_largest() -> None:
    runs = laws.isoflop(noise=0.003)
    for asked in ((), (1e25,)):
        (answer,) = analyse(runs, "parametric", asked, sampling=QUICK)
        flops = [point.flops for point in answer.frontier]
        assert len(flops) == 9
        assert (flops[0], flops[-1]) == pytest.approx((runs.flops.min(), 10 * runs.flops.max()))


def drifting(amount: float, seeds: int = 6) -> Runs:
    """Losses that leave Chinchilla's law at both ends of the budgets, with little noise and seeds that show it."""
    runs = laws.isoflop(budgets=4, sizes=4)
    runs = runs.take(np.repeat(np.arange(len(runs)), seeds))
    bend = amount * np.sin(3 * np.log(runs.flops / 1e17)) * np.cos(2 * np.log(runs.parameters))
    noise = 0.002 * np.random.default_rng(1).standard_normal(len(runs))
    names = tuple(f"run-{number}" for number in range(len(runs)))
    return Runs(**{**vars(runs), "names": names, "loss": runs.loss * np.exp(bend + noise)})


def test_what_a_law_misses_widens_predictions_and_is_said() -> None:
    """Seeds that agree with one another and not with the law are no independent witnesses."""
    held = laws.make(np.array([laws.best_size(4e20)]), np.array([4e20 / 6 / laws.best_size(4e20)]))
    sound, bent = (parametric.answer(Chinchilla(), drifting(a), [1e21], held, Sampling(200)) for a in (0.0, 0.01))
    widths = [answer.predictions[0].predicted.high / answer.predictions[0].predicted.low for answer in (sound, bent)]
    assert widths[1] - 1 > 3 * (widths[0] - 1)
    assert not any("misses something" in note for note in sound.notes)
    assert any("misses something" in note for note in bent.notes)
    for answer in (sound, bent):
        assert any("assume that the form holds up to 4 times the largest budget" in note for note in answer.notes)


def line(sizes: int = 9) -> Runs:
    parameters = np.logspace(6.5, 9, sizes)
    return laws.make(parameters, 20 * parameters, noise=0.001)


def far_side() -> Runs:
    """Only sizes beyond the best ones."""
    flops = np.repeat(np.logspace(17, 20, 4), 5)
    parameters = np.array([laws.best_size(value) for value in flops]) * np.tile(np.logspace(0.5, 1.5, 5), 4)
    return laws.make(parameters, flops / 6 / parameters)


def upside_down() -> Runs:
    runs = laws.isoflop()
    return Runs(**{**vars(runs), "loss": 10.0 - runs.loss})


def rising() -> Runs:
    """Losses that know nothing of size or data."""
    runs = laws.isoflop()
    return Runs(**{**vars(runs), "loss": 3.0 + 0.001 * np.random.default_rng(0).standard_normal(len(runs))})


@pytest.mark.parametrize(
    ("runs", "approach", "said"),
    [
        (line(), "parametric", "tokens follow from parameters"),
        (line(), "kaplan", "tokens follow from parameters"),
        (line(4), "ladder", "too few"),
        (laws.isoflop(), "ladder", "lie on no line"),
        (far_side(), "isoflop", "no minimum among its sizes .* add smaller sizes"),
        (upside_down(), "isoflop", "do not curve upwards"),
        (laws.isoflop(budgets=2), "isoflop", "2 budgets have 3 sizes"),
        (laws.isoflop(sizes=3), "isoflop", "too few to know the noise"),
        (laws.isoflop(noise=0.2), "isoflop", "minimum|curve upwards"),
        (line(), "isoflop", "0 budgets"),
        (laws.isoflop(budgets=2, sizes=3), "parametric", "6 runs are too few"),
        (rising(), "parametric", "at its bound|leaves its bounds"),
        (laws.isoflop(), "curves", "say with --curve"),
        (laws.curves(sizes=5), "curves", "5 sizes have a training curve"),
        (laws.isoflop(), "data", "--unique"),
    ],
)
def test_what_runs_cannot_tell_is_refused(runs: Runs, approach: str, said: str) -> None:
    with pytest.raises(UnidentifiedError, match=said):
        analyse(runs, approach, sampling=QUICK)


def test_repetition_is_refused_where_nothing_repeats() -> None:
    runs = laws.isoflop()
    with pytest.raises(UnidentifiedError, match="0 runs see their data more than"):
        analyse(Runs(**{**vars(runs), "unique": runs.tokens}), "data", sampling=QUICK)


def test_all_approaches_answer_or_say_why_not() -> None:
    told = analyse(laws.isoflop(noise=0.003), sampling=QUICK)
    assert [answer.approach for answer in told] == ["isoflop", "parametric", "kaplan", "ladder"]
    assert told[-1].refused and "no line" in told[-1].sentence()
    assert "N grows as C^0.5" in told[1].sentence()
    for bad in ({"approach": "magic"}, {"budgets": [-1.0]}):
        with pytest.raises(UserError, match=r"--approach|--budget"):
            analyse(laws.isoflop(), **bad)


def test_the_record_and_its_page_say_the_same() -> None:
    runs = laws.isoflop(noise=0.003)
    fitted, held = runs.split(["run-3"])
    told = analyse(fitted, held=held, sampling=QUICK)
    found = json.loads(json.dumps(record(told, 0.95, {"runs": "runs <b>.csv"})))
    shown = page("runs <b>.csv", found, fitted)
    assert "<h1>Scaling of runs &lt;b&gt;.csv</h1>" in shown and "runs <b>" not in shown
    assert f"{found['fits'][1]['estimates']['alpha']['value']:.5g}" in shown
    assert "Not fitted: the runs lie on no line" in shown
    assert found["predictions"][0]["cell"] == "run-3" and "run-3: predicted" in shown


def test_few_runs_widen_quantiles_as_students_t_does() -> None:
    """Of normal draws, an expanded percentile interval is the t interval."""
    draws = np.random.default_rng(0).normal(0, 1, 400_000)
    found = interval(0.0, draws, freedom=6)
    assert (found.low, found.high) == pytest.approx((-2.447, 2.447), abs=0.05)
    assert interval(0.0, draws, freedom=10_000).high == pytest.approx(1.96, abs=0.02)
    assert Estimate(1.0, 0.5, 2.0).covers(2.0) and not Estimate(1.0, 0.5, 2.0).covers(2.1)
    for bad in ({"draws": 3}, {"confidence": 1.0}):
        with pytest.raises(UserError):
            Sampling(**bad)

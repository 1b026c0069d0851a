"""Best learning rates by size: found where they are, and not where nobody looked; which cells are one series."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from research.errors import UserError
from research.scaling import report_transfer, series
from research.scaling.bootstrap import Sampling
from research.scaling.transfer import NONE, PARABOLA, SEEDS, Transfer, transfer
from research.sweeps.analysis import answers_of
from tests.small import assert_one_sentence

RATES = [2.0**-power for power in range(9, 3, -1)]
WIDTHS = (32, 64, 128, 256)
QUICK = Sampling(draws=200)


def made(
    exponent: float, widths: tuple[int, ...] = WIDTHS, best: float = 0.013, noise: float = 0.0, seeds: int = 1
) -> Transfer:
    """Runs whose loss is a parabola in the logarithm of the rate, least at `best * (width / 32)^exponent`."""
    generator = np.random.default_rng(int(1e4 * noise) + seeds)
    runs = [
        {
            "width": width,
            "rate": rate,
            "loss": 2
            + 0.1 * math.log(rate / (best * (width / 32) ** exponent)) ** 2
            + noise * float(generator.standard_normal()),
        }
        for width, rate, _ in itertools.product(widths, RATES, range(seeds))
    ]
    return transfer(runs, "width", "rate", "loss", QUICK)


@pytest.mark.parametrize("exponent", [0.0, -0.3, -0.5])
def test_the_best_rate_of_a_parabola_and_how_it_moves(exponent: float) -> None:
    found = made(exponent)
    assert found.exponent is not None and found.intervals == PARABOLA
    assert found.exponent.value == pytest.approx(exponent, abs=1e-9)
    assert found.exponent.high - found.exponent.low < 1e-6  # parabolas scatter about no parabola
    for optimum in found.optima:
        assert optimum.rate.value == pytest.approx(0.013 * (optimum.size / 32) ** exponent)
        assert optimum.loss == pytest.approx(2) and optimum.edge is None
    first, *_, last = found.optima
    assert first.cost is not None and first.cost.value == pytest.approx(0, abs=1e-9)
    assert last.cost is not None
    exact = 0.05 * math.log(8**exponent) ** 2
    assert exact - 1e-9 <= last.cost.value <= exact + 0.05 * (math.log(2) / 2) ** 2  # a chord lies above a parabola


def test_what_is_best_at_an_edge_counts_in_no_exponent() -> None:
    found = made(-1.0, best=0.02)
    assert [optimum.edge for optimum in found.optima] == [None, None, None, "lowest"]
    assert found.exponent is not None and found.exponent.value == pytest.approx(-1.0)
    assert made(0.0, best=1.0).exponent is None
    assert {optimum.edge for optimum in made(0.0, best=1.0).optima} == {"highest"}


@pytest.mark.parametrize(("seeds", "intervals"), [(1, PARABOLA), (3, SEEDS)])
def test_intervals_hold_the_exponent_about_as_often_as_they_say(seeds: int, intervals: str) -> None:
    hits = []
    for draw in range(40):
        found = made(-0.3, noise=0.005 + draw * 1e-4, seeds=seeds)
        assert found.exponent is not None and found.intervals == intervals
        hits.append(found.exponent.covers(-0.3))
    assert np.mean(hits) >= 0.85
    assert found.exponent.high - found.exponent.low < 1.0


def test_seeds_are_averaged_and_runs_that_diverged_are_left_out() -> None:
    runs = [{"width": 1, "rate": rate, "loss": 2 + math.log(rate * 50) ** 2} for rate in RATES]
    runs += [{**run, "width": 2} for run in runs]
    diverged = [{"width": 1, "rate": 1.0, "loss": math.nan}, {"width": 2, "rate": RATES[-1], "loss": math.inf}]
    plain, more = (transfer(given, "width", "rate", "loss", QUICK) for given in (runs, runs + runs + diverged))
    assert (more.optima[0].rate.value, more.optima[0].loss) == (plain.optima[0].rate.value, plain.optima[0].loss)
    assert more.optima[1].rate.value == pytest.approx(0.02)


def test_three_rates_and_one_seed_tell_no_noise() -> None:
    runs = [{"w": w, "r": rate, "l": math.log(rate * 50) ** 2 + 1} for w in (1, 2) for rate in (0.01, 0.02, 0.04)]
    found = transfer(runs, "w", "r", "l", QUICK)
    assert found.intervals == NONE and found.exponent is not None and math.isnan(found.exponent.low)


def test_what_cannot_be_told_is_refused() -> None:
    runs = [{"width": width, "rate": rate, "loss": 1.0} for width in (1, 2) for rate in RATES[:2]]
    with pytest.raises(UserError) as caught:
        transfer(runs, "width", "rate", "loss")
    assert_one_sentence(str(caught.value), "width", "three")


# --- series -----------------------------------------------------------------------------------------------------------

RECIPE = {"model.parametrisation": "standard", "model.num_heads": 4, "optimizer.learning_rate": 4e-3}
MUP = {"model.parametrisation": "mup", "model.base_width": 32, "model.base_head_dim": 8}


def row(point: dict[str, Any], objective: str = "causal", exponent: float = -0.5) -> dict[str, Any]:
    width, rate = point.get("model.embed_dim", 32), point.get("optimizer.learning_rate", 4e-3)
    loss = 2 + 0.1 * math.log(rate / (0.013 * (width / 32) ** exponent)) ** 2
    facts = {"objective": objective, "state": "done", "seed": 0, "bits_per_byte": loss}
    return {"id": f"{objective} {sorted(point.items())}", "point": point, **facts}


def grid(widths: tuple[int, ...] = WIDTHS, **more: Any) -> list[dict[str, Any]]:
    return [
        {"model.embed_dim": w, "model.mlp_dim": 3 * w, "optimizer.learning_rate": r, **more}
        for w, r in itertools.product(widths, RATES)
    ]


def two_parametrisations() -> list[dict[str, Any]]:
    mup = [row({**point, **MUP}, exponent=0.0) for point in grid(WIDTHS[1:])]
    return [*map(row, grid()), *mup]


def test_a_width_brings_its_mlp_and_the_cells_of_the_base_stand_for_both() -> None:
    rows = two_parametrisations()
    assert series.size_of(rows, RECIPE) == "model.embed_dim"
    standard, mup = series.series_of(rows, "model.embed_dim", RECIPE)
    assert (standard.name, len(standard.cells), standard.shared) == ("standard", 24, 0)
    assert (mup.name, len(mup.cells), mup.shared) == ("mup", 24, 6)
    assert {cell["point"]["model.embed_dim"] for cell in mup.cells} == set(WIDTHS)


def test_a_base_whose_heads_were_of_another_width_is_not_the_same_model() -> None:
    rows = [*map(row, grid()), *(row({**point, **MUP, "model.base_head_dim": 16}) for point in grid(WIDTHS[1:]))]
    assert [one.shared for one in series.series_of(rows, "model.embed_dim", RECIPE)] == [0, 0]


def test_objectives_are_series_and_lengths_that_follow_from_both_are_not() -> None:
    rows = [
        row({**point, "objective.name": name, "train.num_steps": steps * point["model.embed_dim"]}, name)
        for name, steps in (("causal", 10), ("masked", 13))
        for point in grid((32, 64))
    ]
    found = series.series_of(rows, "model.embed_dim", RECIPE)
    assert [(one.name, len(one.cells)) for one in found] == [("causal", 12), ("masked", 12)]


def content(**fields: Any) -> dict[str, Any]:
    settings = {"model": {"parametrisation": "standard", "num_heads": 4}, "optimizer": {"learning_rate": 4e-3}}
    plain = {"yardstick": "bits_per_byte", "baseline": None, "base": {"settings": settings}}
    return {**plain, "analyses": ("transfer",), **fields}


def test_the_answer_of_a_sweep_over_rates() -> None:
    found = answers_of(content(), two_parametrisations())["transfer"]
    standard, mup = found["series"]
    assert (found["size"], found["called"]) == ("model.embed_dim", "width")
    assert standard["exponent"]["value"] == pytest.approx(-0.5) and mup["exponent"]["value"] == pytest.approx(0.0)
    said = report_transfer.sentences(found)
    assert said[0].startswith("standard: the best learning rate goes as width^−0.50 (")
    assert "keeping that of width 32 costs" in said[0] and said[1].endswith("0.0%) of the loss at width 256")
    shown = report_transfer.section(found)
    assert shown.count("<tr data-optimum>") == 8 and "6 cells of width 32 stand for mup as well" in shown
    drawn = report_transfer.drawings(found, "bits per byte")
    assert [chart["what"] for chart in drawn] == ["transfer", "transfer", "rates"]
    assert [curve["size"] for curve in drawn[1]["curves"]] == list(WIDTHS)


@pytest.mark.parametrize(
    ("rows", "fields", "said"),
    [
        ([row({"model.embed_dim": w}) for w in WIDTHS], {}, "no two measured cells differ in optimizer.learning_rate"),
        ([row(point) for point in grid()], {"yardstick": "heldout_accuracy"}, "is not a loss"),
    ],
)
def test_a_sweep_that_tells_nothing_of_rates_is_refused(rows: Any, fields: dict[str, Any], said: str) -> None:
    rows = [one | {"heldout_accuracy": 0.5} for one in rows]
    told = answers_of(content(**fields), rows)["transfer"]["refused"]
    assert said in told and said in report_transfer.section({"refused": told})


def test_nothing_is_said_of_rates_that_nobody_tried_beside_other_questions() -> None:
    rows = [row({"model.embed_dim": width, "optimizer.learning_rate": 0.1 / width}) for width in WIDTHS]
    assert "transfer" not in answers_of(content(analyses=("verdict", "transfer")), rows)


def test_an_exponent_of_either_sign_is_no_answer() -> None:
    found = answers_of(content(), two_parametrisations())["transfer"]
    found["series"][0]["exponent"] |= {"value": -1.55, "low": -6.0, "high": 3.8}
    said = report_transfer.sentences(found)[0]
    assert "how the best learning rate goes with the width these runs do not tell: −1.55 (−6.00 to 3.80)" in said


def test_of_one_size_each_series_has_its_best_rate() -> None:
    rows = [
        row({"optimizer.name": name, "optimizer.learning_rate": rate, "optimizer.schedule": schedule}, exponent=0.0)
        for name, schedule in (("adamw", "cosine"), ("lion", "cosine"), ("schedule_free", "constant"))
        for rate in RATES
    ]
    found = answers_of(content(), rows)["transfer"]
    assert found["size"] is None and [one["name"] for one in found["series"]] == ["adamw", "lion", "schedule_free"]
    for one, said in zip(found["series"], report_transfer.sentences(found), strict=True):
        assert one["exponent"] is None and len(one["optima"]) == 1
        assert one["optima"][0]["rate"]["value"] == pytest.approx(0.013)
        assert said.startswith(f"{one['name']}: the best learning rate is 0.013 (")
    assert "cost" not in report_transfer.section(found)
    assert [chart["what"] for chart in report_transfer.drawings(found, "bits per byte")] == ["transfer"] * 3


def test_a_series_with_too_few_rates_is_refused_alone() -> None:
    rows = [*map(row, grid()), *(row({**point, **MUP}) for point in grid(WIDTHS[1:])[:2])]
    standard, mup = answers_of(content(), rows)["transfer"]["series"]
    assert "refused" not in standard and "give it three" in mup["refused"]

"""Rates and batches of rungs: by rules, from a reference, from a finished sweep; and what a sweep says of them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from research.errors import UserError
from research.sweeps import (
    RULES,
    Law,
    Rule,
    Sweep,
    branch,
    by_rule,
    by_tuning,
    chain,
    isoflop,
    ladder,
    only,
    over,
    product,
    scaled,
    tuned,
    zipped,
)
from research.sweeps import folder as folders
from research.sweeps.budgets import STEPS, figures
from research.sweeps.folder import create
from research.sweeps.resolve import base_record, settings_of
from research.sweeps.rows import facts_of
from research.sweeps.rules import BATCH, RATE, Scale, scale_of
from research.sweeps.sweep import NOT_STATED, ONE_FOR_ALL, cells_of, tuning_of
from tests.small import assert_one_sentence

RECIPE = "configs/causal.py:tiny"
SIZES = zipped(over("model.embed_dim", [32, 64, 128]), over("model.num_heads", [1, 2, 4]))
BUDGETS = (1e12, 4e12)
RUNGS = isoflop(SIZES, BUDGETS, RECIPE)


def spent(point: Any, field: str = "step_flops") -> float:
    settings = settings_of(RECIPE, point)
    each: float = getattr(figures(settings), field)
    return settings.train.num_steps * each


def test_published_rules_give_the_figures_of_their_papers() -> None:
    deepseek, step = RULES["deepseek"], RULES["step_law"]
    assert deepseek.rate and deepseek.batch and step.rate and step.batch
    # DeepSeek LLM 7B: 4.2e-4 and 2304 rows of 4096 for 2e12 tokens of 4.23e10 FLOPs each (its tables 2 and 3).
    seven = Scale(6.9e9, 2e12, 2e12 * 4.23e10, 0.0)
    assert 0.3118 * deepseek.rate.of(seven) == pytest.approx(4.2e-4, rel=0.02)
    assert 0.2920 * deepseek.batch.of(seven) == pytest.approx(2304 * 4096, rel=0.03)
    one = Scale(1e9, 1e11, 6e20, 0.0)
    assert step.rate.coefficient == 1.79 and step.batch.coefficient == 0.58
    assert 1.79 * step.rate.of(one) == pytest.approx(1.79 * math.exp(-0.713 * math.log(1e9) + 0.307 * math.log(1e11)))
    assert 0.58 * step.batch.of(one) == pytest.approx(1.108e6, rel=0.01)
    assert all(rule.source and rule.conditions for rule in RULES.values())


@pytest.mark.parametrize("keep", ["model_flops", "tokens_seen", "required_flops"])
def test_a_rung_spends_what_it_did_to_the_nearest_update(keep: str) -> None:
    field = {"model_flops": "step_flops", "tokens_seen": "step_tokens", "required_flops": "step_required_flops"}[keep]
    found = scaled(RUNGS, RECIPE, "step_law", keep=keep, multiple=2)
    for before, after in zip(RUNGS, found, strict=True):
        assert after[BATCH] % 2 == 0 and after[BATCH] != 8
        own = spent(after, field) / after[STEPS]
        assert abs(spent(after, field) - spent(before, field)) <= own / 2 * (1 + 1e-9)
        assert {key: after[key] for key in before if key != STEPS} == {
            key: before[key] for key in before if key != STEPS
        }
        scale = scale_of(settings_of(RECIPE, before))
        assert after[RATE] == pytest.approx(1.79 * scale.parameters**-0.713 * scale.tokens**0.307, rel=1e-3)
        wanted = 0.58 * scale.tokens**0.571 / 128
        assert abs(after[BATCH] - wanted) <= 1.0


def test_budgets_that_are_given_are_not_rounded_twice() -> None:
    large = isoflop(product(SIZES, only({BATCH: 256})), BUDGETS, RECIPE)
    found = scaled(large, RECIPE, "step_law", budgets=BUDGETS)
    for point, budget in zip(found, [budget for budget in BUDGETS for _ in SIZES], strict=True):
        assert abs(spent(point) - budget) <= spent(point) / point[STEPS] / 2 * (1 + 1e-9)
    off = [abs(spent(point) / min(BUDGETS, key=lambda one: abs(one - spent(point))) - 1) for point in large]
    assert max(off) > 0.005  # as the points were made, half an update of 256 rows is much
    with pytest.raises(UserError) as caught:
        scaled(large, RECIPE, "step_law", budgets=[3e12])
    assert_one_sentence(str(caught.value), "3e+12", "train.num_steps")


def test_from_a_reference_values_are_scaled_and_at_it_they_are_its_own() -> None:
    reference = {**RUNGS[1], RATE: 3e-3, BATCH: 16}
    rule = Rule("mine", rate=Law(parameters=-0.5, batch=0.5), batch=Law(tokens=0.5))
    (own,) = scaled([reference], RECIPE, rule, reference=reference)
    assert own == reference
    base = scale_of(settings_of(RECIPE, reference))
    for point in scaled(RUNGS, RECIPE, rule, reference=reference, keep="tokens_seen"):
        scale = scale_of(settings_of(RECIPE, point))
        assert scale.batch / base.batch == pytest.approx((scale.tokens / base.tokens) ** 0.5, abs=0.5 / 16)
        wanted = 3e-3 * (base.parameters / scale.parameters) ** 0.5 * (scale.batch / base.batch) ** 0.5
        assert point[RATE] == pytest.approx(wanted, rel=1e-3)


def test_the_square_root_rule_keeps_how_many_rows_averages_reach_back() -> None:
    reference = {**RUNGS[0], BATCH: 8, RATE: 4e-3}
    (found,) = scaled([{**RUNGS[0], BATCH: 32}], RECIPE, "square_root", reference=reference)
    assert found[RATE] == 8e-3 and found[STEPS] == RUNGS[0][STEPS]
    of, base = settings_of(RECIPE, found).optimizer, settings_of(RECIPE, reference).optimizer
    for name in ("beta1", "beta2"):
        assert 8 / (1 - getattr(base, name)) == pytest.approx(32 / (1 - getattr(of, name)))
    assert of.epsilon == pytest.approx(base.epsilon / 2)


MUP = {"model.parametrisation": "mup", "model.base_width": 32}


@pytest.mark.parametrize(
    ("points", "fields", "mentioned"),
    [
        (RUNGS, {"rule": "chinchilla"}, ["'chinchilla'", "step_law"]),
        (RUNGS, {"rule": "square_root"}, ["square_root", "reference"]),
        (RUNGS, {"rule": Rule("mine", rate=Law(tokens=0.3))}, ["mine", "reference"]),
        (RUNGS, {"rule": Rule("none")}, ["none", "Law"]),
        (product(RUNGS, only(MUP)), {"rule": "step_law"}, ["step_law", "model.parametrisation=mup"]),
        (RUNGS, {"rule": "step_law", "keep": "hours"}, ["keep='hours'", "tokens_seen"]),
        (RUNGS, {"rule": "step_law", "multiple": 64}, ["multiple=64", "step_law"]),
        (
            [{**RUNGS[0], BATCH: 128}],
            {"rule": "square_root", "reference": {**RUNGS[0], BATCH: 8}},
            ["16 times", "a beta of -0.6"],
        ),
        (product(SIZES[:1], only({STEPS: 1, BATCH: 1})), {"rule": Rule("r", batch=Law(1e6))}, ["of an update"]),
    ],
)
def test_what_a_rule_cannot_say_is_refused(points: Any, fields: dict[str, Any], mentioned: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        scaled(points, RECIPE, **fields)
    assert_one_sentence(str(caught.value), *mentioned)


def test_branches_are_made_of_points_that_were_scaled() -> None:
    wsd = {**RUNGS[0], "optimizer.schedule": "wsd"}
    made = branch([wsd], RECIPE, at=[wsd[STEPS] // 2])
    with pytest.raises(UserError, match="then branch"):
        scaled(made, RECIPE, "step_law")
    (trunk,) = scaled([wsd], RECIPE, "step_law")
    assert [point[RATE] for point in branch([trunk], RECIPE, at=[trunk[STEPS] // 2])] == 2 * [trunk[RATE]]


# --- from a finished sweep --------------------------------------------------------------------------------------------

RATES = (1e-3, 2e-3, 4e-3, 8e-3)
BEST = {32: 4e-3, 64: 2e-3, 128: 2e-3}


def results(batches: tuple[int, ...] = (8,), best_batch: int = 8) -> dict[str, Any]:
    """A finished sweep over rates (and batches) at the sizes of the first budget, with two seeds; 8e-3 diverges."""
    rungs = isoflop(product(SIZES, over(BATCH, batches)), BUDGETS[:1], RECIPE)
    points = product(rungs, over(RATE, RATES), over("seed", [0, 1]))
    rows = []
    for point in points:
        off = abs(math.log(point[RATE] / BEST[point["model.embed_dim"]])) + abs(math.log(point[BATCH] / best_batch))
        loss = 2.0 + 0.1 * off + 0.01 * point["seed"]
        row = {"point": point, "state": "done", "bits_per_byte": loss}
        if point[RATE] == RATES[-1]:
            row |= {"state": "failed", "bits_per_byte": None, "reason": "the loss of update 7 is nan: lower it"}
        rows.append(row)
    return {"recipe": RECIPE, "yardstick": "bits_per_byte", "question": "rates?", "rows": rows}


def test_each_rung_takes_what_was_best_at_its_size(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(results()))
    found = tuned(RUNGS, RECIPE, tmp_path)
    assert [point[RATE] for point in found] == [BEST[point["model.embed_dim"]] for point in RUNGS]
    assert [point[STEPS] for point in found] == [point[STEPS] for point in RUNGS]
    assert by_tuning(found, RECIPE, path) == f"learning rate tuned at 3 sizes in {path}"
    batched = tuned(RUNGS, RECIPE, results((4, 8, 16, 32), 16), over=(RATE, BATCH))
    for before, after in zip(RUNGS, batched, strict=True):
        assert after[BATCH] == 16 and after[RATE] == BEST[after["model.embed_dim"]]
        assert abs(spent(after) - spent(before)) <= spent(after) / after[STEPS] / 2 * (1 + 1e-9)


def test_of_several_budgets_the_nearest_counts() -> None:
    content = results()
    long = [
        {**row, "point": {**row["point"], STEPS: 4 * row["point"][STEPS]}, "bits_per_byte": row["point"][RATE]}
        for row in content["rows"]
        if row["state"] == "done"
    ]
    content["rows"] += [{**row, "bits_per_byte": abs(row["bits_per_byte"] - 2e-3)} for row in long]
    found = tuned(RUNGS, RECIPE, content)
    assert [point[RATE] for point in found] == [4e-3, 2e-3, 2e-3, 2e-3, 2e-3, 2e-3]


def test_a_best_value_at_the_edge_of_what_was_tried_is_refused_unless_it_may_be() -> None:
    content = results((8, 16), 16)
    with pytest.raises(UserError) as caught:
        tuned(RUNGS, RECIPE, content, over=(RATE, BATCH))
    assert_one_sentence(str(caught.value), "train.batch_size", "16, the largest", "rates?")
    assert all(point[BATCH] == 16 for point in tuned(RUNGS, RECIPE, content, over=(RATE, BATCH), at_edge=(BATCH,)))
    # What diverged was tried; what failed otherwise was not.
    content = results()
    for row in content["rows"]:
        row["reason"] = "no room on the disk"
    with pytest.raises(UserError) as caught:
        tuned(RUNGS, RECIPE, content)
    assert_one_sentence(str(caught.value), "optimizer.learning_rate", "0.004, the largest")


def test_what_a_finished_sweep_does_not_say_is_refused(tmp_path: Path) -> None:
    other = ladder([{"model.embed_dim": 256}], RECIPE)
    for points, content, fields, mentioned in (
        (other, results(), {}, ["rates?", "parameters"]),
        (RUNGS, results(), {"over": (RATE, BATCH)}, ["one train.batch_size", "8"]),
        (RUNGS, tmp_path / "rows.json", {}, ["rows.json", "isoflop sweep report"]),
        (RUNGS, {"rows": []}, {}, ["'recipe'"]),
    ):
        with pytest.raises(UserError) as caught:
            tuned(points, RECIPE, content, **fields)  # type: ignore[arg-type]
        assert_one_sentence(str(caught.value), *mentioned)


# --- what a sweep says ------------------------------------------------------------------------------------------------


def sweep(points: Any, **fields: Any) -> Sweep:
    return Sweep(question="what?", recipe=RECIPE, points=tuple(points), **fields)


def test_a_sweep_tells_how_its_rungs_were_tuned() -> None:
    def told(of: Sweep) -> str:
        return tuning_of(of, [cell.settings for cell in cells_of(of)[0]])

    assert told(sweep(RUNGS)) == ONE_FOR_ALL
    assert told(sweep(RUNGS[:1])) == told(sweep(product(RUNGS[:1], over(RATE, RATES)))) == NOT_STATED
    assert told(sweep(product(RUNGS, only(MUP)))) == told(sweep(scaled(RUNGS, RECIPE, "step_law"))) == NOT_STATED
    points = scaled(RUNGS, RECIPE, "step_law")
    stated = by_rule(points, RECIPE, "step_law")
    assert told(sweep(points, tuning=stated)) == stated
    assert "learning rates and batches by the rule step_law (Li et al. 2025" in stated
    assert "6 of 6 points lie outside the tokens of 2e+09 to 1e+11" in stated
    rule, reference = Rule("mine", rate=Law(parameters=-0.5)), {STEPS: 100}
    assert by_rule(points, RECIPE, rule, reference) == (
        'learning rates by the rule mine (of this sweep) from {"train.num_steps": 100}'
    )


def test_the_folder_of_a_sweep_keeps_it_and_older_folders_need_not(tmp_path: Path) -> None:
    cells, _ = cells_of(sweep(chain(RUNGS[:2])))
    entries = [folders.described(cell, {"flops": 1.0}, "0" * 16) for cell in cells]
    source = {"sweep": "sweep.py", "sweep_hash": "0"}
    for name, fields, expected in (("one", {}, ONE_FOR_ALL), ("two", {"tuning": "by hand"}, "by hand")):
        of = sweep(RUNGS[:2], **fields)
        made = create(tmp_path / name, of, base_record(RECIPE), entries, [], source, any_commit=True)
        assert facts_of(made)["tuning"] == made.content["tuning"] == expected
    path = tmp_path / "two" / "sweep.json"
    content = json.loads(path.read_text())
    del content["tuning"]
    path.write_text(json.dumps(content))
    assert facts_of(folders.open_folder(tmp_path / "two"))["tuning"] == NOT_STATED

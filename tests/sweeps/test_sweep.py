"""Cells: their ids, names, refusals; points that are matched, and ladders."""

import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from research import config
from research.errors import UserError
from research.objectives import accounting
from research.scaling import ladder as rungs
from research.sweeps import Sweep, branch, chain, isoflop, ladder, matched, only, over, product, recipes, seeds, zipped
from research.sweeps.budgets import figures
from research.sweeps.resolve import FROM_STEP, settings_of
from research.sweeps.sweep import cells_of, load_sweep, names_of

RECIPE = "configs/causal.py:tiny"
WIDTHS = zipped(over("model.embed_dim", [32, 64, 128]), over("model.num_heads", [1, 2, 4]))

MAKES = "from research.sweeps import Sweep\nget_sweep = lambda: Sweep('q', 'r', {})\n"


def sweep(points: Any, **fields: Any) -> Sweep:
    return Sweep(question="what?", recipe=RECIPE, points=tuple(points), **fields)


def ids(points: Any, **fields: Any) -> dict[str, str]:
    return {cell.name: cell.id for cell in cells_of(sweep(points, **fields))[0]}


def test_ids_are_of_settings_alone() -> None:
    points = product(WIDTHS, over("optimizer.learning_rate", [1e-3, 2e-3]), seeds(2))
    found = ids(points)
    assert len(set(found.values())) == len(points) == len(found)
    shuffled = list(points)
    random.Random(0).shuffle(shuffled)
    assert ids(shuffled) == found
    assert ids([dict(reversed(point.items())) for point in points]) == found
    # Neither other cells, nor what stays of checkpoints, nor keys of execution change an id.
    some = cells_of(sweep(points[:1], keep="all"))[0][0]
    first = cells_of(sweep(points))[0][0]
    assert some.id == first.id == config.scientific_hash(first.settings)[:10]
    assert some.settings.train.keep_every == some.settings.train.checkpoint_every
    noisy = cells_of(sweep([{**points[0], "train.log_every": 7, "parallel.remat": "full"}]))[0][0]
    assert noisy.id == first.id
    # A value that the recipe has already is the recipe's.
    assert ids([{}])["only"] == ids([{"data.sequence_length": 128}])["only"]


def test_two_points_with_one_id_are_refused_by_both_names() -> None:
    with pytest.raises(UserError, match=r'"seed": 0.*"train.log_every": 7') as refused:
        cells_of(sweep([{"seed": 0}, {"train.log_every": 7}]))
    assert "one run" in str(refused.value)


def test_an_impossible_cell_is_refused_and_the_others_are_not() -> None:
    points = [{"model.num_heads": heads} for heads in (4, 5, 8)] + [{"model.depth": 3}, {"train.num_steps": "many"}]
    cells, refused = cells_of(sweep(points))
    assert [cell.settings.model.num_heads for cell in cells] == [4, 8]
    assert ["model.num_heads=5" in refused[0].reason, "model.depth" in refused[1].reason] == [True, True]
    assert "train.num_steps='many'" in refused[2].reason


@profile(max_examples=40, deadline=None)
@given(st.lists(st.fixed_dictionaries({"a.x": st.integers(0, 2), "b.x": st.integers(0, 2), "seed": st.integers(0, 2)})))
def test_names_tell_points_apart(points: Any) -> None:
    points = chain(points)
    names = names_of(points)
    assert len(set(names)) == len(points)
    assert names_of(points[::-1]) == names[::-1]


def test_names_are_short() -> None:
    named = names_of(product(WIDTHS, over("train.num_steps", [10, 20]), seeds(2)))
    assert named[0] == "embed=32 steps=10 seed=0"
    assert names_of([{"seed": 3}]) == ["only"]
    assert names_of([{"a.x": 1, "b.x": 1}, {"a.x": 2, "b.x": 1}, {"a.x": 2, "b.x": 2}])[2] == "a.x=2 b.x=2"


@pytest.mark.parametrize("by", ["model_flops", "required_flops", "tokens_seen", "tokens_predicted"])
def test_matched_objectives_agree_within_one_update(by: str) -> None:
    objectives = recipes("configs/causal.py:tiny", "configs/masked.py:tiny", "configs/prefix.py:tiny")
    assert [set(point) for point in objectives] == [{"objective.name"}] * 3
    points = matched(objectives, RECIPE, by=by, to={"train.num_steps": 100})
    wanted = 100 * getattr(accounting.account(settings_of(RECIPE, {})), by)
    for point in points:
        settings = settings_of(RECIPE, point)
        step = getattr(accounting.account(settings), by)
        assert abs(settings.train.num_steps * step - wanted) <= step / 2
    assert matched(points, RECIPE, by=by) == points


def test_isoflop_spends_its_budgets_within_one_update() -> None:
    budgets = [1e11, 3e11]
    points = isoflop(WIDTHS, budgets, RECIPE)
    assert [point["model.embed_dim"] for point in points] == [32, 64, 128] * 2
    for point, budget in zip(points, [budget for budget in budgets for _ in WIDTHS], strict=True):
        settings = settings_of(RECIPE, point)
        step = figures(settings).step_flops
        assert abs(settings.train.num_steps * step - budget) <= step / 2
        assert step == accounting.account(settings).model_flops
    with pytest.raises(UserError, match="of one update"):
        isoflop(WIDTHS, [1e5], RECIPE)


@pytest.mark.parametrize("count", ["parameters", "non_embedding_parameters"])
def test_a_ladder_ascends_by_compute(count: str) -> None:
    points = ladder(WIDTHS[::-1], RECIPE, tokens_per_parameter=5.0, count=count)
    flops = []
    for point in points:
        settings = settings_of(RECIPE, point)
        of = figures(settings)
        tokens = settings.train.num_steps * of.step_tokens
        assert abs(tokens - 5 * getattr(of, count)) <= of.step_tokens / 2
        flops.append(settings.train.num_steps * of.step_flops)
    assert flops == sorted(flops) and [point["model.embed_dim"] for point in points] == [32, 64, 128]
    with pytest.raises(UserError, match="count='all'"):
        ladder(WIDTHS, RECIPE, count="all")


def test_rungs_are_named_by_their_compute() -> None:
    size = rungs.Size(parameters=1000, step_tokens=100.0, step_flops=6e5)
    made = rungs.by_tokens(size, 20.0)
    assert (made.num_steps, made.tokens, made.flops, made.name) == (200, 20_000, 1.2e8, "1.2e8")
    assert rungs.by_compute(size, 1.2e8) == made
    assert rungs.compute_name(9.96e17) == "1.0e18"
    assert rungs.ascending([made, rungs.by_tokens(size, 1.0)])[1] == made


def test_branches_come_after_their_trunk_which_keeps_where_they_begin() -> None:
    stable = only({"optimizer.schedule": "wsd", "train.num_steps": 100})
    points = product(branch(stable, RECIPE, at=[20, 50], cooldown=0.2), seeds(2))
    cells, refused = cells_of(sweep(points[::-1]))
    assert not refused and [cell.after is None for cell in cells] == [True, True, False, False, False, False]
    trunks = {cell.id: cell for cell in cells[:2]}
    for cell in cells[2:]:
        trunk = trunks[str(cell.after)]
        assert cell.settings.seed == trunk.settings.seed and cell.from_step in (20, 50)
        assert cell.from_step % trunk.settings.train.checkpoint_every == 0
        assert trunk.settings.train.keep_every == trunk.settings.train.checkpoint_every == 10
        own, of = cell.settings.optimizer, trunk.settings.optimizer
        steps = cell.settings.train.num_steps
        assert own.warmup(steps) == of.warmup(100) == 5 and own.decay(steps) == steps - cell.from_step
    with pytest.raises(UserError, match="no cell of this sweep"):
        cells_of(sweep([point for point in points if FROM_STEP in point]))
    for at in (3, 90):
        with pytest.raises(UserError, match=f"at={at}"):
            branch(stable, RECIPE, at=[at])
    with pytest.raises(UserError, match="cosine"):
        branch(only({}), RECIPE, at=[20])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def get_sweep(:\n", ["not Python", "line 1"]),
        ("x = 1\n", ["no function get_sweep"]),
        ("def get_sweep():\n    return 3\n", ["gives int"]),
        ("def get_sweep():\n    return 1 / 0\n", ["line 2", "ZeroDivisionError"]),
        ("import nothing_of_this_name\n", ["nothing_of_this_name"]),
        (MAKES.format("()"), ["no points"]),
        (MAKES.format("({},), keep='some'"), ["keep='some'"]),
    ],
)
def test_sweep_files_that_are_none(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "sweep.py").write_text(text)
    with pytest.raises(UserError) as refused:
        load_sweep(tmp_path / "sweep.py")
    assert all(word in str(refused.value) for word in [*words, "sweep.py"]), refused.value
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "path", sorted(Path("experiments").glob("*/*.py")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_the_shipped_sweeps_are_sweeps(path: Path) -> None:
    cells, refused = cells_of(load_sweep(path))
    assert cells and not refused


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"analyses": ("verdicts",)}, ["analyses='verdicts'", "transfer"]),
        ({"yardstick": "bits"}, ["yardstick='bits'", "bits_per_byte"]),
        ({"held_out": lambda point: point["none"] > 3}, ["held_out", "KeyError", "model.embed_dim"]),
        ({"held_out": lambda point: True}, ["held_out", "all 4 cells"]),
        ({"baseline": {"model.dropout": 0.5}}, ["model.dropout", "0 kinds"]),
        ({"baseline": {"tokenizer.vocab_size": 1024}}, ["tokenizer.vocab_size", "2 kinds"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_mistakes_in_a_sweep_are_told_before_anything_runs(fields: dict[str, Any], words: list[str]) -> None:
    points = product(only({"tokenizer.vocab_size": 1024}), over("model.embed_dim", [16, 32]), seeds(2))
    with pytest.raises(UserError) as refused:
        cells_of(sweep(points, **fields))
    assert all(word in str(refused.value) for word in words) and "\n" not in str(refused.value), refused.value


def test_a_baseline_is_one_kind_of_cells_whatever_their_seeds() -> None:
    points = product(over("model.embed_dim", [16, 32]), seeds(3))
    cells, _ = cells_of(sweep(points, baseline={"model.embed_dim": 16}))
    assert len(cells) == 6


def test_a_sweep_file_imports_what_lies_beside_it_and_nothing_of_another_sweep(tmp_path: Path) -> None:
    path = list(sys.path)
    for name, width in (("one", 16), ("other", 32)):
        place = tmp_path / name
        place.mkdir()
        (place / "widths.py").write_text(f"POINTS = ({{'model.embed_dim': {width}}},)\n")
        (place / "sweep.py").write_text("from widths import POINTS\n" + MAKES.format("POINTS"))
        assert load_sweep(place / "sweep.py").points == ({"model.embed_dim": width},)
    assert "widths" not in sys.modules and sys.path == path
    (tmp_path / "one" / "widths.py").write_text("1 / 0\n")
    with pytest.raises(UserError, match=r"sweep\.py.*ZeroDivisionError"):
        load_sweep(tmp_path / "one" / "sweep.py")


def test_the_quick_ladder_predicts_its_largest_rung() -> None:
    made = load_sweep(Path("experiments/quick_ladder/sweep.py"))
    cells, refused = cells_of(made)
    assert not refused and len(cells) == 14 and sum(cell.held_out for cell in cells) == 2
    flops = {cell.held_out: figures(cell.settings).step_flops * cell.settings.train.num_steps for cell in cells}
    assert flops[True] > flops[False]

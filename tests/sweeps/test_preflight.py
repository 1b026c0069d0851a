"""What is known of cells before they run: operations, tokens, coverage, checkpoints, memory, time and cost."""

import dataclasses
import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from research.models import flops
from research.plan import topologies
from research.sweeps import Sweep, branch, only, over, product
from research.sweeps.preflight import Place, of_one_shape, preflight, totals
from research.sweeps.sweep import Cell, cells_of
from research.train.assembly import assemble
from tests import small

RECIPE = "configs/causal.py:tiny"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("corpus") / "topics.jsonl"
    path.write_text("".join(json.dumps({"text": topics[name]}) + "\n" for name in sorted(topics)))
    own = {"data.source": "jsonl", "data.path": str(path), "tokenizer.vocab_size": 512, "model.embed_dim": 32}
    return own | {"data.sequence_length": 32, "train.batch_size": 8, "train.num_steps": 20, "train.checkpoint_every": 8}


def cells(points: Any, keep: str = "best") -> list[Cell]:
    found, refused = cells_of(Sweep(question="what?", recipe=RECIPE, points=tuple(points), keep=keep))
    assert not refused
    return found


def test_a_cell_is_counted_as_its_run_counts_itself(shared: dict[str, Any]) -> None:
    (cell,) = cells([shared])
    (checked,) = preflight([cell], Place(here=False), keep="best", max_epochs=1.0)
    assert checked.problem is None and len(checked.data_hash) == 16
    plan = checked.plan
    vocabulary = dataclasses.replace(small.VOCABULARY, size=512)
    counted: flops.Count = assemble(cell.settings, vocabulary).count
    assert plan["tokens"] == 20 * 8 * 32
    assert plan["flops"] == pytest.approx(plan["tokens"] * counted.model_flops)
    assert plan["required_flops"] == pytest.approx(plan["tokens"] * counted.required_flops)
    assert plan["parameters"] == counted.parameters
    assert plan["non_embedding_parameters"] == counted.non_embedding_parameters
    # Weights and two moments in float32, and counters.
    assert 12 * counted.parameters <= plan["bytes"] <= 12 * counted.parameters + 64
    assert 0.0 < plan["epochs"] < 0.1 and plan["seconds"] is None


@pytest.mark.parametrize(("keep", "count"), [("best", 1), ("last", 1), ("none", 0), ("all", 3)])
def test_checkpoints_that_stay_are_counted(shared: dict[str, Any], keep: str, count: int) -> None:
    one = preflight(cells([shared]), Place(here=False), keep="best", max_epochs=1.0)[0].plan["bytes"]
    assert (
        preflight(cells([shared], keep), Place(here=False), keep=keep, max_epochs=1.0)[0].plan["bytes"] == count * one
    )


def test_too_few_tokens_and_what_does_not_divide_are_refused_alone(shared: dict[str, Any]) -> None:
    points = product(only(shared), over("data.num_tokens", [10**9, 30_000, 2000, 9]))
    found = preflight(cells(points), Place(here=False), keep="best", max_epochs=1.0)
    many, enough, few, none = found
    assert "data.num_tokens=1000000000" in (many.problem or "")
    assert enough.problem is None
    assert "max_epochs=1" in (few.problem or "") and "2.58 times" in (few.problem or "")
    assert "do not fill one window" in (none.problem or "")
    assert totals(found)["flops"] == enough.plan["flops"]
    odd = [*cells([{**shared, "train.batch_size": 12}]), *cells([shared])]
    refused, good = preflight(odd, Place(), keep="best", max_epochs=9.0)
    assert "train.batch_size=12" in (refused.problem or "") and good.problem is None


def test_a_machine_with_too_little_memory_refuses(shared: dict[str, Any]) -> None:
    large = {**shared, "model.embed_dim": 512, "model.num_layers": 8}
    found = preflight(cells([shared, large]), Place(memory=300 * 2**20), keep="best", max_epochs=9.0)
    assert found[0].problem is None and found[0].plan["memory"] < 300 * 2**20
    assert "0.293 GiB" in (found[1].problem or "") and "--parallel" in (found[1].problem or "")


def test_named_chips_give_time_and_cost(shared: dict[str, Any]) -> None:
    place = Place(topologies.parse("v5e:2x2", 1), 1.5)
    whole = {name: value for name, value in shared.items() if name != "train.num_steps"}
    points = product(only(whole), over("train.num_steps", [20, 40]))
    found = preflight(cells(points), place, keep="best", max_epochs=9.0)
    short, long = found[0].plan, found[1].plan
    assert long["seconds"] == 2 * short["seconds"] > 0
    assert short["chip_hours"] == pytest.approx(short["seconds"] * 4 / 3600)
    assert short["cost"] == pytest.approx(1.5 * short["chip_hours"])
    assert totals(found)["cost"] == pytest.approx(sum(one.plan["cost"] for one in found))


def test_a_branch_costs_what_its_trunk_has_not_computed(shared: dict[str, Any]) -> None:
    stable = only({**shared, "optimizer.schedule": "wsd", "train.num_steps": 100})
    trunk, short, long = cells(branch(stable, RECIPE, at=[20, 40], cooldown=0.5))
    found = preflight([trunk, short, long], Place(here=False), keep="best", max_epochs=9.0)
    step = found[0].plan["flops"] / 100
    assert [one.plan["flops"] for one in found] == pytest.approx([100 * step, 10 * step, 20 * step])
    assert found[0].plan["bytes"] == 5 * found[1].plan["bytes"]


def test_cells_that_differ_in_numbers_are_of_one_shape(shared: dict[str, Any]) -> None:
    numbers = [{"seed": 3}, {"optimizer.learning_rate": 0.5, "optimizer.warmup_steps": 3}, {"train.num_steps": 7}]
    shapes = [
        {"model.embed_dim": 64},
        {"train.batch_size": 16},
        {"optimizer.name": "lion"},
        {"data.sequence_length": 64},
    ]
    first, *others = [of_one_shape(cell.settings) for cell in cells([shared, *({**shared, **one} for one in numbers)])]
    assert all(other == first for other in others)
    assert all(of_one_shape(cells([{**shared, **one}])[0].settings) != first for one in shapes)


def test_the_corpus_is_named_where_it_is_missing(tmp_path: Path, shared: dict[str, Any]) -> None:
    gone = {**shared, "data.path": str(tmp_path / "gone.jsonl")}
    bad, good = preflight(cells([gone, shared]), Place(here=False), keep="best", max_epochs=9.0)
    assert "gone.jsonl" in (bad.problem or "") and bad.data_hash == "" and good.problem is None

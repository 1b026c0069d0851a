"""The search: what is tried, how it is ranked, and that a described layout is the one that was analysed."""

import functools
from typing import Any

import pytest

from research import config
from research.errors import UserError
from research.plan import search, topologies
from tests import small
from tests.plan.cases import LARGE, WIDE, planned


@functools.cache
def searched() -> search.Found:
    return search.search(
        planned("v5e:2x2", train__batch_size=256).settings, topologies.parse("v5e:2x2"), tell=lambda line: None
    )


def test_a_small_run_is_fastest_without_remat_and_in_one_batch() -> None:
    found = searched().ranked[0].plan
    best, tensor = found.settings, found.assembly.mesh.shape["tensor"]
    assert (best.parallel.remat, best.train.accumulation, tensor) == ("none", 1, 1)


def test_the_ranking_is_by_time_and_of_what_fits() -> None:
    found = searched()
    steps = [candidate.plan.roofline.step_seconds for candidate in found.ranked]
    assert steps == sorted(steps) and all(candidate.plan.fits for candidate in found.ranked)
    assert found.tried == found.indivisible + found.too_large + len(found.ranked)
    told = search.record(found)["ranked"][0]
    assert told["step_seconds"] == steps[0]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"parallel.mesh.data": 4, "parallel.mesh.fsdp": 1},
        {"parallel.preset": "fsdp_tp", "parallel.mesh.tensor": 4, "parallel.remat": "full"},
    ],
    ids=["nothing set", "data parallel", "tensor parallel"],
)
def test_a_described_layout_is_the_one_that_was_analysed(given: dict[str, Any]) -> None:
    settings = small.settings(WIDE | {"model.num_layers": 1, "train.batch_size": 4} | given)
    found = search.search(settings, topologies.parse("v5e:2x2"), tell=lambda line: None)
    shapes = set()
    for candidate in found.ranked[::3]:
        typed = config.default_config()
        for key in config.KEYS:
            config.override(typed, key, "none" if settings[key] is None else str(settings[key]))
        for word in search.describe(candidate.changes).split():
            name, _, value = word.removeprefix("--config.").partition("=")
            config.override(typed, name, value)
        assert config.to_settings(typed) == candidate.plan.settings
        shapes.add(tuple(candidate.plan.assembly.mesh.shape.values()))
    assert len(shapes) > 3
    assert all("mesh.replica" not in candidate.changes for candidate in found.ranked)


def test_a_run_that_must_be_cut_is_cut() -> None:
    settings = small.settings(
        WIDE
        | {name.replace("__", "."): value for name, value in LARGE.items()}
        | {"parallel.preset": "dp", "train.batch_size": 64}
    )
    found = search.search(settings, topologies.parse("v5p:4x4x4"), tell=lambda line: None)
    best = found.ranked[0].plan
    assert found.too_large and best.fits
    assert best.assembly.mesh.shape["fsdp"] * best.assembly.mesh.shape["tensor"] > 8


def test_a_search_that_nothing_divides_is_refused() -> None:
    settings = small.settings(WIDE | {"train.batch_size": 2, "model.embed_dim": 520, "model.num_heads": 1})
    with pytest.raises(UserError, match="no layout"):
        search.search(settings, topologies.parse("v5e:4x4"), tell=lambda line: None)

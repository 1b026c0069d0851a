"""What cells cost, by who held how many cores or chips for how long; and what a row tells of attempts."""

import json
from pathlib import Path
from typing import Any

import pytest

from research.sweeps.costs import Costs, chips_of
from research.sweeps.rows import table, tokenizer_hash


def attempt(job: str = "sweep-1", minutes: int = 30, **fields: Any) -> dict[str, Any]:
    times = {"started": "2026-01-01T10:00:00.000Z", "ended": f"2026-01-01T10:{minutes:02}:00.000Z"}
    return {"job": job, "status": "done", **times, **fields}


def submitted(directory: Path, name: str = "sweep-1", **resources: Any) -> Costs:
    (directory / "jobs").mkdir(exist_ok=True)
    record = {"job": {"name": name, "resources": resources}}
    (directory / "jobs" / f"local-{name}.job.json").write_text(json.dumps(record))
    return Costs(directory)


def test_hours_are_those_of_all_attempts_times_their_cores(tmp_path: Path) -> None:
    costs = submitted(tmp_path, cores=None, devices="cpu", nodes=1, processes_per_node=1)
    tried = [attempt(cores=4, status="failed"), attempt(cores=2, minutes=15)]
    assert costs.hours(tried) == {"core_hours": 2.5, "chip_hours": None}
    blocked = {**attempt(), "status": "blocked", "cores": 1}
    assert costs.hours([blocked]) == {"core_hours": 0.0, "chip_hours": None}


def test_of_a_job_on_chips_the_chips_count(tmp_path: Path) -> None:
    costs = submitted(tmp_path, devices="gpu:8", nodes=2)
    assert costs.hours([attempt(cores=64)]) == {"core_hours": None, "chip_hours": 8.0}


def test_cores_that_nobody_wrote_down_are_those_of_the_place_or_unknown(tmp_path: Path) -> None:
    costs = submitted(tmp_path, devices="cpu")
    assert costs.hours([attempt()]) == {"core_hours": None, "chip_hours": None}
    (tmp_path / "jobs" / "guards").mkdir()
    places = [{"cores": [0]}, {"cores": [1, 2, 3]}]
    (tmp_path / "jobs" / "guards" / "sweep-1.json").write_text(json.dumps({"places": places, "place": 1}))
    assert costs.hours([attempt()])["core_hours"] == 1.5
    assert costs.hours([]) == {"core_hours": None, "chip_hours": None}


def test_cells_that_were_trained_together_share_the_cores_of_their_process(tmp_path: Path) -> None:
    assert Costs(tmp_path).hours([attempt(cores=2, pack=4), attempt(cores=2)])["core_hours"] == 1.25


@pytest.mark.parametrize(
    ("resources", "chips"),
    [
        ({}, 0),
        ({"devices": "cpu"}, 0),
        ({"devices": "gpu:8", "nodes": 4}, 32),
        ({"devices": "gpu:h100:8"}, 8),
        ({"devices": "v5p:4x4x4", "slices": 2}, 128),
    ],
)
def test_chips_of_what_was_asked_for(resources: dict[str, Any], chips: int) -> None:
    assert chips_of(resources) == chips


def test_a_tokenizer_is_named_by_its_files(tmp_path: Path) -> None:
    assert tokenizer_hash(tmp_path) is None
    (tmp_path / "tokenizer.model").write_bytes(b"one")
    first = tokenizer_hash(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"other")
    assert first is not None and len(first) == 16 and tokenizer_hash(tmp_path) != first


def test_what_is_nested_is_left_to_json() -> None:
    text = table([{"id": "a", "point": {"seed": 1}, "versions": {"jax": "0"}, "history": [{"status": "done"}]}])
    assert text == "id,point.seed\na,1\n"

import json
from types import MappingProxyType
from xml.etree import ElementTree

import pytest
from rich.console import Console

from benchmarks import report, step
from benchmarks.race import Race, Record
from benchmarks.shapes import SHAPES


@pytest.fixture
def race() -> Race:
    """Two rounds of two steps of shape S: the second contestant is twice, then four times as fast."""

    def record(*seconds: float, **start: float) -> Record:
        rounds = [{"seconds": s, "cpu_seconds": 2 * s, "peak_bytes": 1_500_000_000, "loss": 9.0} for s in seconds]
        return Record(dict(start), rounds)

    records = {
        "bare": record(4.0, 8.0, init_seconds=1.0, first_step_seconds=5.0),
        "isoflop": record(2.0, 2.0, init_seconds=1.0, first_step_seconds=6.0, model_flops=1e7, parameters=2_500_000),
        "loop": record(2.5, 2.0),
    }
    cached = {"init_seconds": 0.5, "first_step_seconds": 1.5}
    return Race(SHAPES["S"], 2, [1e11, 2e11], MappingProxyType(records), cached)


def test_figures_are_medians_of_ratios_within_rounds(race: Race) -> None:
    found = report.figures(race, model_flops=1e7)
    assert found["isoflop"].tokens_per_second == report.Spread(4096.0, 4096.0, 4096.0)
    assert found["bare"].isoflop_over == report.Spread(3.0, 2.0, 4.0)
    assert found["isoflop"].share_of_limit.median == pytest.approx((0.4096 + 0.2048) / 2)
    assert found["isoflop"].isoflop_over == report.Spread(1.0, 1.0, 1.0)
    assert found["loop"].first_step_seconds is None


def test_record_says_how_the_figures_were_obtained(race: Race) -> None:
    found = report.figures(race, model_flops=1e7)
    kept = json.loads(json.dumps(report.record("S", race, found, 1e7, load=0.5, absent=["nanogpt is absent"])))
    assert kept["versions"]["jax"] and kept["machine"]["cores"] and kept["commit"]
    assert kept["shape"]["name"] == "S" and kept["shape"]["sequence"] == 256
    assert kept["absent"] == ["nanogpt is absent"] and kept["figures"]["isoflop"]["parameters"] == 2_500_000
    assert kept["start_from_cached_programs"]["first_step_seconds"] == 1.5
    assert kept["loop_over_own_step"] == {"median": 1.125, "least": 1.0, "largest": 1.25}
    assert [entry["seconds"] for entry in kept["records"]["bare"]["rounds"]] == [4.0, 8.0]


def test_plot_has_a_bar_for_each_contestant_and_a_dot_for_each_round(race: Race) -> None:
    drawing = ElementTree.fromstring(report.plot("S", race, report.figures(race, model_flops=1e7)))
    names = [element.tag.rpartition("}")[2] for element in drawing]
    assert names.count("rect") == 1 + 3 and names.count("circle") == 3 * 2


def test_table_fits_a_hundred_and_twenty_columns(race: Race) -> None:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(report.table("S", race, report.figures(race, model_flops=1e7)))
    shown = capture.get()
    assert "4096 (4096-4096)" in shown and "3.00 (2.00-4.00)" in shown and "2.50" in shown
    assert "isoflop, cached" in shown and max(map(len, shown.splitlines())) <= 120


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ([], ["S", "M", "S-bert", "S-llama", "S-t5"]),
        (["--shape", "M"], ["M"]),
        (["--layers", "12", "--batch", "4"], ["S-layers12-batch4"]),
        (["--shape", "M", "--family", "llama"], ["M-llama"]),
        (["--objective", "masked", "--embed", "128"], ["S-masked-embed128"]),
    ],
)
def test_flags_choose_shapes(flags: list[str], names: list[str]) -> None:
    found = step.shapes(step.parser().parse_args(flags))
    assert list(found) == names
    if "12" in flags:
        assert found["S-layers12-batch4"].layers == 12


@pytest.mark.parametrize(
    "flags",
    [
        ["--rounds", "0"],
        ["--steps", "0"],
        ["--kernels", "fast"],
        ["--shape", "X"],
        ["--family", "t5", "--objective", "causal"],
        ["--without", "isoflop"],
    ],
)
def test_impossible_flags_are_refused(flags: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        step.main(flags)

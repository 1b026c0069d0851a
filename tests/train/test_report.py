import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from research import config
from research.errors import UserError
from research.train import charts, curves, report
from research.train.metrics import EventLog, MetricsLog, write_json, write_summary
from research.train.report import write_report
from tests.pages import EVIL, Page


def make_run(workdir: Path, *, steps: int = 200, objective: str = "causal", text: str = "x") -> Path:
    settings = config.from_nested({"objective": {"name": objective}, "train": {"num_steps": 200}, "seed": 3})
    workdir.mkdir()
    write_json(workdir / "config.json", config.to_record(settings))
    masked = objective == "masked"
    with MetricsLog(workdir, tensorboard=False, start_step=0) as log, EventLog(workdir) as events:
        events.write("start", commit="c0ffee", devices=["cpu"])
        for step in range(1, steps + 1):
            row = {"loss": np.float32(4 + 4 / step), "learning_rate": 1e-3, "gradient_norm": 1.0, "seconds": step * 0.1}
            layers = {"gradient_norm_by_layer": np.ones(3, np.float32)}
            log.write(step, row | layers | {"tokens_seen": 128 * step, "tokens_per_second": 1280.0})
            if step % 50 == 0:
                figures = {"heldout_loss": 4.5, "heldout_bits_per_byte": None if masked else 2.25}
                events.write("evaluate", step=step, **figures, heldout_accuracy=0.25 if masked else None)
        events.write("sample", step=steps, prompt=text, text=text + " continued")
    (workdir / "data_card.md").write_text(f"# Data card\n\n- {text}\n")
    return workdir


def summary(workdir: Path, **changes: Any) -> None:
    figures = {
        "step": 200,
        "train_loss": 4.02,
        "heldout_loss": 4.5,
        "heldout_bits_per_byte": 2.25,
        "heldout_accuracy": None,
        "baseline_bits_per_byte": 2.5,
        "baselines": {"bigram_bits_per_byte": 2.5, "trigram_bits_per_byte": 2.0},
        "parameters": 917_888,
        "flops_per_token": 5.9e6,
        "commit": "c0ffee",
        "config_hash": "abc",
        "data_hash": "def",
        "versions": {"jax": "0.10"},
    }
    write_summary(workdir, figures | changes)


def test_a_finished_run(tmp_path: Path) -> None:
    workdir = make_run(tmp_path / "run")
    summary(workdir)
    path = write_report(workdir)
    page = Page(path)
    assert path == workdir / "report.html"
    assert page.size < 6_000_000
    for shown in ("complete, 200 steps", "2.250", "918 k", "x continued", "c0ffee", "Data card", "jax 0.10"):
        assert shown in page.text
    assert "0.250 above the 3-gram, 0.250 below the bigram" in page.text
    titles = [chart["title"] for chart in page.data('{"axes"')["charts"]]
    assert titles[:3] == ["Loss", "Held-out bits per byte", "Held-out perplexity"]
    assert {"Learning rate", "Norms", "Throughput", "Gradient norm by layer"} <= set(titles)
    assert page.count("div", **{"class": "plot"}) == len(titles)
    levels = {level["name"]: level["y"] for level in page.data('{"axes"')["charts"][0]["levels"]}
    assert levels == {"bigram": 5.0, "3-gram": 4.0}  # 4.5 nats are 2.25 bits per byte
    assert set(page.data('{"axes"')["axes"]) == {"step", "tokens", "minutes"}


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    path = write_report(make_run(tmp_path / "run"))
    page = Page(path)
    assert not [found for _, found in page.elements if {"src", "href", "srcset", "data"} & set(found)]
    policy = next(found["content"] for tag, found in page.elements if found.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    template = (Path(report.__file__).parent / "report_template.html").read_text()
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", template)


def test_text_of_the_run_cannot_bring_markup(tmp_path: Path) -> None:
    plain, evil = make_run(tmp_path / "plain"), make_run(tmp_path / "evil <b>", text=EVIL)
    with EventLog(evil) as events:
        events.write(EVIL, note=EVIL, **{EVIL: 1})
    record = json.loads((evil / "config.json").read_text())
    record["settings"]["data"]["path"] = EVIL
    write_json(evil / "config.json", record)
    for workdir in (plain, evil):
        summary(workdir)
    summary(evil, commit=EVIL, versions={EVIL: EVIL}, baselines={EVIL + "_bits_per_byte": 2.4})
    expected, found = Page(write_report(plain)), Page(write_report(evil))
    assert expected.count("script") == found.count("script")
    assert not found.count("img")
    assert not found.count("b", onerror="alert(1)")
    assert EVIL in found.text
    assert found.size < expected.size + 20_000  # nor is its {{plotly}} filled in


def test_a_masked_run_is_measured_by_accuracy(tmp_path: Path) -> None:
    workdir = make_run(tmp_path / "run", objective="masked", text="a [MASK] sentence")
    no_bits = {"heldout_bits_per_byte": None, "baseline_bits_per_byte": None, "baselines": None}
    summary(workdir, heldout_accuracy=0.25, baseline_accuracy=0.05, **no_bits)
    page = Page(write_report(workdir))
    assert "25.0% of held-out masked tokens restored" in page.text
    assert "5.0%" in page.text
    assert "bits per byte" not in page.text.lower().replace("heldout bits per byte", "")
    titles = [chart["title"] for chart in page.data('{"axes"')["charts"]]
    assert "Held-out accuracy" in titles
    assert "Held-out bits per byte" not in titles


def test_an_interrupted_run_shows_what_there_is(tmp_path: Path) -> None:
    workdir = make_run(tmp_path / "run", steps=120)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 121, "lo')
    with EventLog(workdir) as events:
        events.write("evaluate", step=150, heldout_loss=1.0)  # of a step that a restored checkpoint took back
        events.write("interrupted", step=120)
    page = Page(write_report(workdir))
    assert "interrupted at step 120 of 200" in page.text
    assert "at step 100" in page.text
    assert "Against counting" not in page.text
    heldout = next(s for s in page.data('{"axes"')["charts"][0]["series"] if s["name"] == "held-out")
    assert heldout["step"] == [50, 100]


def test_a_summary_of_an_earlier_end_is_not_taken_for_this_one(tmp_path: Path) -> None:
    workdir = make_run(tmp_path / "run", steps=120)
    summary(workdir, step=100, heldout_bits_per_byte=9.875)
    page = Page(write_report(workdir))
    assert "unfinished at step 120 of 200" in page.text
    assert "9.875" not in page.text
    assert "Against counting" not in page.text


@pytest.mark.parametrize("files", [(), ("config.json",), ("config.json", "events.jsonl", "metrics.jsonl")])
def test_a_run_without_a_step(tmp_path: Path, files: tuple[str, ...]) -> None:
    for name in files:
        (tmp_path / name).write_text("{}" if name == "config.json" else "")
    page = Page(write_report(tmp_path))
    assert "no step recorded" in page.text
    assert page.data('{"axes"') == {"axes": {"step": []}, "charts": []}
    assert page.size < 40_000


def test_a_run_of_one_step_that_diverged(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False, start_step=0) as log:
        log.write(1, {"loss": np.float32("nan"), "gradient_norm": np.float32("inf"), "other": np.float32("nan")})
    page = Page(write_report(tmp_path))
    assert page.data('{"axes"')["charts"][0]["series"][0]["y"] == [None]
    assert "nan" not in page.text.lower()


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    workdir = make_run(tmp_path / "run", steps=120)
    with EventLog(workdir) as events:
        events.write("failed", reason="the loss of update 121 is nan <lower it>")
    page = Page(write_report(workdir))
    assert "failed at step 120 of 200" in page.text
    assert page.text.count("the loss of update 121 is nan <lower it>") == 2  # on top, and among the events


def test_a_sample_that_was_made_twice_is_shown_once(tmp_path: Path) -> None:
    workdir = make_run(tmp_path / "run")
    with EventLog(workdir) as events:
        for text in ("again", "again", "other"):
            events.write("sample", step=200, prompt="say", text=text)
    page = Page(write_report(workdir))
    assert page.count("blockquote") == 3


def test_settings_that_differ_from_their_default_are_marked(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path / "run")))
    assert page.count("tr", **{"class": "changed"}) == 2  # seed and train.num_steps
    assert all(name in page.text for name in config.KEYS)


def test_a_damaged_config_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        write_report(tmp_path)


def test_long_curves_keep_their_look(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=50_000)
    values[12_345], values[40_000] = 30.0, np.nan
    places = curves.thinned(values)
    assert len(places) <= curves.LIMIT
    assert (np.diff(places) > 0).all()
    assert {0, 12_345, 49_999, int(np.nanargmin(values))} <= set(places.tolist())
    short = np.arange(10.0)
    assert curves.thinned(short).tolist() == list(range(10))
    assert len(curves.thinned(np.full(5000, np.nan))) == 2


def test_smoothing_keeps_constants_and_follows_a_steep_beginning() -> None:
    np.testing.assert_allclose(curves.smoothed(np.full(1000, 2.5)), 2.5)
    falling = 8 / np.arange(1, 5001) + 3
    assert np.abs(curves.smoothed(falling) / falling - 1).max() < 0.1
    gap = curves.smoothed(np.array([1.0, np.nan, 1.0]))
    np.testing.assert_array_equal(gap, [1.0, np.nan, 1.0])


def test_columns_fill_what_rows_lack() -> None:
    rows = [{"step": 1, "a": 1.0}, {"step": 2, "v": [1.0, 2.0]}, {"step": 3, "a": 3.0, "v": [3.0, 4.0]}, {"step": 4}]
    columns = curves.columns(rows)
    nan = np.nan
    np.testing.assert_array_equal(columns["a"], [1, nan, 3, nan])
    np.testing.assert_array_equal(columns["v"], [[nan, nan], [1, 2], [3, 4], [nan, nan]])
    assert curves.columns([]) == {}


def test_time_goes_on_across_processes() -> None:
    seconds = np.array([1.0, 2.0, 0.5, 1.5])
    np.testing.assert_allclose(curves.elapsed(seconds), [1.0, 2.0, 2.5, 3.5])
    columns = {"step": np.arange(1.0, 5.0), "seconds": seconds * 3600}
    assert charts.axes(columns) == {"step": [1.0, 2.0, 3.0, 4.0], "hours": [1.0, 2.0, 2.5, 3.5]}

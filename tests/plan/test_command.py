"""`isoflop plan`: a real child process that compiles, the record, the page, and mistakes."""

import html.parser
import json
from pathlib import Path
from typing import Any

import pytest

from research.cli import main as command
from research.plan import page
from tests import small

RECIPE = ["--config=configs/causal.py:tiny", "--config.model.num_layers=1", "--config.tokenizer.vocab_size=320"]
SHORT = [*RECIPE, "--config.model.embed_dim=32", "--config.data.sequence_length=32", "--config.parallel.preset=fsdp"]


class Page(html.parser.HTMLParser):
    """Counts elements, and notices what is left open."""

    VOID = ("meta", "br", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: dict[str, int] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_real_compiler_is_asked_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", *SHORT, "--topology=cpu:2", "--json", f"--output={tmp_path}/plan.html"]
    assert command.main(arguments) == 0
    first = capsys.readouterr()
    assert "compiling for cpu:2" in first.err
    record = json.loads(first.out.splitlines()[-1])
    given = sum(record["memory"]["arguments"].values())
    assert given == pytest.approx(record["memory"]["compiler"]["argument"], rel=0.03)
    assert record["flows_from"] == "compiler" and record["flows"][0]["axes"] == ["fsdp"]
    assert record["memory"]["compiler"]["temp"] > 0 and record["fits"] and record["unknown_loops"] == []

    assert command.main(arguments) == 0
    again = capsys.readouterr()
    assert "compiling" not in again.err
    assert json.loads(again.out.splitlines()[-1]) == record
    shown = Page((tmp_path / "plan.html").read_text(encoding="utf-8"))
    assert shown.open == [] and shown.seen["section"] == 5 and "script" not in shown.seen


def test_a_plan_of_gpus_is_analysis_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "plans" / "gpu.html"
    arguments = ["plan", *SHORT, "--topology=gpu:h100:8x1", "--price=2", "--search", "--json", f"--output={target}"]
    assert command.main(arguments) == 0
    out = capsys.readouterr()
    assert "analysis" in out.err
    record = json.loads(out.out.splitlines()[-1])
    assert not record["compiled"] and record["flows_from"] == "analysis" and record["estimate"]["cost"] > 0
    assert record["search"]["ranked"]
    shown = Page(target.read_text(encoding="utf-8"))
    assert shown.open == [] and shown.seen["section"] == 6


def test_a_run_that_does_not_fit_exits_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--config=configs/causal.py:70b", "--topology=v5e:4x4", "--no-compile", "--json"]
    assert command.main([*arguments, "--config.train.batch_size=16", "--config.parallel.preset=fsdp"]) == 1
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not record["fits"]
    small.assert_one_sentence(record["refusal"], "optimizer state")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--topology=v7:2x2"], "--topology"),
        (["--topology=v5e:2x2", "--no-compile", "--price=-1"], "--price"),
        (["--topology=v5e:2x2", "--no-compile", "--compiles=0"], "--compiles"),
        (["--topology=v5e:4x8", "--no-compile"], "train.batch_size"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["plan", *SHORT, *arguments]) == 2
    small.assert_one_sentence(capsys.readouterr().err.strip(), named)


def test_amounts_read_well() -> None:
    gib = 2**30
    assert [page.amount(size) for size in (1410.2 * gib, 999.6 * gib, 95.74 * gib, 0.5 * gib, 90 * 2**20, 3)] == [
        "1,410 GiB",
        "1,000 GiB",
        "95.7 GiB",
        "0.5 GiB",
        "90 MiB",
        "3 B",
    ]
    assert [page.amount(size, 4) for size in (12_345.6 * gib, 95.74 * gib)] == ["12,346 GiB", "95.74 GiB"]


def test_durations_read_well() -> None:
    assert [page.duration(seconds) for seconds in (0.0123, 3.44, 600.0, 2e4, 1e6)] == [
        "12.3 ms",
        "3.44 s",
        "10 min",
        "5.56 h",
        "11.6 days",
    ]

"""`isoflop profile`: a trace of real updates, read and shown."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from research.cli.main import main
from tests.integration.conftest import arguments, start


def profile(corpus: Path, *flags: str) -> list[str]:
    """`profile` with the small settings of `train`."""
    _, config, _, *keys = arguments(Path("unused"), corpus, train__num_steps=2, model__num_layers=1)
    return ["profile", config, *keys, *flags]


def test_the_updates_of_a_recipe_are_traced_and_shown(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "traced"
    assert main(profile(corpus, "--steps=2", "--warmup=1", f"--output={output}", "--json")) == 0
    said = capsys.readouterr()
    record = json.loads(said.out.strip().splitlines()[-1])
    assert record["steps"] == 2 and len(record["step_seconds_each"]) == 2 and record["utilisation"] is None
    assert {"attention", "MLP", "attention norm"} <= record["seconds_by_part"].keys()
    kept = json.loads((output / "profile.json").read_text())
    rows = kept.pop("operations")
    assert kept == record
    assert {row["kind"] for row in rows} >= {"products", "copies", "other"}
    assert any(row["backward"] and row["part"] == "attention" and row["kind"] == "products" for row in rows)
    assert rows == sorted(rows, key=lambda row: -row["seconds"]) and all(row["calls"] >= 1 for row in rows)
    whole = sum(sum(kinds.values()) for kinds in record["seconds_by_part"].values())
    assert whole == pytest.approx(sum(row["seconds"] for row in rows) / 2)
    page = (output / "profile.html").read_text()
    assert "http" not in page.replace("http-equiv", "") and rows[0]["name"] in page
    assert list(output.glob("plugins/profile/*/*.trace.json.gz")) and list(output.glob("plugins/profile/*/*.xplane.pb"))
    assert all(len(line) <= 81 for line in said.err.splitlines() if "profile" not in line and "trace" not in line)


@pytest.mark.slow
def test_a_run_is_profiled_beside_itself_and_the_page_is_opened(corpus: Path, tmp_path: Path) -> None:
    run, opened = tmp_path / "run", tmp_path / "opened"
    assert main(arguments(run, corpus, train__num_steps=2)) == 0
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(browser.stat().st_mode | stat.S_IXUSR)
    process = start(["profile", f"--workdir={run}", "--steps=1", "--open"], BROWSER=f"{browser} %s")
    out, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    (folder,) = (run / "profiles").iterdir()
    assert opened.read_text().strip() == (folder / "profile.html").as_uri()
    assert "the 15 longest operations" in out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_mistakes_get_one_sentence(corpus: Path, tmp_path: Path, refused: Callable[[list[str]], str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for flag in ("--steps=0", "--warmup=0", "--top=0"):
        assert flag in refused(profile(corpus, flag))
    assert "full" in refused(profile(corpus, f"--output={tmp_path / 'full'}"))
    assert "both" in refused(profile(corpus, f"--workdir={tmp_path}"))
    assert "neither" in refused(["profile"])
    assert "config.json" in refused(["profile", f"--workdir={tmp_path}"])

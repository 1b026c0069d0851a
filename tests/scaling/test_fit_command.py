import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from research.cli.main import main
from research.errors import UserError
from research.scaling.rows import read
from tests.scaling import laws

COLUMNS = {"loss": "bpb", "params": "size", "tokens": "seen"}


def write(path: Path, changes: dict[tuple[int, str], Any] | None = None, **columns: Any) -> Path:
    """A CSV of an isoFLOP sweep, with some values changed."""
    runs = laws.isoflop(noise=0.003)
    table = {"name": runs.names, "size": runs.parameters, "seen": runs.tokens, "flops": runs.flops, "bpb": runs.loss}
    table |= columns
    rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    for (row, column), value in (changes or {}).items():
        rows[row][column] = value
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table))
        writer.writeheader()
        writer.writerows(rows)
    return path


def sweep(folder: Path) -> Path:
    runs = laws.isoflop(noise=0.003)
    rows = [
        {
            "id": name, "name": "cell", "state": "done", "held_out": number == 34,
            "point": {"objective.name": "causal"},
            "parameters": runs.parameters[number], "non_embedding_parameters": runs.parameters[number] / 2,
            "tokens_seen": runs.tokens[number], "model_flops": runs.flops[number], "bits_per_byte": runs.loss[number],
        }
        for number, name in enumerate(runs.names)
    ]  # fmt: skip
    rows.append({**rows[0], "id": "later", "state": "pending", "bits_per_byte": None})
    (folder / "rows.json").write_text(json.dumps({"yardstick": "bits_per_byte", "rows": rows}))
    return folder


def test_a_csv_becomes_exponents_a_table_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "runs.csv")
    arguments = [
        "fit",
        str(path),
        "--loss=bpb",
        "--params=size",
        "--flops=flops",
        "--approach=parametric",
        "--draws=100",
    ]
    status = main([*arguments, "--budget", "1e21", "--hold-out", "run-34", "--page", "--json"])
    shown = capsys.readouterr()
    found = json.loads(shown.out.splitlines()[-1])
    assert status == 0 and json.loads((tmp_path / "fit.json").read_text())["fits"] == found["fits"]
    (fit,) = found["fits"]
    assert fit["estimates"]["a"]["low"] < laws.EXPONENT_A < fit["estimates"]["a"]["high"]
    assert fit["runs"] == 34 and found["provenance"]["held_out"] == ["run-34"]
    assert {"tokens are taken from C = 6 N D", "N counts all parameters (column size)"} <= set(fit["notes"])
    assert "run-34: predicted" in shown.err and "alpha" in shown.err
    assert "<title>Fit of runs.csv · Isoflop</title>" in (tmp_path / "fit.html").read_text()


def test_a_sweep_needs_no_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(sweep(tmp_path)), "--approach=isoflop", "--draws=100", "--non-embedding", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["provenance"]["held_out"] == ["run-34"]
    (fit,) = found["fits"]
    assert fit["count"] == "non_embedding_parameters" and "1 cells are not done and are left out" in fit["notes"]
    assert any(note.startswith("C = 12 N D") for note in fit["notes"])


def test_rows_can_be_chosen(tmp_path: Path) -> None:
    assert len(read(sweep(tmp_path), where={"point.objective.name": "causal"})) == 35
    with pytest.raises(UserError, match="no finished run"):
        read(tmp_path, where={"point.objective.name": "masked"})
    with pytest.raises(UserError, match="no column 'objectve'"):
        read(tmp_path, where={"objectve": "masked"})


def test_the_third_quantity_follows(tmp_path: Path) -> None:
    path = write(tmp_path / "runs.csv")
    whole = read(path, {"loss": "bpb", "params": "size", "tokens": "seen", "flops": "flops"})
    for missing, columns in (
        ("flops", {"params": "size", "tokens": "seen"}),
        ("tokens", {"params": "size", "flops": "flops"}),
        ("parameters", {"tokens": "seen", "flops": "flops"}),
    ):
        runs = read(path, {"loss": "bpb", **columns})
        np.testing.assert_allclose(getattr(runs, missing), getattr(whole, missing), rtol=1e-12)
    assert whole.flops_factor == pytest.approx(6.0)


def test_rungs_are_held_out(tmp_path: Path) -> None:
    runs = read(write(tmp_path / "runs.csv"), COLUMNS)
    assert [len(part) for part in runs.split(["largest"])] == [28, 7]
    assert [len(part) for part in runs.split(["largest:2", "run-0"])] == [32, 3]
    for words, said in (
        (["nobody"], "no run has this name"),
        (["largest:x"], "largest:K"),
        (list(runs.names), "no run to"),
    ):
        with pytest.raises(UserError, match=said):
            runs.split(words)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({(2, "bpb"): "nan"}, "line 4, column 'bpb' is nan"),
        ({(2, "bpb"): "n/a"}, "line 4, column 'bpb' is 'n/a', no number"),
        ({(0, "size"): ""}, "line 2, column 'size' is empty"),
        ({(1, "seen"): -5}, "line 3, column 'seen' is -5"),
        ({(1, "seen"): 0}, "line 3, column 'seen' is 0"),
        ({(3, "size"): "inf"}, "line 5, column 'size' is inf"),
        ({(4, "name"): "run-1"}, "line 3 and line 6 are both named 'run-1'"),
    ],
)
def test_a_wrong_value_is_named_by_row_and_column(
    changes: dict[tuple[int, str], Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        read(write(tmp_path / "runs.csv", changes), COLUMNS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--loss=loss", "--params=size", "--tokens=seen"], "no column 'loss': it has name, size, seen, flops, bpb"),
        (["--loss=bpb", "--params=size"], "two of --params, --tokens and --flops"),
        ([], "add --loss"),
        (["--loss=bpb", "--params=size", "--tokens=seen", "--approach=all4"], "--approach all4 is unknown"),
        (["--loss=bpb", "--params=size", "--tokens=seen", "--budget", "-1"], "--budget -1"),
        (["--loss=bpb", "--params=size", "--tokens=seen", "--curve=no"], "no column 'no'"),
        (["--loss=bpb", "--params=size", "--tokens=seen", "--approach=ladder"], "lie on no line"),
        (["--loss=bpb", "--params=size", "--tokens=seen", "--draws=5"], "5 bootstrap draws"),
        (["--where", "name"], "write COLUMN=TEXT"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", str(write(tmp_path / "runs.csv")), *arguments]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("none.csv", None, "there is no file"),
        ("empty.csv", "", "no finished run"),
        ("short.csv", "bpb,size,seen\n1,2\n", "line 2 has not the 3 values"),
        ("twice.csv", "bpb,bpb,size\n1,2,3\n", "two columns 'bpb'"),
        ("rows.json", "{", "is not JSON"),
        ("rows.json", "{}", "has no list of rows"),
    ],
)
def test_a_file_that_is_no_table_is_refused(name: str, text: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=said):
        read(path, COLUMNS)


def test_curves_end_in_their_last_row(tmp_path: Path) -> None:
    runs = laws.curves()
    table = {"name": runs.names, "size": runs.parameters, "seen": runs.tokens, "flops": runs.flops, "bpb": runs.loss}
    path = tmp_path / "curves.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
    found = read(path, {**COLUMNS, "curve": "name"}).ends()
    assert len(found) == 16
    fitted, held = read(path, {**COLUMNS, "curve": "name"}).split(["largest"])
    assert (len(fitted.ends()), len(held.ends()), len(held)) == (15, 1, 24)
    np.testing.assert_allclose(found.tokens / found.parameters, 20 * 10**0.8, rtol=1e-9)


def test_the_page_draws_its_charts_offline(tmp_path: Path) -> None:
    from tests.chromium import browser

    arguments = ["--loss=bpb", "--params=size", "--tokens=seen", "--approach=isoflop", "--draws=100", "--page"]
    assert main(["fit", str(write(tmp_path / "runs.csv")), *arguments]) == 0
    with browser() as page:
        page.open(tmp_path / "fit.html", "document.querySelectorAll('.plot.js-plotly-plot').length == 2")
        assert page("document.querySelectorAll('.plot .scatterlayer .trace').length") == 2 + 3 * 5
        assert page("document.documentElement.scrollWidth") <= 1400
        assert page.complaints == []

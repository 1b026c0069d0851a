import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from research.cli import doctor, main
from research.doctor import Finding, Report, visibility
from research.doctor.findings import inapplicable, measured

SUBJECT = {
    "objective": "causal",
    "architecture": "transformer",
    "parameters": 688768,
    "compute_dtype": "float32",
    "device": "1 x cpu",
    "kernels": {},
}
GOOD = measured("no future leak", "blocked", "gradient", 0.0, 1e-6)
BAD = measured("scan = unrolled", "scan", "difference", 0.5, 1e-4)
ABSENT = inapplicable("backends agree", "model.architecture=lstm has no attention")


def shown(*findings: Finding, reduced: dict[str, tuple[object, object]] | None = None) -> str:
    file = io.StringIO()
    doctor.show(Console(file=file, width=140), Report(findings, SUBJECT, reduced or {}))
    return file.getvalue()


def test_the_table_says_law_measure_tolerance_and_verdict() -> None:
    text = shown(GOOD, ABSENT)
    assert "causal on transformer, 688,768 parameters, float32, 1 x cpu" in text
    lines = text.splitlines()
    row = lines[next(number for number, line in enumerate(lines) if line.startswith("no future leak")) + 1]
    assert row.split() == ["blocked", "gradient", "0", "1e-06", "holds"]
    assert "model.architecture=lstm has no attention" in text
    assert "does not apply" in text
    assert "every law that applies holds (1 of 13)" in text
    assert "made smaller" not in text


def test_what_was_made_smaller_and_what_fails_are_named() -> None:
    text = shown(GOOD, BAD, reduced={"model.num_layers": (32, 2)})
    assert "made smaller for this device: model.num_layers 32 -> 2" in text
    assert "FAILS" in text
    assert "fails: scan = unrolled" in text


@pytest.mark.parametrize(("findings", "status"), [((GOOD, ABSENT), 0), ((GOOD, BAD), 1)])
def test_exit_status_and_object(findings, status, monkeypatch, capsys) -> None:
    monkeypatch.setattr(doctor, "examine", lambda settings, stage: Report(findings, SUBJECT, {}))
    monkeypatch.setattr(doctor, "compilation_cache", lambda: None)
    assert main.main(["doctor", "--config=configs/causal.py:tiny", "--json"]) == status
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["holds"] == (status == 0)
    assert [finding["verdict"] for finding in record["findings"]] == [finding.verdict for finding in findings]


def test_a_users_mistake_is_one_sentence(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "compilation_cache", lambda: None)
    command = ["doctor", "--config=configs/causal.py:tiny", f"--config.tokenizer.path={tmp_path / 'none.model'}"]
    assert main.main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "none.model" in error


def test_the_command_examines_the_configured_model(monkeypatch, capsys) -> None:
    monkeypatch.setattr(doctor, "compilation_cache", lambda: None)
    original = doctor.examine
    monkeypatch.setattr(doctor, "examine", lambda settings, stage: original(settings, [visibility.FUTURE], stage))
    changes = [f"--config.{key}={value}" for key, value in (("model.num_layers", 1), ("data.sequence_length", 32))]
    assert main.main(["doctor", "--config=configs/causal.py:tiny", "--json", *changes]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {finding["law"] for finding in record["findings"]} == {visibility.FUTURE}
    assert {finding["variant"] for finding in record["findings"]} == {"blocked", "reference"}
    assert record["reduced"] == {}

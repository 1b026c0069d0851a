"""The life of a run through the command line: train, look, evaluate, generate, do it again."""

import json
from pathlib import Path

import numpy as np
import pytest

from research.cli.main import main
from tests.integration.conftest import arguments, losses, rows

SUMMARY_KEYS = {
    "step", "train_loss", "heldout_loss", "heldout_bits_per_byte", "heldout_accuracy", "baseline_accuracy",
    "baseline_bits_per_byte", "tokens_seen", "tokens_per_second", "parameters", "flops_per_token", "config_hash",
    "data_hash", "commit", "versions",
}  # fmt: skip


@pytest.fixture(scope="module", params=["causal", "masked"])
def trained(request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp(request.param) / "run"
    assert main(arguments(workdir, corpus, request.param)) == 0
    return workdir


def last_object(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_a_run_directory_holds_what_is_promised(trained: Path) -> None:
    names = {
        "config.json",
        "metrics.jsonl",
        "events.jsonl",
        "checkpoints",
        "tensorboard",
        "summary.json",
        "report.html",
    }
    assert names <= {path.name for path in trained.iterdir()}
    summary = json.loads((trained / "summary.json").read_text())
    assert summary.keys() >= SUMMARY_KEYS
    masked = summary["objective"] == "masked"
    assert (summary["heldout_bits_per_byte"] is None) == masked
    assert (summary["heldout_accuracy"] is None) != masked
    assert summary["step"] == 12 and summary["tokens_seen"] == 12 * 8 * 32
    assert len(losses(trained)) == 12 and summary["train_loss"] == losses(trained)[-1]


def test_losses_are_the_shortest_decimals_of_their_float32(trained: Path) -> None:
    lines = (trained / "metrics.jsonl").read_text().splitlines()
    for line, loss in zip(lines, losses(trained), strict=True):
        assert f'"loss": {np.float32(loss)!s},' in line


def test_norms_come_by_layer(trained: Path) -> None:
    row = rows(trained)[0]
    for name in ("gradient_norm", "update_norm", "parameter_norm"):
        assert len(row[f"{name}_by_layer"]) == 2 and row[name] > 0
        assert row[name] >= np.linalg.norm(row[f"{name}_by_layer"]) * 0.999


def test_evaluate_gives_the_summary_again(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", f"--workdir={trained}", "--json"]) == 0
    found, summary = last_object(capsys), json.loads((trained / "summary.json").read_text())
    for key in ("step", "heldout_loss", "heldout_bits_per_byte", "heldout_accuracy", "data_hash", "config_hash"):
        assert found[key] == summary[key], key


def test_the_same_command_again_changes_nothing(trained: Path, corpus: Path) -> None:
    before = (trained / "metrics.jsonl").read_bytes(), json.loads((trained / "summary.json").read_text())
    recipe = before[1]["objective"]
    assert main(arguments(trained, corpus, recipe)) == 0
    assert ((trained / "metrics.jsonl").read_bytes(), json.loads((trained / "summary.json").read_text())) == before


def test_a_saved_config_starts_the_same_run(trained: Path, tmp_path: Path) -> None:
    assert main(["train", f"--config={trained / 'config.json'}", f"--workdir={tmp_path / 'again'}"]) == 0
    assert losses(tmp_path / "again") == losses(trained)


def test_generate_continues_or_fills(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masked = json.loads((trained / "summary.json").read_text())["objective"] == "masked"
    prompt = "The [MASK] of the list" if masked else "The value of"
    command = ["generate", f"--workdir={trained}", f"--prompt={prompt}", "--tokens=6", "--seed=3", "--json"]
    assert main(command) == 0
    first = last_object(capsys)
    assert main(command) == 0
    assert last_object(capsys) == first
    if masked:
        probabilities = [candidate["probability"] for candidate in first["candidates"][0]]
        assert probabilities == sorted(probabilities, reverse=True) and len(probabilities) == 5
        assert "[MASK]" not in first["text"]
    else:
        assert 1 <= len(first["tokens"]) <= 6


def test_generated_text_is_streamed_behind_its_prompt(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if json.loads((trained / "summary.json").read_text())["objective"] == "masked":
        pytest.skip("a masked model fills")
    assert main(["generate", f"--workdir={trained}", "--prompt=The value of", "--tokens=4", "--temperature=0"]) == 0
    assert capsys.readouterr().out.startswith("The value of")


def test_a_run_is_evaluated_from_its_directory_alone(
    trained: Path, corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = corpus.with_suffix(".moved")
    corpus.rename(hidden)
    monkeypatch.chdir(trained.parent)  # and by a relative path
    try:
        assert main(["evaluate", f"--workdir={trained.name}", "--json"]) == 0
        assert main(["generate", f"--workdir={trained.name}", "--prompt=The [MASK] of", "--tokens=2", "--json"]) == 0
    finally:
        hidden.rename(corpus)


def test_an_older_checkpoint_can_be_evaluated(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", f"--workdir={trained}", "--step=10", "--json"]) == 0
    assert last_object(capsys)["step"] == 10

"""A run whose weights are averaged: resumed to the bit, and measured by the same weights in every verb."""

import json
from pathlib import Path

import pytest

from research.cli.main import main
from tests.integration.conftest import arguments, losses

CONSTANT = {"optimizer__schedule": "constant", "optimizer__warmup_steps": 2}
RUNS = {
    "muon, moving average": {"optimizer__name": "muon", "optimizer__ema_decay": 0.9, "optimizer__learning_rate": 0.01},
    "schedule-free": {"optimizer__name": "schedule_free", "optimizer__groups": "embedding=0.5"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_and_is_evaluated_with_its_averages(
    name: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = CONSTANT | RUNS[name]
    for workdir, lengths in (("longer", (6, 12)), ("once", (12,))):
        for length in lengths:
            assert main(arguments(tmp_path / workdir, corpus, train__num_steps=length, **changes)) == 0
    assert losses(tmp_path / "longer") == losses(tmp_path / "once")
    summary = json.loads((tmp_path / "longer" / "summary.json").read_text())
    capsys.readouterr()
    assert main(["evaluate", f"--workdir={tmp_path / 'longer'}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["heldout_loss"] == summary["heldout_loss"]
    assert main(["generate", f"--workdir={tmp_path / 'longer'}", "--prompt=The", "--tokens=3", "--json"]) == 0
    assert main(["export", f"--workdir={tmp_path / 'longer'}", f"--to={tmp_path / 'out'}"]) == 0
    last = json.loads((tmp_path / "once" / "summary.json").read_text())
    assert last["heldout_loss"] == summary["heldout_loss"]

"""Every recipe, very small, from the command line: it learns the embedded corpus, and all that follows works."""

import json
from pathlib import Path

import pytest

from research.cli.main import main
from tests.integration.conftest import ROOT, arguments, rows

# What a recipe's objective can be asked beside its default.
RECIPES = {
    "causal": {},
    "masked": {"objective.masking": "span", "objective.mask_rate_start": 0.3},
    "prefix": {},
    "span_corruption": {},
    "span_corruption:t5-tiny": {"objective.denoisers": "r,x,s"},
    "fill_in_middle": {},
    "sentence_pairs": {"objective.pairs": "next"},
    "seq2seq": {},
    "mixture": {},
}
VERY_SMALL = {
    "data.source": "docstrings",
    "tokenizer.vocab_size": 512,
    "tokenizer.training_bytes": 300_000,
    "data.sequence_length": 64,
    "model.num_layers": 1,
    "model.embed_dim": 32,
    "model.mlp_dim": 64,
    "optimizer.learning_rate": 1e-2,
    "objective.z_loss": 1e-4,
    "train.num_steps": 250,
    "train.evaluate_every": 250,
    "train.checkpoint_every": 250,
    "train.tensorboard": "false",
    "evaluate.max_windows": 32,
    "evaluate.num_samples": 1,
    "evaluate.sample_tokens": 4,
}


def command(recipe: str, workdir: Path, **changes: object) -> list[str]:
    name, _, size = recipe.partition(":")
    keys = {**VERY_SMALL, **RECIPES[recipe], **changes}
    config = f"--config={ROOT}/configs/{name}.py:{size or 'tiny'}"
    return ["train", config, f"--workdir={workdir}", *(f"--config.{key}={value}" for key, value in keys.items())]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_beats_its_own_unigrams(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(command(recipe, run)) == 0
    summary = json.loads((run / "summary.json").read_text())
    shown = capsys.readouterr().out
    assert summary["heldout_loss"] < summary["baselines"]["unigram_loss"] - 0.02
    assert "unigram" in shown and "sample" in shown
    last = rows(run)[-1]
    for key in ("tokens_seen", "tokens_predicted"):
        assert summary[key] == last[key] > 0
    assert summary["model_flops"] == last["model_flops"] >= summary["required_flops"] > 0
    assert summary["tokens_predicted"] == sum(row["targets"] for row in rows(run))
    assert main(["evaluate", f"--workdir={run}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert {key: found[key] for key in summary if key.startswith("heldout")} == {
        key: summary[key] for key in summary if key.startswith("heldout")
    }
    gap = recipe.partition(":")[0] in {"masked", "sentence_pairs", "span_corruption", "fill_in_middle"}
    prompt = "--prompt=Return the [MASK] of the list" if gap else "--prompt=Return the"
    assert main(["generate", f"--workdir={run}", prompt, "--tokens=4", "--json"]) == 0


def test_predicted_tokens_go_on_where_a_run_does(corpus: Path, tmp_path: Path) -> None:
    changes = {"objective__name": "prefix", "optimizer__schedule": "constant", "optimizer__warmup_steps": 0}
    straight, parted = tmp_path / "straight", tmp_path / "parted"
    assert main(arguments(straight, corpus, "prefix", **changes)) == 0
    assert main(arguments(parted, corpus, "prefix", **changes, train__num_steps=5)) == 0
    assert main(arguments(parted, corpus, "prefix", **changes)) == 0
    found = [[row["tokens_predicted"] for row in rows(run)] for run in (straight, parted)]
    assert found[0] == found[1] and len(found[0]) == 12
    assert found[0][-1] == sum(row["targets"] for row in rows(straight))

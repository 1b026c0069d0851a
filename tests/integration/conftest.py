"""Whole commands on a small corpus of real text: the topics of Python's own help."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from research.cli.main import main

ROOT = Path(__file__).parents[2]
SMALL = {
    "data.source": "jsonl",
    "tokenizer.vocab_size": 512,
    "data.sequence_length": 32,
    "train.batch_size": 8,
    "model.embed_dim": 32,
    "model.mlp_dim": 64,
    "model.dropout": 0.1,
    "train.num_steps": 12,
    "train.checkpoint_every": 5,
    "train.evaluate_every": 6,
    "evaluate.max_windows": 16,
    "evaluate.num_samples": 2,
    "evaluate.sample_tokens": 8,
}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "topics.jsonl"
    path.write_text("".join(json.dumps({"text": topics[name]}) + "\n" for name in sorted(topics)))
    return path


def arguments(workdir: Path, corpus: Path, recipe: str = "causal", **changes: object) -> list[str]:
    """`train` with the small settings; a change is written `train__num_steps=3`."""
    keys = SMALL | {"data.path": corpus} | {name.replace("__", "."): value for name, value in changes.items()}
    recipe = recipe if "/" in recipe else f"{ROOT}/configs/{recipe}.py:tiny"
    return ["train", f"--config={recipe}", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in keys.items())]


def start(argv: list[str], devices: int = 1, **environment: str) -> subprocess.Popen[str]:
    """The command as a process of its own, as a user would start it."""
    inherited = {
        k: v for k, v in os.environ.items() if k not in {"JAX_NUMPY_DTYPE_PROMOTION", "JAX_NUMPY_RANK_PROMOTION"}
    }
    inherited |= {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", **environment}
    return subprocess.Popen(
        [sys.executable, "-m", "research.cli.main", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=inherited,
    )


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """Runs a command that must fail, and gives the one sentence that it says."""

    def run(argv: list[str]) -> str:
        status = main(argv)
        said = capsys.readouterr().err.strip()
        assert status == 2
        assert said.startswith(f"isoflop {argv[0]}: ") and "\n" not in said, said
        return said.partition(": ")[2]

    return run


def rows(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir: Path) -> list[float]:
    found = rows(workdir)
    assert [row["step"] for row in found] == list(range(1, len(found) + 1))
    return [row["loss"] for row in found]

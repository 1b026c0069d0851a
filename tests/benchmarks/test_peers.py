"""The peers: who is found, who is absent and why, and that each trains the model that the shape describes."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import isoflop, peers
from benchmarks.gate import MASK, random_batches
from benchmarks.shapes import FAMILIES, OBJECTIVES, Shape
from tests.benchmarks.test_step import ENVIRONMENT, ROOT

TINY = Shape(embed=32, layers=2, heads=2, mlp=128, vocabulary=320, sequence=16, batch=2, decoder=8)


def shape(family: str) -> Shape:
    return dataclasses.replace(TINY, family=family)


def test_a_peer_without_its_checkout_is_absent_and_one_line_says_what_to_set() -> None:
    found = peers.find(TINY, environment={"ISOFLOP_BENCH_MAXTEXT": "/nowhere"})
    lines = {line.split()[0]: line for line in found.absent}
    assert "ISOFLOP_BENCH_NANOGPT" in lines["nanogpt"] and "karpathy/nanoGPT" in lines["nanogpt"]
    assert "ISOFLOP_BENCH_MAXTEXT=/nowhere" in lines["maxtext"]
    assert all("\n" not in line for line in lines.values())


def test_a_checkout_and_a_python_are_taken_from_the_environment(tmp_path: Path) -> None:
    environment = {"ISOFLOP_BENCH_NANOGPT": str(tmp_path), "ISOFLOP_BENCH_NANOGPT_PYTHON": sys.executable}
    found = peers.find(TINY, compiled=True, environment=environment)
    request = {"name": "nanogpt", "python": sys.executable, "checkout": str(tmp_path)}
    assert found.requests["nanogpt"] == request
    assert found.requests["nanogpt-compiled"] == request | {"compiled": True}
    nothing = peers.find(TINY, environment=environment | {"ISOFLOP_BENCH_NANOGPT_PYTHON": "/nowhere/python"})
    assert "nanogpt" not in nothing.requests and any("/nowhere/python" in line for line in nothing.absent)


def test_peers_take_part_where_they_have_the_family() -> None:
    environment = {"ISOFLOP_BENCH_HUGGINGFACE_PYTHON": sys.executable, "ISOFLOP_BENCH_LITGPT_PYTHON": "/nowhere"}
    for family in FAMILIES:
        found = peers.find(shape(family), environment=environment)
        assert list(found.requests) == ["huggingface"]
        assert all(not line.startswith("nanogpt") for line in found.absent) or family == "gpt"


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_are_those_of_the_objective(family: str) -> None:
    for objective in OBJECTIVES[family]:
        of = dataclasses.replace(TINY, family=family, objective=objective)
        first, second = random_batches(of)[:2]
        assert not np.array_equal(first.tokens, second.tokens)
        if objective == "causal":
            np.testing.assert_array_equal(first.tokens[:, 1:], first.targets[:, :-1])
        elif objective == "masked":
            np.testing.assert_array_equal(first.tokens == MASK, first.weights > 0)
            assert first.weights.sum() == of.batch * round(0.15 * of.sequence)
        else:
            assert first.encoder is not None and first.encoder.shape == (of.batch, of.sequence)
            assert first.tokens.shape == (of.batch, of.decoder)
        assert isoflop.batch_of(first).keys() >= {"tokens", "segment_ids", "positions", "targets", "weights"}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_hugging_face_trains_the_same_model(family: str) -> None:
    """The same number of weights, the loss of a uniform guess at first, and a falling one."""
    of = shape(family)
    asked = {"name": "huggingface", "checkout": None, "shape": dataclasses.asdict(of)}
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.contestants", json.dumps(asked)],
        input="40\n",
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr
    start, end = (json.loads(line) for line in ran.stdout.splitlines())
    own = isoflop.assembly_of(of).count.parameters
    # GPT-2 has biases in its projections: 3 + 1 + 4 + 1 widths a layer.
    assert start["parameters"] == own + (9 * of.embed * of.layers if family == "gpt" else 0)
    if family != "t5":  # whose untied head starts with large weights
        assert start["first_loss"] == pytest.approx(np.log(of.vocabulary), abs=0.5)
    assert end["loss"] < start["first_loss"] - 0.1
    assert start["versions"]["torch"] and end["peak_bytes"] > 0

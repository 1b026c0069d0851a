"""Held-out figures are those of the definition, for every kind of objective; the unigram baseline counts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.loader import Batch
from research.evaluate import baselines
from research.evaluate.heldout import heldout_evaluation
from research.objectives.mixture import Mixture
from research.objectives.sentence_pairs import SentencePairs
from research.parallel import mesh
from research.settings import ParallelSettings
from tests import small
from tests.objectives.cases import LENGTH, OBJECTIVES, batch, windows

KINDS = ["causal smoothed", "masked", "prefix", "spans", "spans, encoder", "fill in middle", "next", "mixture"]


class Batches:
    """Two batches of four rows, of which the last three are padding."""

    num_batches, num_bytes = 2, 1234

    def __init__(self, name: str) -> None:
        self.made = batch(name, windows(range(5)))

    def batch(self, index: int) -> Batch:
        rows = {key: array[4 * index : 4 * index + 4] for key, array in self.made.items()}
        return {key: np.pad(array, [(0, 4 - len(array)), *[(0, 0)] * (array.ndim - 1)]) for key, array in rows.items()}


@pytest.mark.parametrize("name", KINDS)
def test_figures_are_those_of_the_definition(name: str) -> None:
    objective = OBJECTIVES[name]
    longest = max(objective.lengths(LENGTH))
    family = "t5" if objective.lengths(LENGTH).encoder else "llama"
    model = small.model(family, max_positions=longest, pooler=True, pair_head=True, token_types=2, num_layers=1)
    params, batches = small.weights(model), Batches(name)
    devices = mesh.make_mesh(ParallelSettings(), jax.devices()[:1])
    with jax.set_mesh(devices):
        found = heldout_evaluation(model, objective, batches, 4, devices)(params)
    made = {key: jnp.asarray(array) for key, array in batches.made.items()}
    hidden = model.apply(params, made, pattern=objective.pattern).hidden
    logits = np.asarray(model.unembed(params, hidden), np.float64)
    weights, targets = np.asarray(made["weights"]), np.asarray(made["targets"])
    normaliser = np.log(np.exp(logits - logits.max()).sum(axis=-1)) + logits.max()
    nats = normaliser - np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    loss = (nats * weights).sum() / weights.sum()
    expected = {"heldout_loss": loss, "heldout_perplexity": math.exp(loss)}
    text = name in {"causal smoothed", "fill in middle"}
    expected["heldout_bits_per_byte"] = (nats * weights).sum() / math.log(2) / 1234 if text else None
    right = ((logits.argmax(axis=-1) == targets) * weights).sum() / weights.sum()
    expected["heldout_accuracy"] = right if name in {"masked", "spans", "spans, encoder", "next"} else None
    if isinstance(objective, Mixture):
        for number, member in enumerate(objective.members):
            own = weights * (np.asarray(made["members"]) == number)[:, None]
            expected[f"heldout_loss_{member.name}"] = (nats * own).sum() / own.sum() if own.any() else None
    if isinstance(objective, SentencePairs):
        pairs = np.asarray(model.classify_pairs(params, hidden), np.float64)
        own, labels = np.asarray(made["label_weights"]), np.asarray(made["labels"])
        losses = np.log(np.exp(pairs).sum(axis=-1)) - pairs[np.arange(5), labels]
        expected["heldout_loss_pairs"] = (losses * own).sum() / own.sum()
        expected["heldout_accuracy_pairs"] = ((pairs.argmax(axis=-1) == labels) * own).sum() / own.sum()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == (None if value is None else pytest.approx(value, rel=1e-4)), key


def asked(*rows: list[int]) -> list[Batch]:
    return [{"targets": np.array(row), "weights": (np.array(row) > 0).astype(np.float32)} for row in rows]


def test_the_unigram_baseline_counts_the_targets_of_training() -> None:
    found = baselines.unigram(asked([5, 5, 0], [5, 6, 0], [7, 0, 0]), asked([5, 6], [8, 0], [5, 5]), 10)
    nats = [-math.log((count + 1) / 15) for count in (3, 1, 0, 3, 3)]
    assert found == {"unigram_loss": pytest.approx(np.mean(nats)), "unigram_accuracy": 3 / 5}


def test_of_a_long_run_some_updates_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "COUNTED_WINDOWS", 8)
    assert baselines.counted_updates(100, 2) == [[0, 33, 66, 99]]
    assert baselines.counted_updates(3, 2) == [[0, 1, 2]] and baselines.counted_updates(3, 100) == [[0]]
    monkeypatch.setattr(baselines, "TOGETHER", 4)
    assert baselines.counted_updates(100, 2) == [[0, 33], [66, 99]]

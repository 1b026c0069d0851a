"""One update: accumulation changes nothing, sums are divided once, what is measured is what happened."""

import dataclasses
import functools
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import trees
from research.errors import UserError
from research.optim import Hyper
from research.parallel import devices
from research.train.assembly import assemble
from research.train.metrics import NullLog
from research.train.recorder import Recorder, Utilisation
from research.train.step import norms
from tests import small
from tests.small import assert_close, assert_same_bits

DROPPED = {"model.dropout": 0.1}


def uneven_batch(of: Any, step: int) -> dict[str, np.ndarray]:
    """Micro-batches of very unequal weight: the first rows have one target each, the last row all."""
    batch = small.random_batch(of, step)
    shape = batch["weights"].shape
    flat = batch["weights"].reshape(-1, shape[-1])
    keep = np.arange(shape[-1])[None] < np.linspace(1, shape[-1], len(flat)).astype(int)[:, None]
    return batch | {"weights": (flat * keep).reshape(shape).astype(np.float32)}


@functools.cache
def trained(accumulation: int, steps: int = 6) -> tuple[Any, list[dict[str, np.ndarray]]]:
    changes = DROPPED | ({"train.accumulation": accumulation} if accumulation > 1 else {})
    # An update is a gradient over its own size: epsilon stands above the rounding, which is not what is compared.
    return small.train(changes, steps=steps, batches=uneven_batch, dropout=0.0, epsilon=1e-6)


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_changes_nothing(accumulation: int) -> None:
    whole, parts = trained(1), trained(accumulation)
    assert_close(parts[1], whole[1])
    np.testing.assert_allclose([row["loss"] for row in parts[1]], [row["loss"] for row in whole[1]], rtol=0, atol=1e-5)
    assert_close(parts[0].params, whole[0].params)


def test_the_loss_is_divided_once_by_the_weight_of_the_whole_batch() -> None:
    assembly, _ = small.trainer(DROPPED | {"train.accumulation": 4})
    batch, start = uneven_batch(assembly.settings, 0), small.state(assembly)
    model, pattern = assembly.model, assembly.objective.pattern

    @small.jit
    def losses(params: Any, rows: Any) -> Any:
        hidden = model.apply(params, rows, pattern=pattern).hidden
        logits = jax.nn.log_softmax(model.unembed(params, hidden))
        return -jnp.take_along_axis(logits, rows["targets"][:, :, None], axis=-1)[:, :, 0]

    flat = {name: array.reshape(-1, array.shape[-1]) for name, array in batch.items()}
    each = np.asarray(losses(start.params, flat), np.float64).reshape(batch["weights"].shape)
    sums, weights = (each * batch["weights"]).sum(axis=(1, 2)), batch["weights"].sum(axis=(1, 2))
    mean, mean_of_means = sums.sum() / weights.sum(), (sums / weights).mean()
    assert abs(mean - mean_of_means) > 1e-3
    first = trained(4)[1][0]
    np.testing.assert_allclose(first["loss"], mean, rtol=1e-5)
    assert first["targets"] == weights.sum()


def norm(tree: Any) -> float:
    return float(np.sqrt(sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in jax.tree.leaves(tree))))


def test_norms_are_those_of_what_happened_by_layer_and_in_all() -> None:
    assembly, _ = small.trainer(DROPPED)
    before = jax.device_get(small.state(assembly).params)
    after, (metrics,) = small.train(DROPPED, steps=1, dropout=0.0)
    change = jax.tree.map(np.subtract, after.params, before)
    first_moment = after.optimizer[1].mu  # after one update: (1 - beta1) times the clipped gradient
    clipped = jax.tree.map(lambda leaf: leaf / (1 - 0.9), first_moment)
    clip = min(1.0, 1.0 / metrics["gradient_norm"])
    for name, tree, scale in (
        ("update_norm", change, 1.0),
        ("parameter_norm", after.params, 1.0),
        ("gradient_norm", clipped, 1 / clip),
    ):
        np.testing.assert_allclose(metrics[name], scale * norm(tree), rtol=1e-4 if name == "update_norm" else 1e-5)
        for layer, value in enumerate(metrics[f"{name}_by_layer"]):
            own = jax.tree.map(lambda leaf, layer=layer: leaf[layer], tree["layers"])
            np.testing.assert_allclose(value, scale * norm(own), rtol=1e-4 if name == "update_norm" else 1e-5)
        assert metrics[f"{name}_by_layer"].shape == (2,)
    assert metrics["learning_rate"] == np.float32(3e-3) / 2  # the first of one update of warm-up
    assert np.isfinite(metrics["attention_logit_max"])


def test_frozen_weights_count_in_no_norm_of_gradients() -> None:
    whole, some = (small.train({"optimizer.groups": groups}, steps=1)[1][0] for groups in ("", "^layers=0"))
    assert not np.any(some["gradient_norm_by_layer"]) and np.all(whole["gradient_norm_by_layer"] > 0)
    rest = whole["gradient_norm"] ** 2 - np.sum(whole["gradient_norm_by_layer"] ** 2)
    np.testing.assert_allclose(some["gradient_norm"] ** 2, rest, rtol=1e-4)


def test_dropout_is_a_function_of_seed_and_step() -> None:
    def losses(**fields: Any) -> list[np.ndarray]:
        first = lambda of, step: small.random_batch(of, 0)  # noqa: E731
        _, metrics = small.train(DROPPED, steps=3, batches=first, learning_rate=0.0, **fields)
        return [row["loss"] for row in metrics]

    dropped = losses(dropout=0.5)
    assert_same_bits(losses(dropout=0.5), dropped)
    assert len(set(map(float, dropped))) == 3  # nothing is learnt, the batch is the same: each step drops its own
    assert len(set(map(float, losses(dropout=0.0)))) == 1
    assert not set(map(float, losses(dropout=0.5, seed=1))) & set(map(float, dropped))


def test_no_number_of_a_state_compiles_an_update_anew() -> None:
    _, update = small.trainer(DROPPED)
    small.train(DROPPED, steps=1, dropout=0.0)
    before = update._cache_size()
    for name in Hyper._fields:
        value = 7 if name.endswith("steps") else 0.25
        small.train(DROPPED, steps=1, **{name: value})
    small.train(DROPPED, steps=1, seed=5)
    assert update._cache_size() == before


def test_an_update_takes_its_state_and_gives_one_of_the_same_kind() -> None:
    assembly, update = small.trainer(DROPPED)
    before = small.state(assembly)
    kinds = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), before)
    batch = small.placed(assembly, small.random_batch(assembly.settings, 0))
    with jax.set_mesh(assembly.mesh):
        after, _ = update(before, batch)
    large = {path: leaf for path, leaf in trees.flatten(before).items() if leaf.ndim}
    assert all(leaf.is_deleted() for leaf in large.values())
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(batch))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == kinds
    assert int(after.step) == 1


@pytest.mark.parametrize(
    ("changes", "size", "mentioned"),
    [
        ({}, 321, ["tokenizer.vocab_size=320", "321"]),
        ({"train.batch_size": 12}, 320, ["train.batch_size=12", "8"]),
        ({"evaluate.batch_size": 12}, 320, ["evaluate.batch_size=12", "8"]),
        ({"parallel.mesh.data": 3}, 320, ["parallel.mesh.data=3", "8"]),
        ({"parallel.preset": "tp", "model.num_heads": 4}, 320, ["model.num_heads=4", "parallel.mesh.tensor=8"]),
        (
            {"model.position": "learned", "model.max_positions": 4},
            320,
            ["model.max_positions=4", "data.sequence_length"],
        ),
    ],
)
def test_what_does_not_fit_together_is_one_sentence_before_any_compile(
    changes: dict[str, Any], size: int, mentioned: list[str]
) -> None:
    with pytest.raises(UserError) as caught, mock.patch("jax.jit", side_effect=AssertionError):
        assemble(small.settings(changes), dataclasses.replace(small.VOCABULARY, size=size))
    small.assert_one_sentence(str(caught.value), *mentioned)


class Screen:
    """A display that remembers what it was shown."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def stage(self, text: str) -> None:
        pass

    def event(self, text: str) -> None:
        pass

    def update(self, step: int, loss: float, tokens_per_second: float, utilisation: float | None) -> None:
        assert tokens_per_second > 0 and utilisation is None
        self.losses.append(loss)


def test_a_loss_that_is_no_number_is_shown_and_ends_the_run() -> None:
    assembly, _ = small.trainer(DROPPED)
    _, (metrics,) = small.train(DROPPED, steps=1, batches=lambda of, step: _poisoned(of), dropout=0.0)
    assert np.isnan(metrics["loss"]) and np.isnan(metrics["gradient_norm"])
    screen = Screen()
    recorder = Recorder(assembly, NullLog(), screen, interval=10)
    recorder.keep(1, {"loss": jnp.asarray(2.5), "targets": jnp.asarray(3.0)})
    recorder.write_previous()
    recorder.write_previous()  # each update is written once
    assert screen.losses == [2.5]
    recorder.keep(2, {name: jnp.asarray(value) for name, value in metrics.items()})
    assert screen.losses == [2.5]  # one step late
    with pytest.raises(UserError) as caught:
        recorder.write_previous()
    small.assert_one_sentence(str(caught.value), "update 2", "nan", "optimizer.learning_rate")
    assert len(screen.losses) == 2


def _poisoned(of: Any) -> dict[str, np.ndarray]:
    batch = small.random_batch(of, 0)
    batch["weights"][0, 0, 0] = np.nan
    return batch


def test_a_norm_that_the_first_layer_lacks_counts_for_the_others() -> None:
    tree = {"layers": {"norm": jnp.full((2, 1), 3.0), "kernel": jnp.full((3, 1), 4.0)}, "head": jnp.zeros(1)}
    found = norms("norm", tree)
    np.testing.assert_allclose(found["norm_by_layer"], [4.0, 5.0, 5.0])
    np.testing.assert_allclose(found["norm"], 66.0**0.5, rtol=1e-6)


@pytest.mark.parametrize("quantisation", ["none", "int8"])
def test_utilisation_counts_what_is_required_and_is_never_above_one(
    monkeypatch: pytest.MonkeyPatch, quantisation: str
) -> None:
    assembly, _ = small.trainer({"model.quantisation": quantisation})
    count = assembly.count
    assert count.required_flops < count.model_flops
    peak = 1000.0 * count.required_flops * (1 if quantisation == "none" else 0.5)
    assert Utilisation.of(assembly).at(5.0) is None  # a CPU's peak is not known
    monkeypatch.setattr(devices, "peak_flops", lambda device: peak)
    assert Utilisation.of(assembly).at(250.0) == pytest.approx(0.25)

    class Shown(Screen):
        def __init__(self) -> None:
            super().__init__()
            self.events: list[str] = []
            self.shares: list[float | None] = []

        def event(self, text: str) -> None:
            self.events.append(text)

        def update(self, step: int, loss: float, tokens_per_second: float, utilisation: float | None) -> None:
            self.shares.append(utilisation)

    def shown(peak: float) -> Shown:
        monkeypatch.setattr(devices, "peak_flops", lambda device: peak)
        screen = Shown()
        recorder = Recorder(assembly, NullLog(), screen, interval=10)
        for step in (1, 2):
            recorder.keep(step, {"loss": jnp.asarray(2.5), "targets": jnp.asarray(3.0)})
            recorder.write_previous()
        return screen

    fast, slow = shown(1e30), shown(1.0)
    assert all(share is not None and 0.0 < share < 1.0 for share in fast.shares) and not fast.events
    assert slow.shares == [None, None]
    (event,) = slow.events
    small.assert_one_sentence(event, "utilisation", "TFLOP/s")

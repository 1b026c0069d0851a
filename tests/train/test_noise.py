"""The gradient noise scale: what its two estimates are of, and that measuring it changes nothing."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import trees
from research.errors import UserError
from research.train import charts, noise, report
from tests import small
from tests.small import assert_one_sentence, assert_same_bits
from tests.train.test_step import DROPPED, norm, uneven_batch

PARTS = {"train.accumulation": 4}
MEASURED = PARTS | {"train.noise_scale": True}


@pytest.mark.parametrize("weights", [(3.0, 3.0, 3.0, 3.0), (1.0, 2.0, 5.0), (4.0, 0.0, 1.0, 2.0, 1.0)])
def test_the_estimates_are_unbiased_whatever_weights_and_noises(weights: tuple[float, ...]) -> None:
    rng = np.random.default_rng(len(weights))
    gradient, shares = rng.normal(size=7), np.array(weights) / sum(weights)
    # A noise of its own for each part; over all choices of signs the products of two noises cancel exactly.
    noises = rng.normal(size=(len(weights), 7)) * rng.uniform(0.1, 3.0, (len(weights), 1))
    found = []
    for signs in itertools.product((-1.0, 1.0), repeat=len(weights)):
        parts = shares[:, None] * gradient + np.array(signs)[:, None] * noises
        squares, whole = (parts**2).sum(), (parts.sum(axis=0) ** 2).sum()
        found.append(noise.estimates(*map(jnp.float32, (squares, whole)), jnp.asarray(weights, jnp.float32)))
    signal, spread = (np.mean([one[name] for one in found]) for name in (noise.SIGNAL, noise.NOISE))
    np.testing.assert_allclose(signal, gradient @ gradient, rtol=1e-4)
    np.testing.assert_allclose(spread, (noises**2).sum(), rtol=1e-4)


def test_with_equal_parts_they_are_those_of_a_small_and_a_large_batch() -> None:
    parts = np.random.default_rng(0).normal(size=(5, 3))
    # McCandlish et al. 2018, appendix A.1, for batches of 1 and 5: a part's own gradient is five times what it adds.
    small_batch, large_batch = (25 * (parts**2).sum(axis=1)).mean(), (parts.sum(axis=0) ** 2).sum()
    signal = (5 * large_batch - 1 * small_batch) / (5 - 1)
    trace = (small_batch - large_batch) / (1 / 1 - 1 / 5)
    found = noise.estimates(jnp.float32((parts**2).sum()), jnp.float32(large_batch), jnp.ones(5, jnp.float32))
    np.testing.assert_allclose(found[noise.SIGNAL], signal, rtol=1e-5)
    np.testing.assert_allclose(found[noise.NOISE], trace / 5, rtol=1e-5)


@functools.cache
def trained(measured: bool) -> tuple[Any, list[dict[str, np.ndarray]]]:
    return small.train(DROPPED | (MEASURED if measured else PARTS), steps=5, batches=uneven_batch, dropout=0.5)


def test_measuring_changes_no_bit() -> None:
    plain, measured = trained(False), trained(True)
    assert_same_bits(measured[0], plain[0])
    for without, row in zip(plain[1], measured[1], strict=True):
        assert_same_bits({name: row[name] for name in without}, without)
        assert set(row) - set(without) == {noise.SIGNAL, noise.NOISE}
        assert np.isfinite(row[noise.NOISE]) and row[noise.NOISE] > 0


def test_measuring_keeps_one_number_more() -> None:
    def temporaries(changes: dict[str, Any]) -> int:
        assembly, update = small.trainer(DROPPED | changes)
        batch = small.placed(assembly, small.random_batch(assembly.settings, 0))
        with jax.set_mesh(assembly.mesh):
            return update.lower(small.state(assembly), batch).compile().memory_analysis().temp_size_in_bytes

    parameters = sum(leaf.size for leaf in jax.tree.leaves(trained(False)[0].params))
    assert temporaries(MEASURED) - temporaries(PARTS) < 0.05 * 4 * parameters


@pytest.mark.parametrize("frozen", ["", "^layers=0"])
def test_it_is_of_the_gradients_of_the_micro_batches_that_train(frozen: str) -> None:
    changes = {"optimizer.groups": frozen} | MEASURED
    assembly, _ = small.trainer(changes)
    batch, start = uneven_batch(assembly.settings, 0), small.state(assembly)
    model, objective = assembly.model, assembly.objective
    total = batch["weights"].sum()

    @small.jit
    @jax.grad
    def gradient(params: Any, rows: Any) -> Any:
        outputs = model.apply(params, rows, pattern=objective.pattern)
        return objective.terms(model, params, outputs, rows)["loss"].sum / total

    found = [gradient(start.params, {name: array[part] for name, array in batch.items()}) for part in range(4)]
    if frozen:
        found = [{path: leaf for path, leaf in trees.flatten(one).items() if "layers" not in path} for one in found]
    squares, whole = sum(norm(one) ** 2 for one in found), norm(jax.tree.map(lambda *parts: sum(parts), *found)) ** 2
    even = np.square(batch["weights"].sum(axis=(1, 2)) / total).sum()
    assert even > 0.3  # the weights are far from equal
    _, (row,) = small.train(changes, steps=1, batches=uneven_batch, dropout=0.0)
    np.testing.assert_allclose(row["gradient_norm"] ** 2, whole, rtol=1e-4)
    np.testing.assert_allclose(row[noise.SIGNAL], (whole - squares) / (1 - even), rtol=1e-4, atol=1e-5 * whole)
    np.testing.assert_allclose(row[noise.NOISE], (squares - even * whole) / (1 - even), rtol=1e-4)


def test_one_micro_batch_is_refused_before_anything_is_built() -> None:
    with pytest.raises(UserError) as caught:
        small.settings({"train.noise_scale": True})
    assert_one_sentence(str(caught.value), "train.noise_scale", "train.accumulation=1")


# --- what a run's report shows ----------------------------------------------------------------------------------------


def columns(signal: float) -> dict[str, np.ndarray]:
    step = np.arange(1.0, 101.0)
    wobble = np.where(step % 2, 3.0, -1.0)  # single updates say nothing, and may be below zero
    return {
        "step": step,
        "loss": 4.0 / step,
        "tokens_seen": 512 * step,
        noise.SIGNAL: signal * wobble,
        noise.NOISE: np.full(100, 8.0),
    }


def drawn(of: dict[str, np.ndarray]) -> dict[str, Any]:
    return {chart["title"]: chart for chart in charts.charts(of, [], {}, None)}


def test_a_report_draws_the_noise_over_the_signal_and_neither_alone() -> None:
    found = drawn(columns(2.0))
    assert set(found) == {"Loss", "Gradient noise scale"}
    (curve,) = found["Gradient noise scale"]["series"]
    assert curve["y"][-1] == pytest.approx(512 * 8.0 / 2.0) and found["Gradient noise scale"]["log"]
    assert set(drawn(columns(-2.0))) == {"Loss"}  # no signal, no scale
    assert set(drawn({name: values for name, values in columns(2.0).items() if name != noise.NOISE})) == {"Loss"}


def test_a_report_compares_the_noise_scale_with_the_batch() -> None:
    found = {"step": 100, "noise_scale_tokens": 2048.0, "noise_scale_low": 1500.0, "noise_scale_high": 12_000.0}
    shown = report.tiles(report.Run("run", {}, columns(2.0), [], found, ""))
    assert "Gradient noise scale" in shown and "2,048" in shown and "1,500 to 12 k; a batch has 512" in shown
    refused = {"step": 100, "noise_scale_tokens": None, "noise_scale_refused": "too few"}
    assert "noise" not in report.tiles(report.Run("run", {}, columns(2.0), [], refused, ""))

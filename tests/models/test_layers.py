"""Norms, rotary positions and dropout by their defining properties."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models import layers, positions
from research.settings import ModelSettings
from tests.small import assert_close

X = np.random.default_rng(0).normal(2.0, 3.0, (2, 3, 8)).astype(np.float32)
SCALE, BIAS = np.linspace(0.5, 2, 8).astype(np.float32), np.linspace(-1, 1, 8).astype(np.float32)
RMS, CENTRED = ModelSettings(norm="rmsnorm"), ModelSettings(norm="layernorm")


def test_rmsnorm_divides_by_the_root_of_the_mean_square() -> None:
    found = layers.normalise(jnp.asarray(X), {"scale": jnp.asarray(SCALE)}, RMS)
    assert_close(found, X / np.sqrt((X.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-6) * SCALE)


def test_layernorm_centres_scales_and_shifts() -> None:
    found = layers.normalise(jnp.asarray(X), {"scale": jnp.asarray(SCALE), "bias": jnp.asarray(BIAS)}, CENTRED)
    wide = X.astype(np.float64)
    normal = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    assert_close(found, normal * SCALE + BIAS)


@pytest.mark.parametrize(("weights", "of"), [({"scale": SCALE}, RMS), ({"scale": SCALE, "bias": BIAS}, CENTRED)])
def test_norms_compute_in_float32(weights: dict[str, Any], of: ModelSettings) -> None:
    weights = {name: jnp.asarray(value) for name, value in weights.items()}
    half = jnp.asarray(X, jnp.bfloat16)
    exact = layers.normalise(half.astype(jnp.float32), weights, of).astype(jnp.bfloat16)
    found = layers.normalise(half, weights, of)
    assert found.dtype == jnp.bfloat16 and (found == exact).all()


def rotated(x: np.ndarray, places: list[int], base: float = 100.0) -> np.ndarray:
    frequencies, factor = positions.rotary_frequencies(ModelSettings(head_dim=8, rotary_base=base), local=False)
    found = positions.rotary(jnp.asarray(x)[None, :, None, :], jnp.asarray([places], jnp.int32), frequencies, factor)
    return np.asarray(found, np.float64)[0, :, 0]


def test_rotary_scores_depend_on_distance_alone() -> None:
    rng = np.random.default_rng(1)
    query, key = (np.repeat(rng.normal(size=(1, 8)), 6, axis=0).astype(np.float32) for _ in range(2))
    scores = {}
    for shift in (0, 1, 37, 500):
        places = [shift + place for place in range(6)]
        scores[shift] = rotated(query, places) @ rotated(key, places).T
    for score in scores.values():
        np.testing.assert_allclose(score, scores[0], atol=1e-4 * np.abs(scores[0]).max())
        diagonals = [np.diagonal(score, offset) for offset in range(-5, 6)]
        assert all(np.ptp(diagonal) < 1e-3 for diagonal in diagonals)
        assert np.min(np.diff(np.sort([diagonal[0] for diagonal in diagonals]))) > 1e-3


def test_rotary_turns_pairs_and_keeps_lengths() -> None:
    x = np.random.default_rng(2).normal(size=(4, 8)).astype(np.float32)
    np.testing.assert_array_equal(rotated(x, [0, 0, 0, 0]), x)
    found = rotated(x, [0, 1, 2, 30])
    pairs = lambda array: np.hypot(array[:, :4], array[:, 4:])  # noqa: E731
    np.testing.assert_allclose(pairs(found), pairs(x), rtol=1e-5)
    angles = np.arctan2(found[:, 4:], found[:, :4]) - np.arctan2(x[:, 4:], x[:, :4])
    expected = np.outer([0, 1, 2, 30], 100.0 ** (-np.arange(4) / 4))
    np.testing.assert_allclose(np.exp(1j * angles), np.exp(1j * expected), atol=1e-5)


def test_dropout_keeps_the_expectation_and_drops_the_share_that_it_is_told() -> None:
    x = jnp.ones((400, 500))
    for rate in (0.1, 0.5, 0.9):
        found = np.asarray(layers.dropout(x, jnp.asarray(rate), jax.random.key(0)))
        share = (found == 0.0).mean()
        assert abs(share - rate) < 5 * np.sqrt(rate * (1 - rate) / x.size)
        np.testing.assert_allclose(found[found != 0.0], 1 / (1 - rate), rtol=1e-6)
        assert abs(found.mean() - 1.0) < 5 * np.sqrt(rate / (1 - rate) / x.size)
    assert layers.dropout(x, None, jax.random.key(0)) is x
    assert layers.dropout(x, jnp.asarray(0.5), None) is x

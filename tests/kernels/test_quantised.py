"""Products in int8: what is rounded, what is not, and that a model learns alike."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.kernels import quantised
from research.kernels.choice import CPU, REFERENCE
from research.models import build
from tests import small


def operands(dtype: str = "float32") -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((3, 8, 64), (64, 32), (3, 8, 32))
    return tuple(jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True))


def distance(found: jax.Array, expected: jax.Array) -> float:
    """Relative to the expected norm."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_product_and_gradients_are_those_of_the_reference_up_to_eight_bits(dtype: str) -> None:
    x, weight, direction = operands(dtype)

    def both(product):
        out, pull = jax.vjp(product, x, weight)
        return out, *pull(direction)

    found, expected = both(quantised.int8), both(lambda x, weight: x @ weight)
    for a, b in zip(found, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    # Rounding to steps of 1/127 of the largest value (about 2.5 deviations) is an error of 0.6 % an operand.
    assert 1e-3 < distance(found[0], expected[0]) < 0.015
    assert 1e-3 < distance(found[1], expected[1]) < 0.015
    assert distance(found[2], expected[2]) < (1e-6 if dtype == "float32" else 0.005)


def test_integers_are_multiplied_and_the_weight_gradient_is_not_rounded() -> None:
    x, weight, direction = operands()

    def pulled(x, weight, direction):
        out, pull = jax.vjp(quantised.int8, x, weight)
        return out, pull(direction)

    text = jax.jit(pulled).lower(x, weight, direction).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 3
    assert sum("xi8>" in line and "xi32>" in line for line in products) == 2


def test_rounding_is_half_a_step_at_most_and_zeros_stay_zeros() -> None:
    x, weight, _ = (np.asarray(array, np.float64) for array in operands())
    x[0, 0] = 0.0
    found = np.asarray(quantised.int8(jnp.asarray(x, jnp.float32), jnp.asarray(weight, jnp.float32)))
    assert np.all(found[0, 0] == 0.0)
    half_x, half_w = np.abs(x).max(-1, keepdims=True) / 254, np.abs(weight).max(0, keepdims=True) / 254
    most = half_x * np.abs(weight).sum(0) + np.abs(x).sum(-1, keepdims=True) * half_w + len(weight) * half_x * half_w
    assert np.all(np.abs(found - x @ weight) <= most + 1e-4)


def test_rows_do_not_share_a_scale() -> None:
    x, weight, _ = operands()
    large = x.at[0, 0].multiply(1e4)
    np.testing.assert_array_equal(quantised.int8(large, weight)[0, 1:], quantised.int8(x, weight)[0, 1:])


@pytest.mark.parametrize("base", [CPU, REFERENCE])
def test_the_settings_choose_the_product_on_every_set_of_kernels(base) -> None:
    plain, coarse = (build(small.settings({"model.quantisation": name}), base) for name in ("none", "int8"))
    assert plain.kernels == base
    assert coarse.kernels.product is quantised.int8 and dict(coarse.kernels.names)["product"] == "int8"
    assert coarse.kernels.attention is base.attention


def test_a_model_learns_alike() -> None:
    batch = {"batches": lambda of, step: small.random_batch(of, step % 2)}
    losses = {
        name: [float(row["loss"]) for row in small.train({"model.quantisation": name}, steps=12, **batch)[1]]
        for name in ("none", "int8")
    }
    assert losses["none"] != losses["int8"]
    assert losses["none"][-1] < losses["none"][0] - 0.3
    np.testing.assert_allclose(losses["int8"], losses["none"], rtol=0.01)


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qwix", None)  # as the import system marks what must not be imported
    with pytest.raises(UserError) as refusal:
        build(small.settings({"model.quantisation": "int8"}), CPU)
    small.assert_one_sentence(str(refusal.value), "model.quantisation=int8", "qwix", "isoflop[int8]")

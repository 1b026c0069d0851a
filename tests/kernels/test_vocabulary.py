"""Every vocabulary head gives the same loss and the same gradients; the chunked one never holds all logits."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from research.kernels import vocabulary
from tests.small import assert_close

HEADS = {"reference": vocabulary.reference, "chunked": vocabulary.chunked}


def plain(head: Any) -> Any:
    """The loss of a head without a bias, as it is most often."""
    return lambda hidden, table, targets, weights: head(hidden, table, None, targets, weights).total


KERNELS = {name: plain(head) for name, head in HEADS.items()}
GRADIENTS = {name: jax.jit(jax.value_and_grad(kernel, argnums=(0, 1))) for name, kernel in KERNELS.items()}
EMBED, VOCAB = 6, 11


def example(tokens: int, dtype: Any = jnp.float32) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(tokens)
    hidden = jnp.asarray(rng.normal(size=(tokens, EMBED)), dtype)
    table = jnp.asarray(rng.normal(size=(VOCAB, EMBED)), dtype)
    weights = rng.random(tokens) * (rng.random(tokens) < 0.8)
    return hidden, table, jnp.asarray(rng.integers(0, VOCAB, tokens), jnp.int32), jnp.asarray(weights, jnp.float32)


def by_hand(hidden: Any, table: Any, targets: Any, weights: Any) -> tuple[float, np.ndarray, np.ndarray]:
    """The loss and its two gradients (softmax minus one-hot), in float64."""
    hidden, table, weights = (np.asarray(array, np.float64) for array in (hidden, table, weights))
    logits = hidden @ table.T
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    rows = np.arange(len(targets))
    chosen = logits[rows, targets] - logits.max(axis=1) - np.log(exponentials.sum(axis=1))
    loss = -np.sum(weights * chosen)
    probabilities[rows, targets] -= 1.0
    error = probabilities * weights[:, None]
    return loss, error @ table, error.T @ hidden


def loss_and_gradients(kernel: str, *arrays: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return GRADIENTS[kernel](*arrays)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("tokens", [1, 16, 37])
def test_value_and_gradients_are_those_of_the_formula(kernel: str, tokens: int) -> None:
    arrays = example(tokens)
    loss, gradients = loss_and_gradients(kernel, *arrays)
    expected, *expected_gradients = by_hand(*arrays)
    assert_close(loss, np.float64(expected))
    assert_close(gradients, tuple(expected_gradients))
    assert_close(jax.jit(KERNELS[kernel])(*arrays), np.float64(expected))


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_scale_with_what_stands_behind_the_loss(kernel: str) -> None:
    arrays = example(37)
    _, gradients = loss_and_gradients(kernel, *arrays)
    scaled = jax.jit(jax.grad(lambda h, t: -3.0 * KERNELS[kernel](h, t, *arrays[2:]), argnums=(0, 1)))(*arrays[:2])
    assert_close(scaled, jax.tree.map(lambda gradient: -3.0 * gradient, gradients))


@pytest.mark.parametrize("kernel", KERNELS)
def test_positions_of_weight_zero_do_not_count(kernel: str) -> None:
    hidden, table, targets, weights = example(37)
    silent = np.asarray(weights) == 0.0
    assert silent.any()
    other = jnp.where(silent[:, None], 7.0, hidden), table, jnp.where(silent, 0, targets), weights
    loss, gradients = loss_and_gradients(kernel, hidden, table, targets, weights)
    again, others = loss_and_gradients(kernel, *other)
    assert_close((again, others[1]), (loss, gradients[1]))
    assert not np.asarray(others[0])[silent].any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_large_logits_overflow_nothing(kernel: str) -> None:
    hidden, table, targets, weights = example(37)
    loss, gradients = loss_and_gradients(kernel, 100 * hidden, table, targets, weights)
    expected, *expected_gradients = by_hand(100 * hidden, table, targets, weights)
    assert_close(loss, np.float64(expected))
    assert_close(gradients, tuple(expected_gradients))


@pytest.mark.parametrize("kernel", KERNELS)
def test_bfloat16_inputs_give_a_float32_loss_and_bfloat16_gradients(kernel: str) -> None:
    arrays = example(37, jnp.bfloat16)
    loss, gradients = loss_and_gradients(kernel, *arrays)
    expected, *expected_gradients = by_hand(*arrays)
    assert loss.dtype == jnp.float32
    assert_close(loss, np.float64(expected))
    for gradient, exact in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(gradient, np.float64), exact, rtol=0, atol=2**-6 * np.abs(exact).max())


@pytest.mark.parametrize("kernel", HEADS)
@pytest.mark.parametrize(
    "form",
    [vocabulary.Form(*numbers) for numbers in ((3.0, 0.0, 0.0), (None, 0.1, 0.0), (None, 0.0, 0.01), (2.0, 0.2, 0.05))],
    ids=["softcap", "smoothing", "z-loss", "all"],
)
def test_bias_softcap_smoothing_and_z_loss_are_their_formulas(kernel: str, form: vocabulary.Form) -> None:
    hidden, table, targets, weights = example(37)
    bias = jnp.asarray(np.linspace(-1, 1, VOCAB), jnp.float32)

    def formula(hidden: Any, table: Any, bias: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        logits = hidden @ table.T + bias[None, :]
        logits = logits if form.softcap is None else form.softcap * jnp.tanh(logits / form.softcap)
        probabilities = jax.nn.log_softmax(logits, axis=-1)
        wanted = (1.0 - form.smoothing) * jax.nn.one_hot(targets, VOCAB) + form.smoothing / VOCAB
        z = jnp.sum(weights * jnp.log(jnp.sum(jnp.exp(logits), axis=-1)) ** 2)
        plain = -jnp.sum(weights * probabilities[jnp.arange(37), targets])
        return -jnp.sum(weights[:, None] * wanted * probabilities) + form.z_loss * z, (plain, z)

    def loss(hidden: Any, table: Any, bias: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        found = HEADS[kernel](hidden, table, bias, targets, weights, form)
        return found.total, (found.cross_entropy, found.z)

    results = [
        jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True))(hidden, table, bias) for f in (loss, formula)
    ]
    assert_close(*results)


@pytest.mark.parametrize("kernel", HEADS)
def test_what_is_only_reported_is_not_differentiated(kernel: str) -> None:
    hidden, table, targets, weights = example(16)
    for name in ("cross_entropy", "z"):
        gradient = jax.grad(lambda h, name=name: getattr(HEADS[kernel](h, table, None, targets, weights), name))(hidden)
        assert not np.asarray(gradient).any()


def sizes(jaxpr: Any) -> Iterator[int]:
    """Sizes of all values in a program, those of its loops and calls included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from sizes(inner)


@pytest.mark.parametrize(("kernel", "holds"), [("reference", True), ("chunked", False)])
def test_only_the_reference_holds_all_logits(kernel: str, holds: bool) -> None:
    tokens, vocab, embed = 320, 64, 4
    shapes = (
        jax.ShapeDtypeStruct((tokens, embed), jnp.float32),
        jax.ShapeDtypeStruct((vocab, embed), jnp.float32),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
        jax.ShapeDtypeStruct((tokens,), jnp.float32),
    )
    for program in (KERNELS[kernel], jax.value_and_grad(KERNELS[kernel], argnums=(0, 1))):
        largest = max(sizes(jax.make_jaxpr(program)(*shapes).jaxpr))
        assert (largest >= tokens * vocab) == holds
        assert holds or largest == max(tokens // vocabulary.CHUNKS * vocab, tokens * embed)


@pytest.mark.parametrize("tokens", [1, 16, 37])
def test_predictions_are_the_most_probable_ids(tokens: int) -> None:
    hidden, table, *_ = example(tokens)
    expected = np.argmax(np.asarray(hidden) @ np.asarray(table).T, axis=1)
    found = vocabulary.predictions(hidden, table)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == jnp.int32

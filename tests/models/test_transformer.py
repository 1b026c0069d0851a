"""What holds for every model: it makes what it declares, who sees whom, and no way of executing it changes a number."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from research import trees
from research.kernels import Pattern
from research.kernels.choice import REFERENCE
from research.models import Model
from tests import small
from tests.small import LENGTH, VARIANTS, VOCAB, assert_close, assert_same_bits

CAUSAL, BIDIRECTIONAL = Pattern(causal=True), Pattern(causal=False)
DROPPED = ("llama", "bert")  # compiled with dropout, at rate zero unless a test says otherwise

every_variant = pytest.mark.parametrize("variant", VARIANTS)

# All batches have LENGTH rows, so that all tests of a model share its programs.
IDS = np.random.default_rng(0).permutation(VOCAB)[: LENGTH * LENGTH].reshape(LENGTH, LENGTH).astype(np.int32)
PACKED = np.repeat(np.array([[1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0, 0]], np.int32), LENGTH, axis=0)
PLACES = np.repeat(np.array([[0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 0, 0]], np.int32), LENGTH, axis=0)


def model(variant: str, **changes: Any) -> Model:
    return small.model(variant, dropout=0.3 if variant in DROPPED else 0.0, **changes)


@functools.cache
def differentiated(made: Model) -> Any:
    """(hidden states, what is measured) of a causal pass, and the gradients of `sum(hidden * direction)`."""

    def run(params: Any, batch: Any, direction: jax.Array, key: jax.Array, rate: jax.Array) -> Any:
        def along(params: Any) -> Any:
            out = made.apply(params, batch, pattern=CAUSAL, key=key, dropout=rate)
            return jnp.sum(out.hidden * direction), out

        (_, out), gradients = jax.value_and_grad(along, has_aux=True)(params)
        return out, gradients

    return small.jit(run)


DIRECTION = np.cos(np.arange(LENGTH**2 * 16, dtype=np.float32)).reshape(LENGTH, LENGTH, 16)


def causal_pass(made: Model, batch: Any, direction: Any = DIRECTION, seed: int = 0, rate: float = 0.0) -> Any:
    return differentiated(made)(small.weights(made), batch, direction, jax.random.key(seed), jnp.asarray(rate))


@functools.partial(small.jit, static_argnums=(0, 1))
def forward(made: Model, pattern: Pattern, params: Any, batch: Any) -> jax.Array:
    return made.apply(params, batch, pattern=pattern).hidden


def hidden(variant: str, pattern: Pattern, batch: Any) -> np.ndarray:
    """Hidden states without dropout; the causal ones from the program that also gives gradients."""
    made = model(variant)
    if pattern.causal:
        return np.asarray(causal_pass(made, batch)[0].hidden)
    return np.asarray(forward(made, pattern, small.weights(made), batch))


@every_variant
def test_every_weight_below_the_head_is_used(variant: str) -> None:
    made = model(variant)
    _, gradients = causal_pass(made, small.inputs(IDS))
    # A bias of the keys adds the same to all logits of a query, which softmax does not see.
    free = {"head/table", "layers/attention/key_bias"}
    for path, gradient in trees.flatten(gradients).items():
        parts = gradient if path.startswith("layers/") else gradient[None]
        assert path in free or (np.abs(parts).reshape(len(parts), -1).max(axis=1) > 1e-4).all(), path


# --- the formula --------------------------------------------------------------------------------------------------


def normed(x: np.ndarray, weights: Any) -> np.ndarray:
    if "bias" in weights:
        x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6) * weights["scale"]
    return x + weights["bias"] if "bias" in weights else x


def turned(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Pairs of the two halves of each head as complex numbers, turned by angles that grow with the position."""
    half = x.shape[-1] // 2
    angles = positions[:, :, None, None] * 10_000.0 ** (-np.arange(half) / half)
    pairs = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def attended(x: np.ndarray, w: Any, of: Any, positions: np.ndarray, seen: np.ndarray) -> np.ndarray:
    query, key, value = (
        np.einsum("bse,ehd->bshd", x, w[name]) + w.get(f"{name}_bias", 0.0) for name in ("query", "key", "value")
    )
    if of.qk_norm:
        query, key = normed(query, {"scale": w["query_norm"]}), normed(key, {"scale": w["key_norm"]})
    if of.position == "rotary":
        query, key = turned(query, positions), turned(key, positions)
    key, value = (np.repeat(array, of.num_heads // of.kv_heads, axis=2) for array in (key, value))
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(np.where(seen[:, None], scores, -np.inf))
    mixed = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(axis=-1, keepdims=True), value)
    return np.einsum("bqhd,hde->bqe", mixed, w["out"]) + w.get("out_bias", 0.0)


def expanded(x: np.ndarray, w: Any, of: Any) -> np.ndarray:
    up = x @ w["up"] + w.get("up_bias", 0.0)
    if of.activation == "swiglu":
        gate = x @ w["gate"] + w.get("gate_bias", 0.0)
        inner = gate / (1 + np.exp(-gate)) * up
    else:  # Hendrycks & Gimpel 2016, the approximation by tanh
        inner = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
    return inner @ w["down"] + w.get("down_bias", 0.0)


@every_variant
@pytest.mark.parametrize("pattern", [CAUSAL, BIDIRECTIONAL], ids=["causal", "bidirectional"])
def test_a_model_is_its_formula(variant: str, pattern: Pattern) -> None:
    made = model(variant)
    of, params = made.settings, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), small.weights(made))
    seen = PACKED[:, :, None] == PACKED[:, None, :]
    seen &= np.tri(LENGTH, dtype=bool) | (not pattern.causal)
    x = params["embedding"]["tokens"][IDS]
    if of.position == "learned":
        x = x + params["embedding"]["positions"][PLACES]
    for layer in range(2):
        w = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["layers"])
        if of.norm_position == "pre":
            x = x + attended(normed(x, w["attention_norm"]), w["attention"], of, PLACES, seen)
            x = x + expanded(normed(x, w["mlp_norm"]), w["mlp"], of)
        else:
            x = normed(x + attended(x, w["attention"], of, PLACES, seen), w["attention_norm"])
            x = normed(x + expanded(x, w["mlp"], of), w["mlp_norm"])
    x = normed(x, params["final_norm"]) if of.norm_position == "pre" else x
    assert_close(hidden(variant, pattern, small.inputs(IDS, PACKED, PLACES)), x, 1e-5)


# --- who sees whom ------------------------------------------------------------------------------------------------


@every_variant
def test_no_gradient_flows_from_the_past_to_the_future(variant: str) -> None:
    """`seen[t, s]` is the size of d hidden[t] / d (embedding of the token at s): row t is asked about its place t."""
    direction = DIRECTION * np.eye(LENGTH, dtype=np.float32)[:, :, None]
    _, gradients = causal_pass(model(variant), small.inputs(IDS), direction)
    seen = np.abs(gradients["embedding"]["tokens"])[IDS].max(axis=-1)
    assert (seen[np.triu_indices(LENGTH, 1)] == 0.0).all()
    assert (seen[np.tril_indices(LENGTH)] > 1e-6).all()


@every_variant
def test_a_bidirectional_model_sees_everything(variant: str) -> None:
    same = np.repeat(IDS[:1], LENGTH, axis=0)
    changed = np.where(np.eye(LENGTH, dtype=bool), (same + 1) % VOCAB, same)
    before, after = (hidden(variant, BIDIRECTIONAL, small.inputs(ids)) for ids in (same, changed))
    assert (np.abs(after - before).max(axis=-1) > 1e-6).all()


@every_variant
@pytest.mark.parametrize("pattern", [CAUSAL, BIDIRECTIONAL], ids=["causal", "bidirectional"])
def test_packed_documents_are_isolated(variant: str, pattern: Pattern) -> None:
    same = np.repeat(IDS[:1], LENGTH, axis=0)
    own = np.arange(LENGTH)[:, None] % 4 == PACKED  # row r changes the document r modulo 4, padding included
    before = hidden(variant, pattern, small.inputs(same, PACKED, PLACES))
    after = hidden(variant, pattern, small.inputs(np.where(own, (same + 1) % VOCAB, same), PACKED, PLACES))
    assert np.isfinite(before).all()
    np.testing.assert_array_equal(after[~own], before[~own])
    assert (np.abs(after - before)[own].max(axis=-1) > 1e-4).all()


@every_variant
@pytest.mark.parametrize("pattern", [CAUSAL, BIDIRECTIONAL], ids=["causal", "bidirectional"])
def test_a_packed_document_is_the_document_alone(variant: str, pattern: Pattern) -> None:
    packed = hidden(variant, pattern, small.inputs(IDS, PACKED, PLACES))
    spans = [(0, 4), (4, 7), (7, 10)]
    alone, segment_ids = np.zeros_like(IDS), np.zeros_like(IDS)
    for row, (start, end) in enumerate(spans):
        alone[row, : end - start], segment_ids[row, : end - start] = IDS[row, start:end], 1
    found = hidden(variant, pattern, small.inputs(alone, segment_ids))
    for row, (start, end) in enumerate(spans):
        assert_close(found[row, : end - start], packed[row, start:end])


@every_variant
def test_only_a_model_without_positions_does_not_know_the_order(variant: str) -> None:
    ahead = hidden(variant, BIDIRECTIONAL, small.inputs(IDS))
    back = hidden(variant, BIDIRECTIONAL, small.inputs(IDS[:, ::-1]))[:, ::-1]
    if VARIANTS[variant].get("position") == "none":
        assert_close(back, ahead)
    else:
        assert np.abs(back - ahead).max() > 1e-2


# --- ways of execution --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("llama", {"scan": 0, "kernels": REFERENCE}),
        ("bert", {"scan": 0, "kernels": REFERENCE}),
        ("llama", {"scan": 2}),
        ("llama", {"remat": "dots"}),
        ("llama", {"remat": "most"}),
        ("llama", {"remat": "narrow"}),
        ("llama", {"remat": "heads"}),
        ("llama", {"remat": "full"}),
        ("llama", {"remat": "full", "scan": 0}),
        ("llama", {"remat": "offload"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_execution_changes_no_number_under_dropout(variant: str, changes: dict[str, Any]) -> None:
    made = model(variant)
    batch = small.inputs(IDS, PACKED, PLACES)
    expected = causal_pass(made, batch, seed=5, rate=0.3)
    assert np.abs(expected[0].hidden - causal_pass(made, batch)[0].hidden).max() > 0.1
    assert_close(causal_pass(dataclasses.replace(made, **changes), batch, seed=5, rate=0.3), expected)


def equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize(
    ("remat", "again"), [("none", 0), ("dots", 1), ("most", 2), ("narrow", 3), ("heads", 5), ("full", 8)]
)
def test_the_backward_pass_computes_again_what_it_says(remat: str, again: int) -> None:
    """Each layer has nine products (seven projections, two of attention), the last of which no gradient needs.

    The reference names nothing of its own: its logits are always computed again.
    """
    made = small.model("llama", scan=0, remat=remat, kernels=REFERENCE)
    batch = small.inputs(IDS)
    gradient = jax.grad(lambda params: jnp.sum(made.apply(params, batch, pattern=CAUSAL).hidden))
    program = jax.make_jaxpr(gradient)(small.weights(made))
    products = [equation for equation in equations(program.jaxpr) if equation.primitive.name == "dot_general"]
    assert len(products) == 2 * (3 * 9 + again)


@pytest.mark.parametrize("variant", ["llama", "gpt"])
def test_bfloat16_is_close_to_float32_and_stays_inside(variant: str) -> None:
    half, batch = model(variant, compute_dtype="bfloat16"), small.inputs(IDS)
    exact, rounded = hidden(variant, CAUSAL, batch), forward(half, CAUSAL, small.weights(half), batch)
    assert rounded.dtype == jnp.bfloat16
    error = np.abs(np.asarray(rounded, np.float32) - exact)
    assert 0 < error.mean() < 0.05 * np.abs(exact).mean()
    logits = jax.eval_shape(half.unembed, small.weights(half), rounded)
    assert logits.dtype == jnp.float32 and logits.shape == (LENGTH, LENGTH, VOCAB)


# --- head ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["llama", "gpt"])
def test_loss_and_predictions_are_those_of_the_logits(variant: str) -> None:
    made = model(variant)
    params, out = small.weights(made), jnp.asarray(hidden(variant, CAUSAL, small.inputs(IDS))[:2])
    logits = np.asarray(made.unembed(params, out), np.float64).reshape(-1, VOCAB)
    table = params["embedding"]["tokens"] if made.settings.tied_embeddings else params["head"]["table"]
    assert_close(logits, np.asarray(out, np.float64).reshape(-1, 16) @ np.asarray(table, np.float64).T)
    flat, targets = out.reshape(-1, 16), IDS[2:4].reshape(-1)
    weights = np.linspace(0, 1, len(targets)).astype(np.float32)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(targets)), targets]
    found = small.jit(made.vocabulary_loss)(params, flat, jnp.asarray(targets), jnp.asarray(weights))
    assert_close(found.total, np.float64(weights @ losses))
    np.testing.assert_array_equal(made.predictions(params, flat), logits.argmax(axis=1))


# --- decoding -----------------------------------------------------------------------------------------------------


@functools.partial(small.jit, static_argnums=0)
def decode(made: Model, params: Any, cache: Any, batch: Any) -> Any:
    return made.decode(params, cache, batch, pattern=CAUSAL)


@pytest.mark.parametrize(("variant", "scan"), [("llama", 1), ("llama", 0), ("gpt", 1), ("post-rms", 1)])
def test_decoding_with_a_cache_is_the_full_pass(variant: str, scan: int) -> None:
    """Two prompts of 5 and 3 tokens, the shorter padded on the left, then four tokens one by one."""
    made = model(variant, scan=scan)
    params, ids, full = small.weights(made), IDS[:2], hidden(variant, CAUSAL, small.inputs(IDS))
    lengths = np.array([5, 3])
    places = np.arange(5)[None] - (5 - lengths)[:, None]
    prompt = np.where(places >= 0, np.take_along_axis(ids, np.maximum(places, 0), axis=1), 0)
    batch = small.inputs(prompt, places >= 0, np.maximum(places, 0))
    out, cache = decode(made, params, made.init_cache(2, 10), batch)
    assert int(cache.length) == 5
    for row in range(2):
        assert_close(out[row, 5 - lengths[row] :], full[row, : lengths[row]])
    for _ in range(4):
        next_ids = np.take_along_axis(ids, lengths[:, None], axis=1)
        out, cache = decode(made, params, cache, small.inputs(next_ids, positions=lengths[:, None]))
        for row in range(2):
            assert_close(out[row, 0], full[row, lengths[row]])
        lengths += 1
    assert int(cache.length) == 9


# --- dropout ------------------------------------------------------------------------------------------------------


def test_dropout_is_a_function_of_its_key_and_its_rate() -> None:
    made, batch = model("llama"), small.inputs(IDS)
    first = causal_pass(made, batch, seed=1, rate=0.5)[0].hidden
    assert_same_bits(causal_pass(made, batch, seed=1, rate=0.5)[0].hidden, first)
    for seed, rate in ((2, 0.5), (1, 0.4), (1, 0.0)):
        assert np.abs(causal_pass(made, batch, seed=seed, rate=rate)[0].hidden - first).max() > 0.1
    assert_same_bits(causal_pass(made, batch, seed=1)[0].hidden, causal_pass(made, batch, seed=2)[0].hidden)


@pytest.mark.parametrize(("rate", "with_key", "drops"), [(0.3, True, True), (0.3, False, False), (0.0, True, False)])
def test_without_a_key_or_a_rate_nothing_is_drawn(rate: float, with_key: bool, drops: bool) -> None:
    made = small.model("llama", dropout=rate)
    program = jax.make_jaxpr(
        lambda params: (
            made.apply(
                params,
                small.inputs(IDS),
                pattern=CAUSAL,
                key=jax.random.key(0) if with_key else None,
                dropout=jnp.asarray(0.5),
            ).hidden
        )
    )(small.weights(made))
    assert any(e.primitive.name == "random_bits" for e in equations(program.jaxpr)) == drops


@functools.partial(small.jit, static_argnums=0)
def dropped(made: Model, params: Any) -> Any:
    return made.apply(params, small.inputs(IDS), pattern=CAUSAL, key=jax.random.key(1), dropout=jnp.asarray(0.5))


def test_dropout_of_a_layer_depends_on_nothing_but_the_key_and_its_number() -> None:
    deep, shallow = (small.model(num_layers=layers, dropout=0.5) for layers in (4, 2))
    params = small.weights(deep)
    first = {**params, "layers": jax.tree.map(lambda leaf: leaf[:2], params["layers"])}
    far, near = (dropped(made, own).aux["attention_logit_max"] for made, own in ((deep, params), (shallow, first)))
    np.testing.assert_allclose(near, far[:2], rtol=1e-6)


def test_equal_layers_drop_different_activations() -> None:
    """Two layers that add nothing but ones: equal masks would give each place none or both, never one."""
    made = small.model("gpt", dropout=0.5)
    zeros = jax.tree.map(jnp.zeros_like, small.weights(made))
    layers = {**zeros["layers"], "attention": {**zeros["layers"]["attention"], "out_bias": jnp.ones((2, 16))}}
    final = {"scale": jnp.ones(16), "bias": jnp.zeros(16)}
    values = np.asarray(dropped(made, {**zeros, "layers": layers, "final_norm": final}).hidden).reshape(-1, 16)
    levels = [np.unique(np.round(row, 3), return_inverse=True)[1] for row in values]
    shares = np.bincount(np.concatenate([row for row in levels if row.max() == 2])) / values.size
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=0.05)

"""What holds for every model: what it declares it makes, who sees whom, and that no way of executing it changes numbers."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import trees
from research.kernels import Pattern
from research.kernels.choice import REFERENCE
from research.models import Transformer
from research.models.transformer import Block
from tests import small
from tests.small import LENGTH, VARIANTS, VOCAB, assert_close, assert_same_bits

CAUSAL, BIDIRECTIONAL = Pattern(causal=True), Pattern(causal=False)
PATTERNS = {"causal": CAUSAL, "bidirectional": BIDIRECTIONAL}

every_variant = pytest.mark.parametrize("variant", VARIANTS)


@functools.partial(jax.jit, static_argnums=(0, 1))
def hidden(made: Transformer, pattern: Pattern, params: Any, batch: Any) -> jax.Array:
    return made.apply(params, batch, pattern=pattern).hidden


def tokens(rows: int = 1, length: int = LENGTH, seed: int = 0) -> np.ndarray:
    """Random ids, no id twice in a row."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(VOCAB)[:length] for _ in range(rows)]).astype(np.int32)


# --- weights ------------------------------------------------------------------------------------------------------


@every_variant
def test_declared_weights_are_those_that_init_and_the_block_make(variant: str) -> None:
    made = small.model(variant, num_layers=3)
    declared = {path: parameter.shape for path, parameter in made.parameters().items()}
    shapes = trees.flatten(jax.eval_shape(made.init, jax.random.key(0)))
    assert {path: leaf.shape for path, leaf in shapes.items()} == declared
    assert {leaf.dtype for leaf in shapes.values()} == {jnp.dtype(jnp.float32)}
    assert all(parameter.path == path for path, parameter in made.parameters().items())

    block = Block(made.settings, made.kernels, made.constrain)
    batch = small.inputs(tokens())
    x = jnp.zeros((1, LENGTH, made.settings.embed_dim))
    own = jax.eval_shape(
        lambda: block.init(jax.random.key(0), x, batch["segment_ids"], batch["positions"], CAUSAL, None, None)
    )
    of_layers = {path: shape[1:] for path, shape in declared.items() if path.startswith("layers/")}
    assert {f"layers/{path}": leaf.shape for path, leaf in trees.flatten(own["params"]).items()} == of_layers


@every_variant
def test_every_weight_is_used(variant: str) -> None:
    made = small.model(variant)
    batch = small.inputs(tokens(2))

    def loss(params: Any) -> jax.Array:
        out = made.apply(params, batch, pattern=CAUSAL).hidden
        return made.vocabulary_loss(params, out.reshape(-1, 16), batch["tokens"].reshape(-1), jnp.ones(2 * LENGTH))

    gradients = trees.flatten(jax.jit(jax.grad(loss))(small.weights(made)))
    # A bias of the keys adds the same to all logits of a query, which softmax does not see; rotation breaks the tie.
    free = {"layers/attention/key_bias"} if made.settings.position != "rotary" else set()
    for path, gradient in gradients.items():
        by_layer = np.abs(gradient).reshape(2, -1).max(axis=1) if path.startswith("layers/") else np.abs(gradient).max()
        assert path in free or (by_layer > 1e-6).all(), path


def test_init_is_a_function_of_the_seed_alone() -> None:
    made = small.model("gpt")
    init = jax.jit(made.init)
    first = init(jax.random.key(7))
    assert_same_bits(init(jax.random.key(7)), first)
    assert_same_bits(jax.jit(small.model("gpt", scan=False, remat="full", kernels=REFERENCE).init)(jax.random.key(7)), first)
    other = trees.flatten(init(jax.random.key(8)))
    for path, leaf in trees.flatten(first).items():
        assert (leaf == other[path]).all() == (made.parameters()[path].std == 0.0), path


def test_initial_weights_have_the_declared_mean_and_deviation_and_no_two_are_alike() -> None:
    made = small.model("bert", num_layers=3, embed_dim=64, mlp_dim=256)
    seen: list[np.ndarray] = []
    for path, leaf in trees.flatten(jax.jit(made.init)(jax.random.key(0))).items():
        parameter = made.parameters()[path]
        values = np.asarray(leaf, np.float64).reshape(leaf.shape[0], -1) if path.startswith("layers/") else leaf[None]
        for layer in values:
            if parameter.std == 0.0:
                assert (layer == parameter.mean).all(), path
                continue
            error = parameter.std / np.sqrt(layer.size)
            assert abs(np.mean(layer) - parameter.mean) < 5 * error, path
            assert abs(np.std(layer) - parameter.std) < 5 * error, path
            normal = np.ravel(layer)[:128] / parameter.std
            assert all(np.abs(normal - other).max() > 0.5 for other in seen), path
            seen.append(normal)


def test_a_layers_initial_weights_do_not_depend_on_how_many_there_are() -> None:
    shallow, deep = small.model("bert", num_layers=2), small.model("bert", num_layers=5)
    few, many = (trees.flatten(jax.jit(made.init)(jax.random.key(3))) for made in (shallow, deep))
    scaled = []
    for path, leaf in few.items():
        before, after = shallow.parameters()[path].std, deep.parameters()[path].std
        own = many[path][:2] if path.startswith("layers/") else many[path]
        if before == after:
            assert_same_bits(own, leaf)
        else:
            scaled.append(path)
            np.testing.assert_allclose(before / after, np.sqrt(5 / 2), rtol=1e-12)
            np.testing.assert_allclose(own / after, leaf / before, rtol=1e-6)
    assert scaled == ["layers/attention/out", "layers/mlp/down"]


# --- who sees whom ------------------------------------------------------------------------------------------------


@functools.cache
def influence(variant: str, name: str) -> np.ndarray:
    """`[t, s]`: the size of d hidden[t] / d (embedding of the token at s)."""
    made = small.model(variant)
    params, batch = small.weights(made), small.inputs(tokens())

    @jax.jit
    def gradients(params: Any) -> jax.Array:
        def run(table: jax.Array) -> jax.Array:
            changed = {**params, "embedding": {**params["embedding"], "tokens": table}}
            return made.apply(changed, batch, pattern=PATTERNS[name]).hidden[0]

        out, backward = jax.vjp(run, params["embedding"]["tokens"])
        direction = jnp.cos(jnp.arange(out.shape[1], dtype=jnp.float32))
        return jax.vmap(lambda place: backward(place[:, None] * direction[None, :])[0])(jnp.eye(LENGTH))

    return np.abs(np.asarray(gradients(params))).max(axis=-1)[:, tokens()[0]]


@every_variant
def test_no_gradient_flows_from_the_past_to_the_future(variant: str) -> None:
    seen = influence(variant, "causal")
    assert (seen[np.triu_indices(LENGTH, 1)] == 0.0).all()
    assert (seen[np.tril_indices(LENGTH)] > 1e-7).all()


@every_variant
def test_a_bidirectional_model_sees_everything(variant: str) -> None:
    assert (influence(variant, "bidirectional") > 1e-7).all()


PACKED = np.array([[1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0, 0]], np.int32)
PLACES = np.array([[0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 0, 0]], np.int32)


@every_variant
@pytest.mark.parametrize("name", PATTERNS)
def test_packed_documents_are_isolated(variant: str, name: str) -> None:
    made = small.model(variant)
    run = functools.partial(hidden, made, PATTERNS[name], small.weights(made))
    ids = tokens()
    before = np.asarray(run(small.inputs(ids, PACKED, PLACES)))
    assert np.isfinite(before).all()
    for segment in (1, 2, 3, 0):
        changed = np.where(segment == PACKED, (ids + 1) % VOCAB, ids)
        after = np.asarray(run(small.inputs(changed, PACKED, PLACES)))
        inside = (segment == PACKED)[0]
        np.testing.assert_array_equal(after[0, ~inside], before[0, ~inside])
        assert (np.abs(after - before)[0, inside].max(axis=-1) > 1e-4).all()


@every_variant
@pytest.mark.parametrize("name", PATTERNS)
def test_a_packed_document_is_the_document_alone(variant: str, name: str) -> None:
    made = small.model(variant)
    run = functools.partial(hidden, made, PATTERNS[name], small.weights(made))
    ids = tokens()
    packed = run(small.inputs(ids, PACKED, PLACES))
    for start, end in ((0, 4), (4, 7), (7, 10)):
        alone = np.zeros((1, LENGTH), np.int32)
        alone[0, : end - start] = ids[0, start:end]
        padding = (np.arange(LENGTH)[None] < end - start).astype(np.int32)
        found = run(small.inputs(alone, padding))
        assert_close(found[0, : end - start], packed[0, start:end])


@every_variant
def test_only_a_model_without_positions_does_not_know_the_order(variant: str) -> None:
    made = small.model(variant)
    run = functools.partial(hidden, made, BIDIRECTIONAL, small.weights(made))
    ids = tokens()
    difference = np.abs(run(small.inputs(ids[:, ::-1]))[:, ::-1] - run(small.inputs(ids))).max()
    assert (difference < 1e-5) == (made.settings.position == "none"), difference


# --- ways of execution --------------------------------------------------------------------------------------------


def loss_and_gradients(made: Transformer, params: Any) -> Any:
    """Loss, hidden states, what is measured, and gradients of three packed rows under dropout."""
    segment_ids, positions = np.repeat(PACKED, 3, axis=0), np.repeat(PLACES, 3, axis=0)
    batch = small.inputs(tokens(3), segment_ids, positions)
    targets, weights = jnp.asarray(tokens(3, seed=1)).reshape(-1), jnp.asarray((segment_ids > 0).reshape(-1), jnp.float32)

    @jax.jit
    def run(params: Any, rate: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            out = made.apply(params, batch, pattern=CAUSAL, key=jax.random.key(5), dropout=rate)
            flat = out.hidden.reshape(-1, out.hidden.shape[-1])
            return made.vocabulary_loss(params, flat, targets, weights) / jnp.sum(weights), out

        return jax.value_and_grad(loss, has_aux=True)(params)

    return run(params, jnp.asarray(0.3))


@functools.cache
def expected(variant: str) -> Any:
    made = small.model(variant, dropout=0.3)
    return loss_and_gradients(made, small.weights(made))


@every_variant
def test_unrolled_layers_and_reference_kernels_change_no_number(variant: str) -> None:
    made = small.model(variant, dropout=0.3)
    other = dataclasses.replace(made, scan=False, kernels=REFERENCE)
    assert_close(loss_and_gradients(other, small.weights(made)), expected(variant))


@pytest.mark.parametrize("variant", ["llama", "bert"])
@pytest.mark.parametrize(("scan", "remat"), [(True, "dots"), (True, "full"), (False, "full")])
def test_computing_again_in_the_backward_pass_changes_no_number(variant: str, scan: bool, remat: str) -> None:
    made = small.model(variant, dropout=0.3)
    other = dataclasses.replace(made, scan=scan, remat=remat)
    assert_close(loss_and_gradients(other, small.weights(made)), expected(variant))


@pytest.mark.parametrize(("remat", "products"), [("none", 0), ("dots", 0), ("full", 1)])
def test_remat_computes_again_what_it_says(remat: str, products: int) -> None:
    """Products that the backward pass makes a second time: of seven projections and two of attention, in each layer."""

    def count(jaxpr: Any) -> int:
        inner = [leaf for e in jaxpr.eqns for leaf in jax.tree.leaves(e.params, is_leaf=lambda v: hasattr(v, "eqns"))]
        bodies = [getattr(leaf, "jaxpr", leaf) for leaf in inner if hasattr(leaf, "eqns")]
        return sum(e.primitive.name == "dot_general" for e in jaxpr.eqns) + sum(map(count, bodies))

    made = small.model("llama", scan=False, remat=remat, kernels=REFERENCE)
    batch = small.inputs(tokens())
    loss = lambda params: jnp.sum(made.apply(params, batch, pattern=CAUSAL).hidden)  # noqa: E731
    program = jax.make_jaxpr(jax.grad(loss))(jax.eval_shape(made.init, jax.random.key(0)))
    assert count(program.jaxpr) == 2 * 9 * (3 + products)


@every_variant
def test_bfloat16_is_close_to_float32_and_stays_inside(variant: str) -> None:
    made = small.model(variant)
    half = small.model(variant, compute_dtype="bfloat16")
    params, batch = small.weights(made), small.inputs(tokens(2))
    exact, rounded = (hidden(one, CAUSAL, params, batch) for one in (made, half))
    assert (exact.dtype, rounded.dtype) == (jnp.float32, jnp.bfloat16)
    error = np.abs(np.asarray(rounded, np.float32) - exact)
    assert 0 < error.mean() < 0.02 * np.abs(exact).mean()
    logits = jax.eval_shape(half.unembed, params, rounded)
    assert logits.dtype == jnp.float32 and logits.shape == (2, LENGTH, VOCAB)


# --- head ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["llama", "gpt"])
def test_loss_and_predictions_are_those_of_the_logits(variant: str) -> None:
    made = small.model(variant)
    params = small.weights(made)
    out = hidden(made, CAUSAL, params, small.inputs(tokens(2)))
    logits = np.asarray(made.unembed(params, out), np.float64).reshape(-1, VOCAB)
    table = params["embedding"]["tokens"] if made.settings.tied_embeddings else params["head"]["table"]
    assert_close(logits, np.asarray(out, np.float64).reshape(-1, 16) @ np.asarray(table, np.float64).T)
    flat, targets = out.reshape(-1, 16), tokens(2, seed=1).reshape(-1)
    weights = np.linspace(0, 1, len(targets)).astype(np.float32)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(targets)), targets]
    found = made.vocabulary_loss(params, flat, jnp.asarray(targets), jnp.asarray(weights))
    assert_close(found, np.float64(weights @ losses))
    np.testing.assert_array_equal(made.predictions(params, flat), logits.argmax(axis=1))


# --- decoding -----------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def decode(made: Transformer, params: Any, cache: Any, batch: Any) -> Any:
    return made.decode(params, cache, batch, pattern=CAUSAL)


@every_variant
@pytest.mark.parametrize("scan", [True, False])
def test_decoding_with_a_cache_is_the_full_pass(variant: str, scan: bool) -> None:
    """Two prompts of 5 and 3 tokens, the shorter padded on the left, then four tokens one by one."""
    made = small.model(variant, scan=scan)
    params, ids = small.weights(made), tokens(2)
    lengths = np.array([5, 3])
    full = [hidden(made, CAUSAL, params, small.inputs(ids[row : row + 1, :LENGTH])) for row in range(2)]

    places = np.arange(5)[None] - (5 - lengths)[:, None]
    prompt = np.where(places >= 0, np.take_along_axis(ids, np.maximum(places, 0), axis=1), 0)
    batch = small.inputs(prompt, places >= 0, np.maximum(places, 0))
    out, cache = decode(made, params, made.init_cache(2, 10), batch)
    assert int(cache.length) == 5
    for row in range(2):
        assert_close(out[row, 5 - lengths[row] :], full[row][0, : lengths[row]])
    for _ in range(4):
        next_ids = np.take_along_axis(ids, lengths[:, None], axis=1)
        out, cache = decode(made, params, cache, small.inputs(next_ids, positions=lengths[:, None]))
        for row in range(2):
            assert_close(out[row, 0], full[row][0, lengths[row]])
        lengths += 1
    assert int(cache.length) == 9


# --- dropout ------------------------------------------------------------------------------------------------------


def dropped(made: Transformer, key: Any, rate: float | None, ids: np.ndarray | None = None) -> Any:
    run = jax.jit(lambda p, b, k, r: made.apply(p, b, pattern=CAUSAL, key=k, dropout=r))
    traced = None if rate is None else jnp.asarray(rate)
    return run(small.weights(made), small.inputs(tokens(2) if ids is None else ids), key, traced)


def test_dropout_is_a_function_of_its_key_and_off_without_one() -> None:
    made = small.model(dropout=0.1)
    plain = dropped(made, None, 0.5).hidden
    first = dropped(made, jax.random.key(1), 0.5).hidden
    assert_same_bits(dropped(made, jax.random.key(1), 0.5).hidden, first)
    assert np.abs(dropped(made, jax.random.key(2), 0.5).hidden - first).max() > 0.1
    assert np.abs(first - plain).max() > 0.1
    assert_close(dropped(made, jax.random.key(1), 0.0).hidden, plain)
    assert_same_bits(dropped(small.model(dropout=0.0), jax.random.key(1), 0.5).hidden, dropped(small.model(), None, None).hidden)


def test_dropout_of_a_layer_depends_on_nothing_but_the_key_and_its_number() -> None:
    deep = small.model(num_layers=4, dropout=0.5)
    params = small.weights(deep)
    shallow = small.model(num_layers=2, dropout=0.5)
    first = {**params, "layers": jax.tree.map(lambda leaf: leaf[:2], params["layers"])}
    key, rate, batch = jax.random.key(1), jnp.asarray(0.5), small.inputs(tokens(2))
    far = deep.apply(params, batch, pattern=CAUSAL, key=key, dropout=rate).aux["attention_logit_max"]
    near = shallow.apply(first, batch, pattern=CAUSAL, key=key, dropout=rate).aux["attention_logit_max"]
    np.testing.assert_allclose(near, far[:2], rtol=1e-6)


def test_equal_layers_drop_different_activations() -> None:
    """With equal layers that add equal branches, equal masks would add equal zeros."""
    made = small.model("gpt", dropout=0.5, norm_epsilon=1e6)  # norms give nearly zero: branches are their biases
    params = small.weights(made)
    params = {**params, "layers": jax.tree.map(lambda leaf: jnp.stack([leaf[0]] * 2), params["layers"])}
    params = {**params, "embedding": jax.tree.map(jnp.zeros_like, params["embedding"])}
    bias = {name: jnp.zeros_like(leaf) for name, leaf in params["layers"]["mlp"].items()}
    ones = jnp.ones_like(params["layers"]["attention"]["out_bias"])
    attention = {**jax.tree.map(jnp.zeros_like, params["layers"]["attention"]), "out_bias": ones}
    layers = {**params["layers"], "mlp": bias, "attention": attention}
    final = {"scale": jnp.ones(16), "bias": jnp.zeros(16)}
    params = {**params, "layers": layers, "final_norm": final}
    run = lambda scan: dataclasses.replace(made, scan=scan).apply(  # noqa: E731
        params, small.inputs(tokens(2)), pattern=CAUSAL, key=jax.random.key(0), dropout=jnp.asarray(0.5)
    )
    for scan in (True, False):
        values = np.asarray(run(scan).hidden)
        steps = np.round((values - values.min()) / np.ptp(values) * 2)
        counts = np.bincount(steps.astype(int).ravel()) / steps.size  # kept by none, by one, by both
        np.testing.assert_allclose(counts, [0.25, 0.5, 0.25], atol=0.1)

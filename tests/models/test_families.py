"""What holds for every family of models, whatever it is made of; parity with the originals is in tests/interop."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import trees
from research.errors import UserError
from research.kernels import Pattern
from research.kernels.choice import CPU, REFERENCE
from research.models import EncoderDecoder, Model
from research.models.experts import Experts
from tests import small
from tests.small import LENGTH, VOCAB, assert_close, assert_one_sentence

CAUSAL, BIDIRECTIONAL, PREFIX = Pattern(causal=True), Pattern(causal=False), Pattern(causal=True, prefix=True)
# Between them these have every choice; the others differ from one of them in numbers, which parity tests reach.
CHOSEN = ("gpt2", "gemma2", "mixtral", "bert", "modernbert", "t5", "transformer", "lstm", "mlp")
VARIANTS: dict[str, dict[str, Any]] = {name: {} for name in CHOSEN} | {
    "alibi": {"position": "alibi", "num_heads": 4},
    "relative": {"position": "relative", "num_kv_heads": 2},
    "sinusoidal": {"position": "sinusoidal", "norm_position": "both", "norm": "layernorm"},
    "capacity": {"expert_capacity": 0.5},
}
BASE = {"alibi": "llama", "relative": "gpt2", "sinusoidal": "llama", "capacity": "mixtral"}
# A token can lose its place at an expert to another of its row.
SHARED_PLACES = {"capacity"}
every = pytest.mark.parametrize("name", VARIANTS)
lawful = pytest.mark.parametrize("name", [name for name in VARIANTS if name not in SHARED_PLACES])

IDS = np.random.default_rng(0).permutation(VOCAB)[: LENGTH * LENGTH].reshape(LENGTH, LENGTH).astype(np.int32)
SEGMENTS = np.repeat(np.array([[1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 0, 0]], np.int32), LENGTH, axis=0)
PLACES = np.repeat(np.array([[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 0, 0]], np.int32), LENGTH, axis=0)


@functools.cache
def model(name: str, **changes: Any) -> Model:
    return small.model(BASE.get(name, name), **(VARIANTS[name] | changes))


def inputs(ids: Any, segments: Any = None, places: Any = None, encoder_ids: Any = IDS) -> dict[str, jax.Array]:
    """The encoder, where there is one, reads other tokens in the same documents."""
    own = small.inputs(ids, segments, places)
    read = small.inputs(np.asarray(encoder_ids)[: len(ids), ::-1], segments, places)
    return own | {f"encoder_{name}": array for name, array in read.items()}


@functools.partial(small.jit, static_argnums=(0, 1))
def forward(made: Model, pattern: Pattern, params: Any, batch: Any) -> Any:
    return made.apply(params, batch, pattern=pattern)


def hidden(made: Model, pattern: Pattern, batch: Any) -> np.ndarray:
    return np.asarray(forward(made, pattern, small.weights(made), batch).hidden)


def pattern_of(name: str) -> Pattern:
    """The pattern that is asked about isolation: both sides, where the model can see them."""
    return CAUSAL if name == "lstm" else BIDIRECTIONAL


# --- who sees whom ----------------------------------------------------------------------------------------------------


@lawful
def test_no_gradient_flows_from_the_past_to_the_future(name: str) -> None:
    """`seen[t, s]` is the size of d hidden[t] / d (embedding of the token at s): row t is asked about its place t."""
    made = model(name)
    direction = np.cos(np.arange(LENGTH**2 * 16, dtype=np.float32)).reshape(LENGTH, LENGTH, 16)
    direction *= np.eye(LENGTH, dtype=np.float32)[:, :, None]
    batch = inputs(IDS, encoder_ids=np.full_like(IDS, VOCAB - 1))

    @small.jit
    def gradient(params: Any) -> Any:
        return jax.grad(lambda p: jnp.sum(made.apply(p, batch, pattern=CAUSAL).hidden * direction))(params)

    table = np.abs(gradient(small.weights(made))["embedding"]["tokens"])
    seen = np.where(IDS == VOCAB - 1, 0.0, table[IDS].max(axis=-1))
    reach = 3 * made.settings.num_layers if set(made.settings.attention_period) == {"l"} else LENGTH
    distance = np.arange(LENGTH)[:, None] - np.arange(LENGTH)
    assert (seen[distance < 0] == 0.0).all()
    assert (seen[(distance >= 0) & (distance <= reach) & (IDS != VOCAB - 1)] > 1e-7).all()
    assert (seen[distance > reach] == 0.0).all()


@lawful
def test_packed_documents_are_isolated(name: str) -> None:
    made, same = model(name), np.repeat(IDS[:1], LENGTH, axis=0)
    own = np.arange(LENGTH)[:, None] % 4 == SEGMENTS  # row r changes document r modulo 4, padding included
    changed = np.where(own, (same + 1) % VOCAB, same)
    before = hidden(made, pattern_of(name), inputs(same, SEGMENTS, PLACES, same[:, ::-1]))
    after = hidden(made, pattern_of(name), inputs(changed, SEGMENTS, PLACES, changed[:, ::-1]))
    assert np.isfinite(before).all()
    np.testing.assert_array_equal(after[~own], before[~own])
    assert (np.abs(after - before)[own].max(axis=-1) > 1e-5).all()


@lawful
def test_a_packed_document_is_the_document_alone(name: str) -> None:
    made = model(name)
    packed = hidden(made, pattern_of(name), inputs(IDS, SEGMENTS, PLACES, IDS[:, ::-1]))
    alone, segments = np.zeros_like(IDS), np.zeros_like(IDS)
    spans = [(0, 5), (5, 9), (9, 10)]
    for row, (start, end) in enumerate(spans):
        alone[row, : end - start], segments[row, : end - start] = IDS[row, start:end], 1
    found = hidden(made, pattern_of(name), inputs(alone, segments, None, alone[:, ::-1]))
    for row, (start, end) in enumerate(spans):
        assert_close(found[row, : end - start], packed[row, start:end])


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in {"lstm", "relative"} | SHARED_PLACES])
def test_a_prefix_pattern_is_causal_without_flags_and_bidirectional_with_all(name: str) -> None:
    made = model(name)
    if isinstance(made, EncoderDecoder):
        pytest.skip("the decoder of an encoder-decoder has no prefix")
    batch = inputs(IDS, SEGMENTS, PLACES)
    for flag, pattern in ((0, CAUSAL), (1, BIDIRECTIONAL)):
        flagged = batch | {"prefix": jnp.full(IDS.shape, flag, jnp.int32)}
        assert_close(hidden(made, PREFIX, flagged), hidden(made, pattern, batch))


def test_an_encoder_reaches_every_position_of_its_document() -> None:
    made, same = model("t5"), np.repeat(IDS[:1], LENGTH, axis=0)
    changed = np.where(np.eye(LENGTH, dtype=bool), (same + 1) % VOCAB, same)
    before, after = (hidden(made, CAUSAL, inputs(same, encoder_ids=read)) for read in (same, changed))
    assert (np.abs(after - before).max(axis=-1) > 1e-6).all()


def test_a_recurrent_model_refuses_to_look_ahead() -> None:
    with pytest.raises(UserError) as caught:
        hidden(model("lstm"), BIDIRECTIONAL, inputs(IDS))
    assert_one_sentence(str(caught.value), "model.architecture=lstm", "objective.name")


# --- ways of execution ------------------------------------------------------------------------------------------------


@every
def test_execution_changes_no_number(name: str) -> None:
    batch = inputs(IDS, SEGMENTS, PLACES)
    expected = forward(model(name, kernels=REFERENCE), CAUSAL, small.weights(model(name)), batch)
    for changes in ({"scan": False, "kernels": CPU}, {"remat": "full", "kernels": CPU}):
        found = forward(dataclasses.replace(model(name), **changes), CAUSAL, small.weights(model(name)), batch)
        assert_close(found, expected)


@functools.partial(small.jit, static_argnums=0)
def decode(made: Model, params: Any, cache: Any, batch: Any) -> Any:
    return made.decode(params, cache, batch, pattern=CAUSAL)


@lawful
def test_decoding_with_a_cache_is_the_full_pass(name: str) -> None:
    """Two documents, the second padded on the left: a prompt, one token, and the rest at once."""
    made, length = model(name), 10
    params, full = small.weights(made), hidden(made, CAUSAL, inputs(IDS))
    ids, shift = IDS[:2], np.array([0, 2])
    places = np.arange(length)[None] - shift[:, None]
    own = np.where(places >= 0, np.take_along_axis(ids, np.maximum(places, 0), axis=1), 0)
    batch = inputs(own, places >= 0, np.maximum(places, 0))
    cache = made.init_cache(2, length)
    if isinstance(made, EncoderDecoder):
        read = {name: array for name, array in inputs(ids).items() if name.startswith("encoder_")}
        cache = small.jit(made.remember)(params, made.init_cache(2, length), read)
    found = []
    for start, stop in ((0, 4), (4, 5), (5, length)):
        part = {key: array[:, start:stop] for key, array in batch.items() if not key.startswith("encoder_")}
        out, cache = decode(made, params, cache, part)
        found.append(np.asarray(out))
    assert int(cache.length) == length
    for row, places in enumerate(shift):
        assert_close(np.concatenate(found, axis=1)[row, places:], full[row, : length - places])


# --- weights ----------------------------------------------------------------------------------------------------------


@every
def test_every_weight_is_declared_made_and_used(name: str) -> None:
    made = model(name)
    declared = made.parameters()
    shapes = trees.flatten(jax.eval_shape(made.init, jax.random.key(0)))
    assert {path: leaf.shape for path, leaf in shapes.items()} == {path: p.shape for path, p in declared.items()}
    batch, targets = inputs(IDS), jnp.asarray(np.roll(IDS, 1).reshape(-1))

    @small.jit
    def gradient(params: Any) -> Any:
        def loss(params: Any) -> Any:
            out = made.apply(params, batch, pattern=CAUSAL)
            flat = out.hidden.reshape(-1, out.hidden.shape[-1])
            total = made.vocabulary_loss(params, flat, targets, jnp.ones(targets.shape)).total
            return total + sum(out.losses.values(), start=jnp.zeros(()))

        return jax.grad(loss)(params)

    for path, found in trees.flatten(gradient(small.weights(made))).items():
        # A bias of the keys adds the same to all logits of a query, which softmax does not see; a type that no token
        # has, and distances that do not occur, are not reached.
        free = path.endswith("key_bias")
        parts = found if declared[path].dimensions[0] == "layers" else found[None]
        assert free or all(np.abs(part).max() > 1e-6 for part in parts), path


def test_weights_can_be_stored_in_half() -> None:
    made = small.model("llama", parameter_dtype="bfloat16", compute_dtype="bfloat16")
    params = jax.eval_shape(made.init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}


# --- experts ----------------------------------------------------------------------------------------------------------


def test_the_experts_of_a_token_are_those_with_the_largest_share() -> None:
    """By loops: each token through its two best experts, their probabilities renormalised (Jiang et al. 2024, 2.1)."""
    made = model("mixtral", num_layers=1)
    w = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), small.weights(made)["layers"]["experts"])
    x = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)
    expected = np.zeros_like(x, np.float64)
    for row, place in np.ndindex(2, 3):
        token = x[row, place].astype(np.float64)
        scores = np.exp(token @ w["router"])
        best = np.argsort(-scores)[:2]
        for expert in best:
            gate = token @ w["gate"][expert]
            inner = gate / (1 + np.exp(-gate)) * (token @ w["up"][expert])
            expected[row, place] += scores[expert] / scores[best].sum() * (inner @ w["down"][expert])
    assert_close(routed(made, x)[0], expected)


def routed(made: Model, x: np.ndarray, real: Any = True, scale: float = 1.0) -> Any:
    """What the experts of the first layer give, and their losses; `scale` times their weights."""
    own = jax.tree.map(lambda leaf: scale * leaf[0], small.weights(made)["layers"]["experts"])
    experts = Experts(made.settings, made.kernels, made.constrain)
    mask = jnp.broadcast_to(jnp.asarray(real), x.shape[:2])
    return small.jit(lambda own, x, mask: experts.apply({"params": own}, x, mask))(own, jnp.asarray(x), mask)


def test_ample_capacity_drops_nothing_and_scant_capacity_does() -> None:
    x = np.random.default_rng(0).normal(size=(2, 16, 16)).astype(np.float32)
    free, ample, scant = (
        routed(model("mixtral", num_layers=1, expert_capacity=factor), x)[0] for factor in (None, 8.0, 0.25)
    )
    assert_close(ample, free)
    assert np.abs(scant - free).max() > 0.1


def test_the_balance_loss_is_one_where_experts_are_used_alike_and_knows_no_padding() -> None:
    made = model("mixtral", num_layers=1)
    x = np.random.default_rng(0).normal(size=(3, 6, 16)).astype(np.float32)
    real = np.arange(6)[None] < np.array([[6], [4], [0]])
    _, losses = routed(made, x, real)
    _, alone = routed(made, x[:1])
    _, short = routed(made, x[1:2, :4])
    for name in losses:
        assert_close(losses[name], np.asarray(alone[name]) + np.asarray(short[name]))
    _, even = routed(made, x[:1], scale=0.0)
    assert_close(even["router_balance"], np.float32(1.0))
    assert_close(even["router_z"], np.float32(np.log(8) ** 2))

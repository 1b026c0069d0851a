"""Probes see what the features hold, choose without the held-out documents, and read texts as the model reads them."""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.origins import origins
from research.data.prepare import Prepared, prepare
from research.errors import UserError
from research.evaluate import probes
from research.evaluate.features import FINAL, LAST, MIDDLE, Texts, features, shown
from research.evaluate.probes import Task
from research.models import EncoderDecoder, Model
from research.parallel import mesh
from research.settings import ParallelSettings
from tests import small
from tests.data.corpora import documents as plain_documents
from tests.data.corpora import text_settings, write_texts
from tests.evaluate.corpora import corpus, documents
from tests.objectives.cases import OBJECTIVES, TEXT_IDS, VOCABULARY
from tests.small import assert_close, assert_one_sentence


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    with pytest.MonkeyPatch.context() as patch:
        return corpus(patch, tmp_path_factory.mktemp("cache"))


# --- documents and labels ---------------------------------------------------------------------------------------------


def test_each_document_has_its_own_origin(prepared: Prepared) -> None:
    known, expected = origins(prepared), {document.text: document.origin for document in documents()}
    assert known is not None and set(known) == {"train", "heldout"}
    for split, reader in (("train", prepared.train), ("heldout", prepared.heldout)):
        offsets = reader.document_offsets.tolist()
        found = [prepared.tokenizer.decode(reader.read(a, b)) for a, b in itertools.pairwise(offsets)]
        assert known[split] == [expected[text] for text in found]


def test_the_task_learns_from_training_and_counts_on_what_was_held_out(prepared: Prepared) -> None:
    made, known = probes.task(prepared, 20, 100), origins(prepared)
    assert known is not None
    fit_on, choose_on, count_on = made.parts
    assert made.classes == ("numpy", "optax", "rich") and made.dropped > 0
    held = [name.split("/")[0] for name in known["heldout"] if not name.startswith("rarely")]
    assert [made.classes[label] for label in made.labels[count_on]] == held
    last = [name.split("/")[0] for name in known["train"][-100:] if not name.startswith("rarely")]
    assert [made.classes[label] for label in made.labels[: made.fitted + made.chosen]] == last
    assert made.chosen == pytest.approx(20, abs=3) and len(made.labels[fit_on]) == made.fitted
    assert len(made.labels[choose_on]) == made.chosen
    special, lengths = prepared.tokenizer.vocabulary.special, made.texts.lengths
    assert lengths.max() == 20 and lengths.min() >= 1
    assert not np.isin(made.texts.tokens[np.arange(20)[None] < lengths[:, None]], special).any()


def test_a_corpus_without_labels_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    plain = prepare(text_settings(write_texts(tmp_path_factory.mktemp("texts"), plain_documents(30))))
    assert origins(plain) is None
    with pytest.raises(UserError) as caught:
        probes.task(plain, 20, 100)
    assert_one_sentence(str(caught.value), "data.source=text", "--yardstick")


def test_too_few_documents_say_so(prepared: Prepared) -> None:
    with pytest.raises(UserError) as caught:
        probes.task(prepared, 20, 30)
    assert_one_sentence(str(caught.value), "--documents=30")


# --- the classifier ---------------------------------------------------------------------------------------------------


def drawn(count: int = 300, noise: float = 0.5) -> Task:
    """Three classes, whose documents are nothing but their labels."""
    labels = np.random.default_rng(3).integers(0, 3, count)
    texts = Texts(np.zeros((count, 1), np.int32), np.ones(count, np.int64))
    return Task(texts, labels, ("a", "b", "c"), 150, 50, 0)


def test_the_fit_is_the_minimum() -> None:
    """No gradient is left: against differences of the loss as the definition has it."""
    rng, made = np.random.default_rng(4), drawn()
    values, labels, decay = rng.normal(size=(60, 4)), made.labels[:60], 0.1
    found = probes.fit(values, labels, decay, np.zeros((5, 3)))

    def loss(weights: np.ndarray) -> float:
        logits = values @ weights[:-1] + weights[-1]
        chosen = logits[np.arange(60), labels] - np.log(np.exp(logits).sum(axis=1))
        return float(-chosen.mean() + decay / 2 * (weights[:-1] ** 2).sum())

    least = loss(found)
    for place in np.ndindex(found.shape):
        step = np.zeros_like(found)
        step[place] = 1e-3
        assert abs(loss(found + step) - loss(found - step)) / 2e-3 < 1e-4
        assert loss(found + step) > least - 1e-12
    np.testing.assert_allclose(probes.fit(values, labels, decay, rng.normal(size=(5, 3)))[:-1], found[:-1], atol=1e-3)


def test_a_large_decay_leaves_the_frequencies() -> None:
    made = drawn()
    values = np.random.default_rng(5).normal(size=(300, 4))
    weights = probes.fit(values, made.labels, 100.0, np.zeros((5, 3)))
    shares = np.exp(weights[-1]) / np.exp(weights[-1]).sum()
    np.testing.assert_allclose(shares, np.bincount(made.labels) / 300, atol=2e-3)
    assert np.abs(weights[:-1]).max() < 1e-2


def test_what_the_features_hold_is_found_and_nothing_else() -> None:
    made, rng = drawn(), np.random.default_rng(6)
    told = np.eye(3)[made.labels] + 0.05 * rng.normal(size=(300, 3))
    found = probes.probe({"noise": rng.normal(size=(300, 8)), "told": probes.standardised(told, made)}, made)
    assert (found.name, found.chosen_accuracy, found.hits.mean()) == ("told", 1.0, 1.0) and len(found.hits) == 100
    blind = probes.probe({"noise": rng.normal(size=(300, 8))}, made)
    assert blind.hits.mean() < 0.5


def test_held_out_labels_choose_nothing() -> None:
    made, rng = drawn(), np.random.default_rng(7)
    both = {name: rng.normal(size=(300, 5)) + scale * np.eye(5)[made.labels] for name, scale in (("a", 2), ("b", 1))}
    labels = made.labels.copy()
    labels[200:] = (labels[200:] + 1) % 3
    other = probes.probe(both, dataclasses.replace(made, labels=labels))
    first = probes.probe(both, made)
    assert (first.name, first.decay, first.chosen_accuracy) == (other.name, other.decay, other.chosen_accuracy)
    assert not (first.hits & other.hits).any()


def test_standardised_features_know_only_the_documents_to_fit_on() -> None:
    made, values = drawn(), np.random.default_rng(8).normal(3.0, 2.0, (300, 4))
    scaled = probes.standardised(values, made)
    np.testing.assert_allclose(scaled[:150].mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(scaled[:150].std(axis=0), 1.0)
    values[200:] += 100.0
    np.testing.assert_array_equal(probes.standardised(values, made)[:200], scaled[:200])


def test_a_bag_of_tokens_tells_packages_by_their_words(prepared: Prepared) -> None:
    made = probes.task(prepared, 20, 150)
    bags = probes.bag_of_tokens(made).toarray()
    np.testing.assert_allclose((bags**2).sum(axis=1), bags.shape[1])
    assert (bags > 0).sum(axis=1).max() <= 20
    shuffled = made.texts.tokens.copy()
    for row, length in enumerate(made.texts.lengths):
        shuffled[row, :length] = shuffled[row, :length][::-1]
        shuffled[row, length:] = 7
    other = dataclasses.replace(made, texts=Texts(shuffled, made.texts.lengths))
    np.testing.assert_array_equal(probes.bag_of_tokens(other).toarray(), bags)
    found = probes.probe({"bag": probes.bag_of_tokens(made)}, made)
    assert found.hits.mean() > 0.85 > probes.majority(made).mean() + 0.3


# --- features ---------------------------------------------------------------------------------------------------------

KINDS = {"causal": "llama", "masked": "bert", "prefix": "llama", "spans": "llama", "spans, encoder": "t5"}
every_kind = pytest.mark.parametrize("name", KINDS)


def texts(seed: int = 0) -> Texts:
    tokens = np.random.default_rng(seed).integers(5, TEXT_IDS, (5, 8)).astype(np.int32)
    return Texts(tokens, np.array([8, 3, 1, 5, 8]))


def model_of(name: str) -> Model:
    return small.model(KINDS[name], max_positions=12)


def read(name: str, of: Texts, params: dict | None = None) -> dict[str, np.ndarray]:
    model, devices = model_of(name), mesh.make_mesh(ParallelSettings(), jax.devices()[:1])
    with jax.set_mesh(devices):
        return features(model, OBJECTIVES[name], params or small.weights(model), of, 2, devices)


@functools.cache
def hidden_of(name: str) -> Callable[[dict[str, jax.Array]], jax.Array]:
    """All hidden states of a text, of an encoder where there is one."""
    model, pattern = model_of(name), OBJECTIVES[name].pattern
    params = small.weights(model)
    if isinstance(model, EncoderDecoder):
        return small.jit(lambda batch: model.encode(params, batch).hidden)
    return small.jit(lambda batch: model.apply(params, batch, pattern=pattern).hidden)


def hidden(name: str, of: Texts) -> tuple[np.ndarray, np.ndarray]:
    """What is read, and hidden states."""
    batch = {key: jnp.asarray(array) for key, array in shown(OBJECTIVES[name], of, name == "spans, encoder").items()}
    return np.asarray(batch.get("encoder_tokens", batch.get("tokens"))), np.asarray(hidden_of(name)(batch))


@every_kind
def test_features_are_means_of_hidden_states_over_the_text(name: str) -> None:
    of = texts()
    found, (inputs, states) = read(name, of), hidden(name, of)
    assert found.keys() == ({FINAL, MIDDLE, LAST} if name == "causal" else {FINAL, MIDDLE})
    begins = 0 if name in {"masked", "spans, encoder"} else 1
    for row, length in enumerate(of.lengths):
        assert inputs[row, begins : begins + length].tolist() == of.tokens[row, :length].tolist()
        assert (inputs[row, :begins] == VOCABULARY.bos).all()
        assert_close(found[FINAL][row], states[row, begins : begins + length].mean(axis=0), 1e-5)
        if LAST in found:
            assert_close(found[LAST][row], states[row, length], 1e-5)


@pytest.mark.parametrize("name", ["causal", "masked", "spans, encoder"])
def test_what_stands_behind_the_end_is_never_read(name: str) -> None:
    of = texts()
    tokens = np.where(np.arange(8)[None] < of.lengths[:, None], of.tokens, 6).astype(np.int32)
    small.assert_same_bits(read(name, Texts(tokens, of.lengths)), read(name, of))


@every_kind
def test_all_but_causal_models_see_what_comes(name: str) -> None:
    of, other = texts(), texts()
    other.tokens[0, 7] = 5 + (other.tokens[0, 7] - 4) % (TEXT_IDS - 5)
    first, second = (hidden(name, each)[1][0, 1] for each in (of, other))
    assert np.array_equal(first, second) == (name == "causal")


@pytest.mark.parametrize("name", ["causal", "prefix", "spans, encoder"])
def test_the_middle_is_what_the_lower_half_of_the_layers_makes(name: str) -> None:
    """Where the upper half adds nothing, the middle is the end."""
    params = jax.tree.map(np.array, small.weights(model_of(name)))
    stack = params["encoder"] if name == "spans, encoder" else params
    for branch, last in (("attention", "out"), ("mlp", "down")):
        stack["layers"][branch][last][1:] = 0.0
    found = read(name, texts(), params)
    assert_close(found[MIDDLE], found[FINAL], 1e-5)
    whole = read(name, texts())
    assert np.abs(whole[MIDDLE] - whole[FINAL]).max() > 1e-2


def test_one_layer_has_no_middle() -> None:
    model, devices = small.model(num_layers=1), mesh.make_mesh(ParallelSettings(), jax.devices()[:1])
    with jax.set_mesh(devices):
        found = features(model, OBJECTIVES["causal"], small.weights(model), texts(), 4, devices)
    assert found.keys() == {FINAL, LAST}

"""Every objective that predicts text asks for the same tokens behind the same beginning, and shows none ahead."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.windows import Windows
from research.errors import UserError
from research.objectives import Objective
from research.objectives.mixture import Mixture
from tests import small
from tests.objectives.cases import OBJECTIVES, TEXT_IDS, VOCABULARY, draws, mixture, spans
from tests.small import assert_one_sentence

CONTINUING = {name: objective for name, objective in OBJECTIVES.items() if objective.continues}
every_continuing = pytest.mark.parametrize("name", CONTINUING)
# Rates and fractions change nothing in what is asked: of those that differ in nothing else one is enough for a model.
ALIKE = {"causal smoothed", "prefix of a quarter", "seq2seq of a quarter", "spans, many"}
every_form = pytest.mark.parametrize("name", sorted(CONTINUING.keys() - ALIKE))
GIVEN = np.array([4, 1, 6, 3, 7, 2], np.int64)
ASKED = np.array([5, 9, 1, 7, 3, 8], np.int64)
LENGTH = 10


def pieces(seed: int = 0) -> Windows:
    """One piece of a document a row, of several lengths."""
    count = GIVEN + ASKED
    real = np.arange(LENGTH)[None] < count[:, None]
    tokens = np.random.default_rng(seed).integers(5, TEXT_IDS, real.shape)
    positions = np.where(real, np.arange(LENGTH)[None], 0).astype(np.int32)
    left, ids = np.full(len(count), VOCABULARY.bos, np.int32), np.arange(len(count))
    shown = np.where(real, tokens, VOCABULARY.pad).astype(np.int32)
    return Windows(shown, real.astype(np.int32), positions, left, ids, np.zeros_like(ids))


@functools.cache
def reader(name: str, encoder: bool) -> Callable[[dict[str, jax.Array]], jax.Array]:
    """Logits of a small model of the objective, compiled once."""
    model = small.model("t5" if encoder else "llama", max_positions=40, num_layers=1)
    pattern, params = OBJECTIVES[name].pattern, small.weights(model)
    return small.jit(lambda inputs: model.unembed(params, model.apply(params, inputs, pattern=pattern).hidden))


def logits(name: str, batch: dict[str, np.ndarray]) -> list[np.ndarray]:
    """At the counted places of each row, in order."""
    inputs = {key: jnp.asarray(array) for key, array in batch.items()}
    found = np.asarray(reader(name, "encoder_tokens" in batch)(inputs))
    return [row[weights > 0] for row, weights in zip(found, batch["weights"], strict=True)]


@every_continuing
def test_the_targets_are_the_tokens_behind_the_given_ones_and_no_others(name: str) -> None:
    made = pieces()
    batch = OBJECTIVES[name].continuation(made, GIVEN)
    for row, (given, count) in enumerate(zip(GIVEN, GIVEN + ASKED, strict=True)):
        places = batch["weights"][row] > 0
        np.testing.assert_array_equal(batch["targets"][row][places], made.tokens[row, given:count])
        assert (np.diff(np.flatnonzero(places)) == 1).all() and set(batch["weights"][row][places]) == {1.0}
        shown = [batch["tokens"][row][batch["segment_ids"][row] > 0]]
        if "encoder_tokens" in batch:
            shown.insert(0, batch["encoder_tokens"][row][batch["encoder_segment_ids"][row] > 0])
        text = [token for part in shown for token in part.tolist() if token not in VOCABULARY.special]
        # All of the text but its last token is read, in its order: each token once.
        assert text == made.tokens[row, :count][: len(text)].tolist() and count - 1 <= len(text) <= count


@every_continuing
def test_the_batch_has_the_schema_of_training(name: str) -> None:
    made = pieces()
    batch, trained = OBJECTIVES[name].continuation(made, GIVEN), OBJECTIVES[name].corrupt(made, draws(made))
    assert batch.keys() == trained.keys() - {"members"}
    for key, array in batch.items():
        assert array.dtype == trained[key].dtype, key
    for side in ("", "encoder_") if "encoder_tokens" in batch else ("",):
        real = batch[f"{side}segment_ids"] > 0
        places = np.broadcast_to(np.arange(real.shape[1]), real.shape)
        np.testing.assert_array_equal(batch[f"{side}positions"], np.where(real, places, 0))
        assert (batch[f"{side}tokens"][~real] == VOCABULARY.pad).all()
        assert real.sum(axis=1).max() == real.shape[1]


@every_form
def test_no_token_is_seen_before_it_is_predicted(name: str) -> None:
    """Another token at a place of the suffix changes no logits up to that place, and those behind it."""
    made = pieces()
    before = logits(name, OBJECTIVES[name].continuation(made, GIVEN))
    for changed in (0, 2, 4):
        other = pieces()
        for row in np.flatnonzero(changed < ASKED):
            place = GIVEN[row] + changed
            other.tokens[row, place] = 5 + (other.tokens[row, place] - 4) % (TEXT_IDS - 5)
        after = logits(name, OBJECTIVES[name].continuation(other, GIVEN))
        for row in range(len(GIVEN)):
            np.testing.assert_array_equal(after[row][: changed + 1], before[row][: changed + 1])
            behind = np.abs(after[row][changed + 1 :] - before[row][changed + 1 :])
            assert (behind.max(axis=-1, initial=0.0) > 1e-6).all()


@every_form
def test_all_of_the_beginning_is_seen(name: str) -> None:
    made, other = pieces(), pieces()
    other.tokens[:, 0] = 5 + (other.tokens[:, 0] - 4) % (TEXT_IDS - 5)
    before, after = (logits(name, OBJECTIVES[name].continuation(each, GIVEN)) for each in (made, other))
    assert all((np.abs(a - b).max(axis=-1) > 1e-6).all() for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", ["prefix", "spans", "denoisers"])
def test_the_beginning_is_read_from_both_sides(name: str) -> None:
    batch = OBJECTIVES[name].continuation(pieces(), GIVEN)
    flagged = batch["prefix"] > 0
    first = np.argmax(batch["weights"] > 0, axis=1)
    np.testing.assert_array_equal(flagged.sum(axis=1), first + (name == "prefix"))
    assert (flagged[:, :1] == 1).all() and not (flagged[:, 1:] & ~flagged[:, :-1]).any()


def test_causal_is_the_training_batch_with_the_beginning_for_nothing() -> None:
    made = pieces()
    whole, asked = OBJECTIVES["causal"].corrupt(made, draws(made)), OBJECTIVES["causal"].continuation(made, GIVEN)
    for key in whole.keys() - {"weights"}:
        np.testing.assert_array_equal(asked[key], whole[key])
    np.testing.assert_array_equal(asked["weights"], whole["weights"] * (made.positions >= GIVEN[:, None]))


def test_spans_are_asked_as_the_denoiser_of_ends_asks() -> None:
    sentinel, eos, bos = VOCABULARY.sentinels[0], VOCABULARY.eos, VOCABULARY.bos
    made = pieces().rows(np.array([2]))
    text = made.tokens[0, :7].tolist()
    batch = spans("r,s").continuation(made, np.array([6]))
    read = [bos, VOCABULARY.mark("s"), *text[:6], sentinel, eos]
    assert batch["tokens"][0].tolist() == [*read, sentinel, text[6]]
    assert batch["targets"][0].tolist() == [*read[1:], sentinel, text[6], eos]
    split = spans(encoder=True).continuation(made, np.array([6]))
    assert split["encoder_tokens"][0].tolist() == [*text[:6], sentinel, eos]
    assert split["tokens"][0].tolist() == [bos, sentinel, text[6]] and split["weights"][0].tolist() == [0, 1, 0]


def test_a_mixture_asks_as_its_first_member_that_can() -> None:
    mixed = mixture(OBJECTIVES["masked"], OBJECTIVES["causal"], OBJECTIVES["prefix"])
    batch, plain = mixed.continuation(pieces(), GIVEN), OBJECTIVES["causal"].continuation(pieces(), GIVEN)
    assert (batch.pop("prefix") == 0).all()
    for key in plain:
        np.testing.assert_array_equal(batch[key], plain[key])


MASKED: dict[str, Objective] = {name: made for name, made in OBJECTIVES.items() if not made.continues}


@pytest.mark.parametrize("name", [*MASKED, "mixture of masked"])
def test_what_predicts_no_text_says_so(name: str) -> None:
    objective = MASKED.get(name) or mixture(OBJECTIVES["masked"], OBJECTIVES["masked often"])
    assert not objective.continues and (name.startswith("mixture") == isinstance(objective, Mixture))
    with pytest.raises(UserError) as caught:
        objective.continuation(pieces(), GIVEN)
    assert_one_sentence(str(caught.value), f"objective.name={objective.name}")

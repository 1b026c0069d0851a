"""What is particular to causal, masked, prefix and sequence-to-sequence training, and how settings choose."""

import dataclasses

import numpy as np
import pytest

from research import config, objectives
from research.data.windows import Windows
from research.errors import UserError
from research.kernels import Pattern
from research.objectives import Objective
from research.objectives.masked import Masked
from research.objectives.prefix import Prefix
from research.objectives.units import span_lengths
from tests import small
from tests.objectives.cases import (
    LENGTH,
    OBJECTIVES,
    RATES,
    TEXT_IDS,
    TOKENIZER,
    VOCABULARY,
    assert_equal,
    batch,
    documents,
    draws,
    segments,
    windows,
)
from tests.small import assert_one_sentence

MASKED = [name for name in OBJECTIVES if name.startswith("masked")]
TOKENS = ["masked", "masked often", "masked rarely"]
every_masked = pytest.mark.parametrize("name", MASKED)
every_token = pytest.mark.parametrize("name", TOKENS)
PAIRS = {"model.pair_head": True, "model.pooler": True, "model.token_types": 2}
ENCODER = {"model.architecture": "encoder_decoder"}


def masked(name: str) -> Masked:
    found = OBJECTIVES[name]
    assert isinstance(found, Masked)
    return found


def built(**changes: object) -> Objective:
    of = small.settings({"tokenizer.vocab_size": TEXT_IDS + 300, "data.sequence_length": 128, **changes})
    return objectives.build(of, dataclasses.replace(TOKENIZER, size=TEXT_IDS + 300, word_starts=()))


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "pattern", "extra_ids"),
    [
        ({}, Pattern(causal=True), 0),
        ({"objective.name": "masked"}, Pattern(causal=False), 0),
        ({"objective.name": "prefix"}, Pattern(causal=True, prefix=True), 0),
        ({"objective.name": "span_corruption"}, Pattern(causal=True, prefix=True), 100),
        ({"objective.name": "span_corruption", **ENCODER}, Pattern(causal=True), 100),
        ({"objective.name": "span_corruption", "objective.denoisers": "r,x,s", **ENCODER}, Pattern(causal=True), 103),
        ({"objective.name": "fill_in_middle"}, Pattern(causal=True), 3),
        ({"objective.name": "sentence_pairs", **PAIRS}, Pattern(causal=False), 0),
        ({"objective.name": "seq2seq", **ENCODER}, Pattern(causal=True), 0),
        ({"objective.name": "mixture", "objective.mixture": "causal:3, masked:1"}, Pattern(True, prefix=True), 0),
        (
            {"objective.name": "mixture", "objective.mixture": "fill_in_middle:1,span_corruption:1"},
            Pattern(causal=True, prefix=True),
            103,
        ),
        (
            {"objective.name": "mixture", "objective.mixture": "seq2seq:1,span_corruption:1", **ENCODER},
            Pattern(True),
            100,
        ),
    ],
    ids=str,
)
def test_settings_choose_the_objective_its_pattern_and_its_ids(changes: dict, pattern: Pattern, extra_ids: int) -> None:
    made = built(**changes)
    of = small.settings(changes)
    assert (made.name, made.pattern) == (of.objective.name, pattern)
    assert of.objective.extra_ids == extra_ids == made.vocabulary.num_rows - made.vocabulary.size
    needed = of.tokenizer.vocab_size + extra_ids
    assert needed <= of.vocab_size < needed + 8 and (not extra_ids or of.vocab_size % 8 == 0)
    assert len(set(made.vocabulary.special)) == 5 + extra_ids


def test_defaults_are_as_they_were() -> None:
    assert built(**{"objective.name": "masked", "objective.mask_rate": 0.2}) == Masked(
        dataclasses.replace(TOKENIZER, size=TEXT_IDS + 300, word_starts=()), 0.2, 0.8, 0.1
    )
    assert config.scientific_hash(config.from_nested({})) == config.scientific_hash(
        config.from_nested({"data.raw_length": None, "objective.masking": "token"})
    )


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"objective.name": "mixture"}, ["objective.mixture=''", "causal:0.5"]),
        ({"objective.name": "mixture", "objective.mixture": "causal:0"}, ["objective.mixture='causal:0'"]),
        ({"objective.name": "mixture", "objective.mixture": "causal:-1"}, ["objective.mixture='causal:-1'"]),
        ({"objective.name": "mixture", "objective.mixture": "causal:nan,masked:1"}, ["objective.mixture"]),
        ({"objective.name": "mixture", "objective.mixture": "causal"}, ["objective.mixture='causal'"]),
        ({"objective.name": "mixture", "objective.mixture": "gpt:1"}, ["objective.mixture=gpt:1", "fill_in_middle"]),
        ({"objective.name": "mixture", "objective.mixture": "causal:1,seq2seq:1"}, ["objective.mixture=causal:1"]),
        ({"objective.name": "mixture", "objective.mixture": "mixture:1"}, ["objective.mixture=mixture:1"]),
        (ENCODER, ["objective.name=causal", "model.architecture=encoder_decoder"]),
        ({"objective.name": "masked", **ENCODER}, ["objective.name=masked", "model.architecture=encoder_decoder"]),
        ({"objective.name": "seq2seq"}, ["objective.name=seq2seq", "model.architecture=encoder_decoder"]),
        ({"objective.name": "masked", "model.architecture": "lstm"}, ["objective.name=masked", "lstm"]),
        ({"objective.name": "sentence_pairs"}, ["model.pair_head", "model.token_types"]),
    ],
    ids=str,
)
def test_contradictions_are_one_sentence_that_names_the_keys(changes: dict, keys: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        small.settings(changes)
    assert_one_sentence(str(caught.value), *keys)


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"data.raw_length": 129}, ["data.raw_length=129", "data.sequence_length=128", "128 tokens"]),
        ({"data.raw_length": 120, "objective.name": "span_corruption"}, ["data.raw_length=120", "114 tokens"]),
        ({"data.sequence_length": 4, "objective.name": "fill_in_middle"}, ["data.sequence_length=4"]),
        ({"objective.name": "masked", "objective.masking": "whole_word"}, ["objective.masking=whole_word"]),
        ({"model.vocab_size": 350, "objective.name": "fill_in_middle"}, ["model.vocab_size=350", "353 ids"]),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_sentence(changes: dict, keys: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        built(**changes)
    assert_one_sentence(str(caught.value), *keys)


def test_a_tokenizer_without_a_mask_cannot_be_masked() -> None:
    of = small.settings({"objective.name": "masked"})
    with pytest.raises(UserError, match="mask token"):
        objectives.build(of, dataclasses.replace(small.VOCABULARY, mask=-1))


def test_a_tokenizers_own_sentinels_are_used() -> None:
    own = dataclasses.replace(small.VOCABULARY, sentinels=tuple(range(319, 219, -1)))
    made = objectives.build(small.settings({"objective.name": "span_corruption", **ENCODER}), own)
    assert made.vocabulary.sentinels[:2] == (319, 318) and made.vocabulary.num_rows == 320
    assert made.vocabulary.decoder_start == own.pad and VOCABULARY.decoder_start == VOCABULARY.bos


# --- causal -----------------------------------------------------------------------------------------------------------


def test_a_causal_input_is_the_token_before_and_bos_where_a_document_begins() -> None:
    made = windows(range(60))
    found = batch("causal", made)
    for row, place in np.argwhere(made.segment_ids > 0):
        if place == 0:
            expected = made.left[row]
        elif made.segment_ids[row, place] != made.segment_ids[row, place - 1]:
            expected = VOCABULARY.bos
        else:
            expected = made.tokens[row, place - 1]
        assert found["tokens"][row, place] == expected
    np.testing.assert_array_equal(found["weights"], made.segment_ids > 0)
    for key in ("segment_ids", "positions"):
        np.testing.assert_array_equal(found[key], getattr(made, key))
    np.testing.assert_array_equal(found["targets"], made.tokens)


def test_a_causal_input_holds_nothing_of_its_target_or_of_the_future() -> None:
    """Row r changes the token at place r: the input changes at place r + 1 alone, and only within the document."""
    made = windows([3] * LENGTH)
    own = np.eye(LENGTH, dtype=bool) & (made.tokens != VOCABULARY.eos)
    tokens = np.where(own, (made.tokens - 5 + 1) % (TEXT_IDS - 5) + 5, made.tokens).astype(np.int32)
    before, after = batch("causal", made), batch("causal", dataclasses.replace(made, tokens=tokens))
    expected = np.zeros((LENGTH, LENGTH), bool)
    expected[:, 1:] = own[:, :-1]
    np.testing.assert_array_equal(before["tokens"] != after["tokens"], expected)
    np.testing.assert_array_equal(before["targets"] != after["targets"], own)


# --- masked -----------------------------------------------------------------------------------------------------------


def candidates(made: Windows) -> np.ndarray:
    return (made.segment_ids > 0) & ~np.isin(made.tokens, VOCABULARY.special)


@every_masked
def test_special_tokens_are_never_chosen_and_never_drawn(name: str) -> None:
    made = windows(range(300))
    found = batch(name, made)
    assert not (found["weights"] > 0)[~candidates(made)].any()
    drawn = (found["tokens"] != made.tokens) & (found["tokens"] != VOCABULARY.mask)
    assert not np.isin(found["tokens"][drawn], VOCABULARY.special).any()
    assert (found["tokens"] < TEXT_IDS).all()
    np.testing.assert_array_equal(found["targets"], made.tokens)


@every_masked
def test_the_share_is_exact_and_at_least_one_in_short_windows(name: str) -> None:
    made = windows(range(300))
    count = candidates(made).sum(axis=1)
    wanted = np.array([min(n, max(1, round(masked(name).rate * n))) for n in count.tolist()])
    found = batch(name, made)["weights"].sum(axis=1)
    if name in TOKENS:
        np.testing.assert_array_equal(found, wanted)
    assert (found <= wanted).all() and (found[count > 0] >= 1).all() and min(count) == 0
    assert max(wanted) <= masked(name).max_targets(LENGTH) <= LENGTH


@every_masked
def test_what_is_not_chosen_is_shown_as_it_is(name: str) -> None:
    made = windows(range(100))
    found = batch(name, made)
    kept = found["weights"] == 0
    np.testing.assert_array_equal(found["tokens"][kept], made.tokens[kept])


@every_token
def test_chosen_tokens_are_masked_drawn_or_kept_in_their_shares(name: str) -> None:
    made = windows(range(0, 9000, 3), beside=False)
    objective, found = masked(name), batch(name, made)
    chosen = found["weights"] > 0
    shown, text = found["tokens"][chosen], made.tokens[chosen]
    total, ordinary = chosen.sum(), TEXT_IDS - len(TOKENIZER.special)
    masks, random = objective.mask_token_rate, objective.random_token_rate
    shares = {
        "masked": ((shown == VOCABULARY.mask).sum(), masks),
        "as it is": ((shown == text).sum(), 1 - masks - random + random / ordinary),
    }
    for kind, (number, share) in shares.items():
        assert abs(number - share * total) <= 5 * np.sqrt(share * (1 - share) * total) + 1e-6, kind
    drawn = shown[(shown != VOCABULARY.mask) & (shown != text)]
    if random > 0:
        counts = np.bincount(drawn, minlength=TEXT_IDS)[5:]
        assert (np.abs(counts - counts.mean()) < 6 * np.sqrt(counts.mean()) + 1).all()


@every_token
def test_every_place_is_chosen_alike(name: str) -> None:
    made = windows(range(0, 9000, 3), beside=False)
    among = candidates(made)
    found = batch(name, made)["weights"] > 0
    chosen = (found & among).sum(axis=0) / among.sum(axis=0)
    expected = found.sum() / among.sum()
    assert (np.abs(chosen - expected) < 6 * np.sqrt(expected * (1 - expected) / among.sum(axis=0))).all()


def test_near_rates_share_the_shape_of_the_head() -> None:
    sizes = {rate: Masked(VOCABULARY, rate, 0.8, 0.1).max_targets(128) for rate in (0.001, 0.12, 0.15, 0.18, 0.9)}
    assert sizes == {0.001: 8, 0.12: 16, 0.15: 24, 0.18: 24, 0.9: 120}
    assert Masked(VOCABULARY, 0.9, 0.8, 0.1).max_targets(5) == 5
    assert Masked(VOCABULARY, 0.15, 0.8, 0.1, rate_start=0.9).max_targets(128) == 120


def test_the_rate_changes_linearly_and_held_out_text_has_the_last() -> None:
    made = windows([3] * 5, length=100, ends=0.0)
    objective = OBJECTIVES["masked less and less"]
    counts = [
        objective.corrupt(made, draws(made, progress=done))["weights"].sum(axis=1)[0] for done in (0.0, 0.5, 1.0, None)
    ]
    assert counts == [60, 38, 15, 15]  # of 100, at 0.6, 0.375, 0.15


def test_a_run_whose_rate_changes_with_its_length_cannot_be_lengthened() -> None:
    changes = {"objective.name": "masked", "optimizer.schedule": "constant", "optimizer.warmup_steps": 0}
    for start, refused in ((None, False), (0.3, True)):
        both = [small.settings({**changes, "objective.mask_rate_start": start, "train.num_steps": n}) for n in (10, 20)]
        if refused:
            with pytest.raises(UserError, match=r"train\.num_steps"):
                config.check_resume(*both, reached=10)
        else:
            config.check_resume(*both, reached=10)


def words(made: Windows, row: int) -> list[list[int]]:
    """Places of each word of a row."""
    found: list[list[int]] = []
    for place in np.flatnonzero(candidates(made)[row]):
        before = (
            found and found[-1][-1] == place - 1 and made.segment_ids[row, place] == made.segment_ids[row, place - 1]
        )
        if before and made.tokens[row, place] % 2 == 0:  # even ids go on with a word
            found[-1].append(place)
        else:
            found.append([place])
    return found


def test_words_are_chosen_whole_and_shown_alike() -> None:
    made = windows(range(0, 600, 3))
    found = batch("masked words", made)
    partly = 0
    for row in range(200):
        for word in words(made, row):
            chosen = found["weights"][row, word]
            partly += 0 < chosen.sum() < len(word)
            if chosen.all():
                masks = found["tokens"][row, word] == VOCABULARY.mask
                assert masks.all() or not masks.any()
        partly -= found["weights"][row].sum() == 1 and len(words(made, row)) == 1
    assert partly <= 2  # only in windows whose every word is longer than what may be chosen


def test_spans_are_of_whole_words_and_of_spanberts_lengths() -> None:
    lengths = span_lengths(np.random.default_rng(0).random((1, 200_000)))
    shares = 0.2 * 0.8 ** np.arange(10)
    np.testing.assert_allclose(np.bincount(lengths[0])[1:] / 200_000, shares / shares.sum(), atol=0.004)
    assert lengths.mean() == pytest.approx(3.8, abs=0.03)
    # A small share of long windows: the spans that are chosen rarely touch.
    sparse = Masked(VOCABULARY, 0.05, *RATES, "span")
    made = windows(range(0, 300, 3), length=400, ends=0.0, beside=False)
    chosen = batch(sparse, made)["weights"] > 0
    begins = chosen & ~np.pad(chosen, ((0, 0), (1, 0)))[:, :-1]
    whole = made.tokens[begins] % 2 == 1
    assert whole.mean() > 0.97
    runs = chosen.sum() / begins.sum()
    assert 3.8 * 2 * 0.75 < runs < 3.8 * 2 * 1.1  # two tokens a word; the last span of each window is cut


# --- prefix and sequence to sequence ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prefix", "prefix of a quarter"])
def test_a_prefix_is_given_and_flagged_and_the_rest_is_predicted(name: str) -> None:
    made = windows(range(200))
    found, plain = batch(name, made), batch("causal", made)
    for key in ("tokens", "segment_ids", "positions", "targets"):
        np.testing.assert_array_equal(found[key], plain[key])
    shares = []
    for row in range(200):
        flags, weights = segments(found, row, "prefix"), segments(found, row, "weights")
        for number, document in enumerate(documents(made, row), 1):
            given = weights[number].count(0.0)
            assert weights[number] == [0.0] * given + [1.0] * (len(document) - given) and given < len(document)
            # Given tokens are the inputs behind the first: one flag more than tokens.
            assert flags[number] == [1] * (given + 1 if given else 0) + [0] * (len(document) - given - (given > 0))
            if name == "prefix of a quarter":
                assert given == min(round(0.25 * len(document)), len(document) - 1)
            elif len(document) > 10:
                shares.append((given + 0.5) / len(document))
    if shares:
        assert abs(np.mean(shares) - 0.5) < 0.08 and abs(np.std(shares) - 12**-0.5) < 0.05


def test_no_prefix_is_causal_in_what_is_predicted() -> None:
    made = windows(range(50))
    found, plain = batch(Prefix(VOCABULARY, 0.0), made), batch("causal", made)
    assert not found.pop("prefix").any()
    assert_equal(found, plain)


@pytest.mark.parametrize("name", ["seq2seq", "seq2seq of a quarter"])
def test_encoder_and_decoder_share_each_document_between_them(name: str) -> None:
    made = windows(range(200))
    found = batch(name, made)
    for row in range(200):
        read, asked = segments(found, row, "encoder_tokens", "encoder_"), segments(found, row, "targets")
        inputs = segments(found, row, "tokens")
        for number, document in enumerate(documents(made, row), 1):
            assert read[number] + asked.get(number, []) == document and len(read[number]) >= 1
            assert len(document) == 1 or len(asked[number]) >= 1
            assert number not in inputs or inputs[number] == [VOCABULARY.bos, *asked[number][:-1]]

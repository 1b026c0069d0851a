"""Span corruption and its denoisers, fill in the middle, sentence pairs and mixtures: what is particular to each."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from research.data.draws import Draws
from research.objectives import noise
from research.objectives.fill_in_middle import FillInMiddle
from research.objectives.noise import Denoiser
from research.objectives.rows import Piece, shifted
from research.objectives.sentence_pairs import SentencePairs
from tests.objectives.cases import (
    OBJECTIVES,
    RATES,
    VOCABULARY,
    assert_equal,
    batch,
    documents,
    draws,
    mixture,
    segments,
    spans,
    windows,
)

PAD, BOS, EOS = VOCABULARY.pad, VOCABULARY.bos, VOCABULARY.eos
SENTINELS = VOCABULARY.sentinels
MODES = [VOCABULARY.mark(name) for name in ("r", "x", "s")]
CORRUPTED = ["spans", "spans, encoder", "spans, many", "denoisers", "denoisers, encoder"]


def restored(inputs: list[int], targets: list[int]) -> list[int]:
    """The text of a document: each sentinel of the inputs replaced by what follows it in the targets."""
    lost: dict[int, list[int]] = {}
    for token in targets:
        if token in SENTINELS:
            lost[token] = []
        else:
            lost[list(lost)[-1]].append(token)
    text: list[int] = []
    for token in inputs:
        text += lost.pop(token) if token in SENTINELS else [token]
    assert not lost
    return text


def sides(name: str, found: dict[str, np.ndarray], row: int) -> dict[int, tuple[list[int], list[int]]]:
    """Inputs and targets of each document of a row."""
    if "encoder_tokens" in found:
        asked = segments(found, row, "targets")
        read = segments(found, row, "encoder_tokens", "encoder_")
        return {number: (read[number], asked.get(number, [])) for number in read}
    targets, weights = segments(found, row, "targets"), segments(found, row, "weights")
    given = {number: weights[number].count(0.0) for number in targets}
    return {number: (targets[number][: given[number]], targets[number][given[number] :]) for number in targets}


# --- span corruption --------------------------------------------------------------------------------------------------


def test_lengths_are_those_of_t5() -> None:
    objective = spans(encoder=True)
    assert objective.raw_length(512) == 568 and objective.lengths(568) == (114, 512)
    assert Denoiser(0.15, 3.0).counts(568, 100) == (85, 28)
    # UL2's extreme denoiser needs the longer targets, T5's the longer inputs.
    assert spans("r,x,s", encoder=True).lengths(567) == (380, 512)


@pytest.mark.parametrize("name", CORRUPTED)
@pytest.mark.parametrize("ends", [0.0, 0.15, 0.6])
def test_inputs_and_targets_together_are_the_text(name: str, ends: float) -> None:
    made = windows(range(100), ends=ends)
    found = batch(name, made)
    kept = 0
    for row in range(100):
        whole, pieces = documents(made, row), sides(name, found, row)
        assert list(pieces) == list(range(1, len(pieces) + 1))
        for number, (inputs, targets) in pieces.items():
            text = whole[number - 1]
            marks = [token for token in inputs if token in MODES]
            assert len(marks) == name.startswith("denoisers") and inputs[: len(marks)] == marks
            names = [token for token in targets if token in SENTINELS]
            assert names == list(SENTINELS[: len(names)]) == [token for token in inputs if token in SENTINELS]
            assert not targets or (targets[-1] == EOS and targets[0] == SENTINELS[0] and targets.count(EOS) == 1)
            again = restored(inputs[len(marks) :], targets[:-1])
            if again != text:  # only the last of a window is cut off: it ends in eos
                assert number == max(pieces) and again.pop() == EOS and text[: len(again)] == again
            kept += len(again)
    # What has no room for its marks and ends is left out; that takes tiny documents.
    share = kept / (made.segment_ids > 0).sum()
    assert share == 1.0 if ends == 0.0 else share > (0.95 if ends == 0.15 else 0.3)


@pytest.mark.parametrize("name", ["spans, encoder", "denoisers, encoder"])
def test_a_decoder_reads_its_targets_shifted(name: str) -> None:
    found = batch(name, windows(range(50)))
    for row in range(50):
        asked, read = segments(found, row, "targets"), segments(found, row, "tokens")
        assert all(read[number] == [BOS, *asked[number][:-1]] for number in asked)
        assert all(all(weights) for weights in segments(found, row, "weights").values())


def test_rate_and_mean_length_are_exact_in_windows_of_one_document() -> None:
    made = windows(range(0, 300, 3), length=568, ends=0.0, beside=False)
    found = batch(spans(encoder=True), made)
    for row in range(100):
        _, targets = sides("", found, row)[1]
        assert sum(token in SENTINELS for token in targets) == 28 and len(targets) == 114
    assert (found["weights"] == 1.0).all() and (found["encoder_segment_ids"] == 1).all()


def test_spans_stand_anywhere_alike() -> None:
    rng = np.random.default_rng(0)
    counts: Counter = Counter()
    for _ in range(6000):
        counts[tuple(noise.place(6, 3, 2, False, rng.random(7), rng.random(6)).tolist())] += 1
    # Three of six places in two runs: 2 ways to cut, and 4 gaps of which 2 are taken.
    assert len(counts) == 12
    assert all(abs(count - 500) < 5 * 500**0.5 for count in counts.values())
    assert noise.place(6, 2, 1, True, rng.random(7), rng.random(6)).tolist() == [False] * 4 + [True] * 2


def test_windows_of_several_documents_lose_as_much_in_fewer_spans() -> None:
    one = windows(range(0, 300, 3), length=141, ends=0.0, beside=False)
    several = windows(range(0, 300, 3), length=141, ends=0.02, beside=False)
    objective = spans(encoder=True)
    lost, marks = [], []
    for made in (one, several):
        found = batch(objective, made)
        targets = found["targets"][found["weights"] > 0]
        lost.append((~np.isin(targets, [*SENTINELS, EOS])).sum())
        marks.append(np.isin(targets, SENTINELS).sum())
    assert lost[1] > 0.99 * lost[0] and 0.6 * marks[0] < marks[1] < marks[0]


def test_a_long_document_has_no_more_spans_than_there_are_sentinels() -> None:
    few = dataclasses.replace(VOCABULARY, sentinels=SENTINELS[:5])
    objective = dataclasses.replace(spans(encoder=True), vocabulary=few)
    made = windows(range(0, 60, 3), length=200, ends=0.0, beside=False)
    found = batch(objective, made)
    assert found["encoder_tokens"].shape[1] == 200 - 30 + 5 + 1
    assert (np.isin(found["targets"], SENTINELS[:5]).sum(axis=1) == 5).all()


def test_each_denoiser_does_as_its_mark_says() -> None:
    made = windows(range(0, 900, 3), length=120, ends=0.0, beside=False)
    found = batch("denoisers, encoder", made)
    kinds: Counter = Counter()
    for row in range(300):
        inputs, targets = sides("", found, row)[1]
        names = sum(token in SENTINELS for token in targets)
        lost = len(targets) - names - 1
        kinds[inputs[0]] += 1
        if inputs[0] == MODES[0]:
            assert (lost, names) == (18, 6)
        elif inputs[0] == MODES[1]:
            assert (lost, names) in {(60, 20), (18, 1)}
        else:
            assert (lost, names) == (30, 1) and inputs[-2:] == [SENTINELS[0], EOS]
    assert set(kinds) == set(MODES) and all(abs(count - 100) < 45 for count in kinds.values())


# --- fill in the middle -----------------------------------------------------------------------------------------------

FILL = [VOCABULARY.mark(name) for name in ("prefix", "suffix", "middle")]


def straightened(tokens: list[int]) -> tuple[list[int], str]:
    """The text of a row's document in its own order, and the order that it stood in."""
    if FILL[0] not in tokens:
        return tokens, "as it is"
    assert tokens[0] == FILL[0] and all(tokens.count(mark) == 1 for mark in FILL)
    second, third = tokens.index(FILL[1]), tokens.index(FILL[2])
    end = [tokens[-1]] if tokens[-1] == EOS else []
    last = tokens[third + 1 : len(tokens) - len(end)]
    if second == 1:  # prefix and middle stand together at the end; the rest is the suffix
        return last + tokens[2:third] + end, "suffix first"
    return tokens[1:second] + last + tokens[second + 1 : third] + end, "prefix first"


def test_rearranged_documents_are_the_text_in_another_order() -> None:
    made = windows(range(0, 1500, 3), length=100, ends=0.02, beside=False)
    found = batch(FillInMiddle(VOCABULARY, 0.5, 0.25), made)
    orders: Counter = Counter()
    for row in range(500):
        pieces, whole = segments(found, row, "targets"), documents(made, row)
        for number, text in enumerate(whole, 1):
            again, order = straightened(pieces[number])
            own_eos = text[-1] == EOS
            assert again == text or (order != "as it is" and not own_eos and again == [*text, EOS])
            first = segments(found, row, "tokens")[number][0]
            assert first == (made.left[row] if number == 1 and order == "as it is" else BOS)
            if number == 1:
                orders[order] += len(whole) == 1
        assert (found["weights"][row] > 0).sum() == sum(map(len, pieces.values()))
        assert sum(piece.count(FILL[0]) for piece in pieces.values()) <= 1
    total = sum(orders.values())
    assert abs(orders["as it is"] / total - 0.5) < 0.15 and abs(orders["suffix first"] / total - 0.125) < 0.12


def test_cuts_are_uniform() -> None:
    made = windows(range(0, 3000, 3), length=60, ends=0.0, beside=False)
    found = batch("fill in middle, all", made)
    lengths = []
    for row in range(1000):
        tokens = segments(found, row, "targets")[1]
        lengths.append([tokens.index(FILL[1]) - 1, len(tokens) - tokens.index(FILL[2]) - 2])
    # Prefix, middle and suffix of two uniform cuts are a third each.
    np.testing.assert_allclose(np.mean(lengths, axis=0), [20, 20], atol=1.5)


# --- sentence pairs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", ["order", "next"])
def test_pairs_are_the_longest_piece_cut_in_two(pairs: str) -> None:
    made = windows(range(200))
    objective = SentencePairs(VOCABULARY, 0.15, *RATES, pairs=pairs)
    found = batch(objective, made)
    assert made.partners is not None
    for row in range(200):
        whole = documents(made, row)
        others = Counter(map(tuple, whole))
        longest = max(whole, key=len)
        text = longest[:-1] if longest[-1] == EOS else longest
        if not found["label_weights"][row]:
            assert len(text) < 2 and found["labels"][row] == 0 and not found["types"][row].any()
            continue
        first, *rest = segments(found, row, "targets").values()
        others[tuple(longest)] -= 1
        assert Counter(map(tuple, rest)) == +others
        types = segments(found, row, "types")[1]
        cut = types.index(1)
        a, b = first[1 : cut - 1], first[cut:-1]
        assert types == [0] * cut + [1] * (len(first) - cut) and len(a) >= 1 and len(b) >= 1
        assert (first[0], first[cut - 1], first[-1]) == (BOS, EOS, EOS)
        if found["labels"][row] == 0:
            assert a + b == text
        elif pairs == "order":
            assert b + a == text
        else:
            assert a == text[: len(a)]
            places = made.partners.tokens[row].tolist()
            assert any(places[start : start + len(b)] == b for start in range(len(places)))
    labels = found["labels"][found["label_weights"] > 0]
    assert abs(labels.mean() - 0.5) < 0.12


def test_a_window_without_a_partner_is_as_in_the_text() -> None:
    made = windows(range(100))
    found = batch("next", dataclasses.replace(made, partners=made))
    assert (found["labels"] == 0).all() and found["label_weights"].any()


# --- mixtures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name.startswith("mixture")])
def test_a_row_is_what_its_member_makes_of_the_window(name: str) -> None:
    made, mixed = windows(range(60)), OBJECTIVES[name]
    found = batch(name, made)
    for number, member in enumerate(mixed.members):  # type: ignore[attr-defined]
        own = batch(member, made)
        rows = np.flatnonzero(found["members"] == number)
        assert len(rows)
        for key, array in own.items():
            width = array.shape[1]
            np.testing.assert_array_equal(found[key][rows, :width], array[rows])
            rest = found[key][rows, width:]
            assert (rest == (PAD if key.endswith(("tokens", "targets")) else 0)).all()
        if "prefix" in found and "prefix" not in own:
            width = own["tokens"].shape[1]
            expected = 0 if member.pattern.causal else own["segment_ids"][rows] > 0
            assert (found["prefix"][rows, :width] == expected).all()


def test_windows_are_given_to_members_in_their_shares() -> None:
    made = windows(range(3000), length=4, beside=False)
    mixed = mixture(OBJECTIVES["causal"], OBJECTIVES["masked"])
    mixed = dataclasses.replace(mixed, parts=((mixed.parts[0][0], 0.8), (mixed.parts[1][0], 0.2)))
    assert abs((batch(mixed, made)["members"] == 0).mean() - 0.8) < 0.04
    assert_equal(
        mixed.corrupt(made.rows(np.arange(5)), Draws(0, made.epochs[:5], made.ids[:5])),
        batch(mixed, made.rows(np.arange(5))),
    )
    assert draws(made).rows(np.array([3, 1])).ids.tolist() == [3, 1]


def test_a_row_of_pieces_by_hand() -> None:
    pieces = [Piece(1, 2, np.array([10, 11, 12], np.int32), given=1), Piece(3, 9, np.array([20], np.int32))]
    found = shifted([pieces], 6, 0)
    assert {key: array[0].tolist() for key, array in found.items()} == {
        "tokens": [2, 10, 11, 9, 0, 0],
        "segment_ids": [1, 1, 1, 3, 0, 0],
        "positions": [0, 1, 2, 0, 0, 0],
        "targets": [10, 11, 12, 20, 0, 0],
        "weights": [0.0, 1.0, 1.0, 1.0, 0.0, 0.0],
        "prefix": [1, 1, 0, 0, 0, 0],
    }

"""Every objective with the windows that its laws are tested on; a new objective is one more entry."""

import dataclasses
from typing import Any

import numpy as np

from research.data.draws import Draws
from research.data.windows import Windows
from research.objectives import Objective
from research.objectives.causal import Causal
from research.objectives.fill_in_middle import FillInMiddle
from research.objectives.masked import Masked
from research.objectives.mixture import Mixture
from research.objectives.prefix import Prefix
from research.objectives.sentence_pairs import SentencePairs
from research.objectives.seq2seq import SequenceToSequence
from research.objectives.span_corruption import SpanCorruption, denoisers_of
from research.settings.objective import FILL_MARKS, NUM_SENTINELS
from tests import small

TEXT_IDS = 50
# Half of the pieces begin a word; what objectives write above the tokenizer's ids still has a row in `small.VOCAB`.
TOKENIZER = dataclasses.replace(small.VOCABULARY, size=TEXT_IDS, word_starts=tuple(i % 2 == 1 for i in range(TEXT_IDS)))
VOCABULARY = TOKENIZER.extended(NUM_SENTINELS, [*FILL_MARKS, "r", "x", "s"])
assert VOCABULARY.num_rows <= small.VOCAB
LENGTH = 40


def spans(letters: str = "r", encoder: bool = False, rate: float = 0.15, mean: float = 3.0) -> SpanCorruption:
    return SpanCorruption(VOCABULARY, denoisers_of(letters, rate, mean, VOCABULARY), encoder)


def mixture(*members: Objective) -> Mixture:
    return Mixture(VOCABULARY, tuple((member, 1 / len(members)) for member in members))


RATES = (0.8, 0.1)
OBJECTIVES: dict[str, Objective] = {
    "causal": Causal(VOCABULARY),
    "causal smoothed": Causal(VOCABULARY, label_smoothing=0.1, z_loss=1e-2),
    "masked": Masked(VOCABULARY, 0.15, *RATES),
    "masked often": Masked(VOCABULARY, 0.6, 0.5, 0.5),
    "masked rarely": Masked(VOCABULARY, 0.001, 1.0, 0.0),
    "masked words": Masked(VOCABULARY, 0.3, *RATES, "whole_word"),
    "masked spans": Masked(VOCABULARY, 0.3, *RATES, "span"),
    "masked less and less": Masked(VOCABULARY, 0.15, *RATES, rate_start=0.6),
    "prefix": Prefix(VOCABULARY),
    "prefix of a quarter": Prefix(VOCABULARY, 0.25),
    "spans": spans(),
    "spans, encoder": spans(encoder=True),
    "spans, many": spans(rate=0.5, mean=1.0, encoder=True),
    "denoisers": spans("r,x,s"),
    "denoisers, encoder": spans("r,x,s", encoder=True),
    "fill in middle": FillInMiddle(VOCABULARY, 0.5, 0.5),
    "fill in middle, all": FillInMiddle(VOCABULARY, 1.0, 0.0),
    "order": SentencePairs(VOCABULARY, 0.15, *RATES, pairs="order"),
    "next": SentencePairs(VOCABULARY, 0.15, *RATES, pairs="next"),
    "seq2seq": SequenceToSequence(VOCABULARY),
    "seq2seq of a quarter": SequenceToSequence(VOCABULARY, 0.25),
    "mixture": mixture(Causal(VOCABULARY), Masked(VOCABULARY, 0.15, *RATES), Prefix(VOCABULARY), spans("r,x,s")),
    "mixture, backward": mixture(Causal(VOCABULARY), FillInMiddle(VOCABULARY, 0.5, 0.5)),
    "mixture, encoder": mixture(spans(encoder=True), SequenceToSequence(VOCABULARY)),
}


def windows(ids: Any, epoch: int = 0, length: int = LENGTH, ends: float = 0.15, beside: bool = True) -> Windows:
    """Windows whose text is a function of their id: documents that end in eos, and padding behind two in three.

    Args:
      ids: numbers of the windows.
      epoch: of all of them.
      length: raw tokens a window.
      ends: probability that a document ends at a place.
      beside: give each window a partner.
    """
    ids = np.asarray(ids, np.int64)
    tokens, segment_ids, positions = (np.zeros((len(ids), length), np.int32) for _ in range(3))
    left = np.full(len(ids), VOCABULARY.bos, np.int32)
    for row, number in enumerate(ids):
        rng = np.random.default_rng(int(number))
        filled = length if number % 3 == 0 else int(rng.integers(1, length))
        tokens[row, :filled] = rng.integers(5, TEXT_IDS, filled)
        final = rng.random(filled) < ends
        tokens[row, :filled][final] = VOCABULARY.eos
        segment_ids[row, :filled] = 1 + np.concatenate([[0], np.cumsum(final[:-1])])
        for place in range(1, filled):
            positions[row, place] = 0 if final[place - 1] else positions[row, place - 1] + 1
        left[row] = rng.integers(5, TEXT_IDS) if number % 2 else VOCABULARY.bos
    partners = windows(ids + 1000, epoch, length, ends, beside=False) if beside else None
    return Windows(tokens, segment_ids, positions, left, ids, np.full(len(ids), epoch, np.int64), partners)


def draws(made: Windows, seed: int = 0, progress: float | None = None) -> Draws:
    done = None if progress is None else np.full(len(made.ids), progress)
    return Draws(seed, made.epochs, made.ids, done)


def batch(objective: str | Objective, made: Windows, seed: int = 0) -> dict[str, np.ndarray]:
    chosen = OBJECTIVES[objective] if isinstance(objective, str) else objective
    return chosen.corrupt(made, draws(made, seed))


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for key in found:
        np.testing.assert_array_equal(found[key], expected[key], err_msg=key)


def documents(made: Windows, row: int) -> list[list[int]]:
    """The pieces of documents of a window, as lists of ids."""
    segments = made.segment_ids[row]
    return [made.tokens[row, segments == number].tolist() for number in range(1, segments.max(initial=0) + 1)]


def segments(found: dict[str, np.ndarray], row: int, name: str, side: str = "") -> dict[int, list]:
    """What an array of a row holds in each segment."""
    numbers = found[f"{side}segment_ids"][row]
    return {int(n): found[name][row, numbers == n].tolist() for n in np.unique(numbers) if n > 0}

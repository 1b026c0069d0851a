"""What a masked model must restore as a whole: tokens, words, or spans of words."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32

from research.data.draws import Draws
from research.vocabulary import Vocabulary

# Joshi et al. 2020 (SpanBERT), section 3.1: lengths in words, geometric with p = 0.2, none above 10; 3.8 in the mean.
SPAN_PROBABILITY = 0.2
LONGEST_SPAN = 10


class Begins(NamedTuple):
    """Where units and groups of them begin, among the candidates.

    Attributes:
      units: tokens or words; a unit ends before the next, a document or a special token.
      groups: the same, or spans of words, which are chosen, and shown, one group after the other.
    """

    units: Bool[np.ndarray, "batch seq"]
    groups: Bool[np.ndarray, "batch seq"]


def begins(
    masking: str,
    vocabulary: Vocabulary,
    tokens: Int32[np.ndarray, "batch seq"],
    segment_ids: Int32[np.ndarray, "batch seq"],
    candidates: Bool[np.ndarray, "batch seq"],
    draws: Draws,
) -> Begins:
    """The units of `token`, `whole_word` or `span`."""
    if masking == "token":
        return Begins(candidates, candidates)
    fresh = candidates.copy()
    fresh[:, 1:] &= ~candidates[:, :-1] | (segment_ids[:, 1:] != segment_ids[:, :-1])
    starts = np.ones(vocabulary.num_rows, dtype=bool)
    starts[: len(vocabulary.word_starts)] = vocabulary.word_starts
    words = fresh | (candidates & starts[tokens])
    if masking == "whole_word":
        return Begins(words, words)
    assert masking == "span", masking
    length = tokens.shape[1]
    # Spans are laid over the words of the window; the first word of a document begins one in any case.
    ends = np.cumsum(span_lengths(draws.uniform("span", length)), axis=1)
    first = np.zeros((len(tokens), length + 1), dtype=bool)
    first[:, 0] = True
    np.put_along_axis(first, np.minimum(ends, length), True, axis=1)
    number = np.maximum(np.cumsum(words, axis=1) - 1, 0)
    return Begins(words, fresh | (words & np.take_along_axis(first, number, axis=1)))


def span_lengths(uniform: Float64[np.ndarray, "batch n"]) -> Int[np.ndarray, "batch n"]:
    """Geometric lengths up to `LONGEST_SPAN` from uniform numbers, by the inverse of their distribution."""
    shares = SPAN_PROBABILITY * (1 - SPAN_PROBABILITY) ** np.arange(LONGEST_SPAN)
    edges = np.cumsum(shares)[:-1] / shares.sum()
    return np.searchsorted(edges, uniform, side="right") + 1


def at_begins(groups: Bool[np.ndarray, "batch seq"], values: np.ndarray) -> np.ndarray:
    """At each place the value at the begin of its group."""
    first = np.maximum.accumulate(np.where(groups, np.arange(groups.shape[1]), 0), axis=1)
    return np.take_along_axis(values, first, axis=1)


def choose(
    candidates: Bool[np.ndarray, "batch seq"],
    begins: Begins,
    scores: Float64[np.ndarray, "batch seq"],
    wanted: Int[np.ndarray, " batch"],
    passes_over: bool,
) -> Bool[np.ndarray, "batch seq"]:
    """Whole units in the order of the scores at the begins of their groups, as long as they fit into the `wanted`
    tokens of their row.

    What does not fit is passed over for what comes behind it, or nothing follows it: passing over would prefer short
    spans. Where nothing fits, the beginning of the first unit is chosen.
    """
    batch, length = candidates.shape
    rows = np.arange(batch)[:, None]
    unit = np.maximum(np.cumsum(begins.units, axis=1) - 1, 0)
    sizes = np.bincount((rows * length + unit)[candidates], minlength=batch * length).reshape(batch, length)
    score = np.full((batch, length), 2.0)
    own = begins.units
    score[np.broadcast_to(rows, own.shape)[own], unit[own]] = at_begins(begins.groups, scores)[own]
    order = np.argsort(score, axis=1, kind="stable")
    sizes = np.take_along_axis(sizes, order, axis=1)
    taken, left = np.zeros((batch, length), dtype=bool), wanted.astype(np.int64)
    going = left > 0
    for place in range(length):
        if not going.any():
            break
        fits = going & (sizes[:, place] > 0) & (sizes[:, place] <= left)
        taken[:, place] = fits
        left -= sizes[:, place] * fits
        going &= (left > 0) & (sizes[:, place] > 0) & (fits | passes_over)
    cut = (left == wanted) & (wanted > 0)
    taken[cut, 0] = True
    by_unit = np.zeros((batch, length), dtype=bool)
    np.put_along_axis(by_unit, order, taken, axis=1)
    chosen = candidates & np.take_along_axis(by_unit, unit, axis=1)
    if cut.any():
        chosen &= ~cut[:, None] | (np.cumsum(chosen, axis=1) <= wanted[:, None])
    return chosen

"""Rows of a batch from pieces of documents, laid end to end."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32


class Piece(NamedTuple):
    """What a row holds of one document.

    Attributes:
      segment: its number in the row, from 1.
      first: the input at its first place; every other input is the token before.
      tokens: what stands at each place, to be predicted there.
      given: so many tokens at its begin are given: no targets, and seen from everywhere in the segment.
    """

    segment: int
    first: int
    tokens: Int32[np.ndarray, "tokens"]
    given: int = 0


def shifted(rows: Sequence[Sequence[Piece]], length: int, pad: int) -> dict[str, np.ndarray]:
    """`tokens`, `segment_ids`, `positions`, `targets`, `weights` and `prefix`, `[rows, length]`; inputs are the tokens
    before their targets.

    The input at place `i` is token `i - 1`, so that `given` tokens are the inputs of `given + 1` places, all flagged,
    of which the last already has a target.
    """
    shape = (len(rows), length)
    names = ("segment_ids", "positions", "prefix")
    made = {name: np.zeros(shape, np.int32) for name in names} | {"weights": np.zeros(shape, np.float32)}
    tokens, targets = np.full(shape, pad, np.int32), np.full(shape, pad, np.int32)
    for row, pieces in enumerate(rows):
        begin = 0
        for piece in pieces:
            count = len(piece.tokens)
            end = begin + count
            assert end <= length, (end, length)
            targets[row, begin:end] = piece.tokens
            tokens[row, begin + 1 : end] = piece.tokens[:-1]
            tokens[row, begin : begin + 1] = piece.first
            made["segment_ids"][row, begin:end] = piece.segment
            made["positions"][row, begin:end] = np.arange(count)
            made["weights"][row, begin + piece.given : end] = 1.0
            made["prefix"][row, begin : min(begin + piece.given + 1, end)] = piece.given > 0
            begin = end
    order = {"tokens": tokens, **{name: made[name] for name in names[:2]}, "targets": targets}
    return order | {"weights": made["weights"], "prefix": made["prefix"]}


def counted(begins: Sequence[int], ends: Sequence[int], length: int) -> Float32[np.ndarray, "rows length"]:
    """Weights that are one from a begin to an end in each row, and zero elsewhere."""
    places = np.arange(length)[None]
    return ((places >= np.array(begins)[:, None]) & (places < np.array(ends)[:, None])).astype(np.float32)


def encoder_rows(rows: Sequence[Sequence[tuple[int, np.ndarray]]], length: int, pad: int) -> dict[str, np.ndarray]:
    """`encoder_tokens`, `encoder_segment_ids` and `encoder_positions` of rows of (segment, tokens)."""
    shape = (len(rows), length)
    tokens, segment_ids, positions = np.full(shape, pad, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row, pieces in enumerate(rows):
        begin = 0
        for segment, piece in pieces:
            end = begin + len(piece)
            assert end <= length, (end, length)
            tokens[row, begin:end], segment_ids[row, begin:end] = piece, segment
            positions[row, begin:end] = np.arange(len(piece))
            begin = end
    return {"encoder_tokens": tokens, "encoder_segment_ids": segment_ids, "encoder_positions": positions}

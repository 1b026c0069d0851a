"""Sequence to sequence: the encoder reads the first part of each document, the decoder predicts the rest."""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Int64

from research.data.draws import Draws
from research.data.windows import Windows
from research.kernels import Pattern
from research.objectives.prefix import given_tokens
from research.objectives.rows import Piece, encoder_rows, shifted
from research.objectives.terms import BACKWARD, Lengths, Objective


@dataclasses.dataclass(frozen=True)
class SequenceToSequence(Objective):
    """Each piece of a document is cut in two; a piece of one token is all given.

    Where the cut falls is drawn for each document, so that either side may be long: encoder and decoder have a place
    for every raw token.

    Attributes:
      fraction: share of a piece that the encoder reads; none: drawn uniformly. It reads one token at least, and leaves
        one at least.
    """

    fraction: float | None = None
    name: ClassVar[str] = "seq2seq"

    @property
    def pattern(self) -> Pattern:
        """The decoder sees what stands before."""
        return BACKWARD

    def lengths(self, raw_length: int) -> Lengths:
        """As many positions on either side as raw tokens."""
        return Lengths(raw_length, raw_length)

    def expected_targets(self, raw_length: int) -> float:
        """The share that the encoder does not read."""
        return raw_length / 2 if self.fraction is None else raw_length * (1 - self.fraction)

    def corrupt(self, windows: Windows, draws: Draws) -> dict[str, np.ndarray]:
        """Cuts each piece of a document."""
        share = draws.uniform("prefix", windows.raw_length)
        read, predicted = [], []
        for row in range(len(windows.tokens)):
            inputs, pieces = [], []
            for segment, (begin, end) in enumerate(windows.documents(row), 1):
                tokens = windows.tokens[row, begin:end]
                # Of `n` tokens 1 to `n - 1` are read.
                most = np.array([end - begin - 1])
                given = 1 + int(given_tokens(most, share[row, begin : begin + 1], self.fraction)[0])
                inputs.append((segment, tokens[:given]))
                if given < len(tokens):
                    pieces.append(Piece(segment, self.vocabulary.decoder_start, tokens[given:]))
            read.append(inputs)
            predicted.append(pieces)
        lengths, pad = self.lengths(windows.raw_length), self.vocabulary.pad
        batch = shifted(predicted, lengths.sequence, pad)
        del batch["prefix"]
        return batch | encoder_rows(read, lengths.encoder, pad)

    @property
    def continues(self) -> bool:
        """It does."""
        return True

    def continuation(self, windows: Windows, given: Int64[np.ndarray, "batch"]) -> dict[str, np.ndarray]:
        """The encoder reads what is given."""
        read, predicted = [], []
        for tokens, segment_ids, count in zip(windows.tokens, windows.segment_ids, given.tolist(), strict=True):
            text = tokens[segment_ids > 0]
            read.append([(1, text[:count])])
            predicted.append([Piece(1, self.vocabulary.decoder_start, text[count:])])
        longest, pad = max(len(row[0].tokens) for row in predicted), self.vocabulary.pad
        batch = shifted(predicted, longest, pad)
        del batch["prefix"]
        return batch | encoder_rows(read, int(given.max()), pad)

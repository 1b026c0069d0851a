"""Fill in the middle (Bavarian et al. 2022): causal language modelling in which some documents end with their middle.

Of that paper: the text is cut into windows first (context level, section 3.2), pieces at uniformly drawn tokens, in the
orders prefix-suffix-middle and suffix-prefix-middle, the latter with the prefix behind the mark of the middle (section
3.1); the loss is taken over all tokens.
"""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Int64

from research.data.draws import Draws
from research.data.windows import Windows
from research.kernels import Pattern
from research.objectives.rows import Piece, counted, shifted
from research.objectives.terms import BACKWARD, Lengths, Objective

TOKENS_A_CHANGE = 64


@dataclasses.dataclass(frozen=True)
class FillInMiddle(Objective):
    """A piece of a document that is rearranged reads `prefix` P `suffix` S `middle` M `eos`, or `prefix` `suffix` S
    `middle` P M `eos`; its cuts are drawn uniformly.

    A window has room for the marks of one rearranged piece for each `TOKENS_A_CHANGE` tokens, at least for one; where
    more pieces are drawn than that, those with the smallest draws are rearranged.

    Attributes:
      rate: share of the pieces that are rearranged.
      spm_rate: share of these that begin with the suffix.
    """

    rate: float
    spm_rate: float
    name: ClassVar[str] = "fill_in_middle"
    predicts_text: ClassVar[bool] = True

    @property
    def pattern(self) -> Pattern:
        """What stands before."""
        return BACKWARD

    def changes(self, raw_length: int) -> int:
        """Most rearranged pieces of a window."""
        return max(1, raw_length // TOKENS_A_CHANGE)

    def lengths(self, raw_length: int) -> Lengths:
        """Three marks more for each rearranged piece, and an `eos` for a document that the window cuts off."""
        return Lengths(raw_length + 3 * self.changes(raw_length) + 1)

    def expected_targets(self, raw_length: int) -> float:
        """All tokens and the marks."""
        return raw_length + 4 * self.rate

    def corrupt(self, windows: Windows, draws: Draws) -> dict[str, np.ndarray]:
        """Rearranges, and shifts by one as causal language modelling does."""
        length = windows.raw_length
        which, order = draws.uniform("rearrange", length), draws.uniform("spm", length)
        cuts = np.stack([draws.uniform("cut", length), draws.uniform("other cut", length)], axis=-1)
        rows = []
        for row in range(len(windows.tokens)):
            documents = windows.documents(row)
            begins = np.array([begin for begin, _ in documents], dtype=np.int64)
            drawn = begins[which[row, begins] < self.rate]
            changed = set(drawn[np.argsort(which[row, drawn])][: self.changes(length)].tolist())
            pieces = []
            for segment, (begin, end) in enumerate(documents, 1):
                tokens = windows.tokens[row, begin:end]
                first = windows.left[row] if begin == 0 and begin not in changed else self.vocabulary.bos
                if begin in changed:
                    tokens = self._rearranged(
                        tokens, cuts[row, begin], bool(order[row, begin] < self.spm_rate), end == documents[-1][1]
                    )
                pieces.append(Piece(segment, int(first), tokens))
            rows.append(pieces)
        batch = shifted(rows, self.lengths(length).sequence, self.vocabulary.pad)
        del batch["prefix"]
        return batch

    def _rearranged(self, tokens: np.ndarray, cuts: np.ndarray, suffix_first: bool, last: bool) -> np.ndarray:
        """One piece in its new order; only the last of a window may lack its `eos`, and gets one."""
        ended = tokens[-1] == self.vocabulary.eos
        text = tokens[:-1] if ended else tokens
        low, high = sorted((cuts * (len(text) + 1)).astype(int).tolist())
        before = self._before_middle(text[:low], text[high:], suffix_first)
        eos = [np.array([self.vocabulary.eos], np.int32)] if ended or last else []
        return np.concatenate([before, text[low:high], *eos])

    def _before_middle(self, prefix: np.ndarray, suffix: np.ndarray, suffix_first: bool) -> np.ndarray:
        """What a rearranged piece reads before its middle."""
        marks = [np.array([self.vocabulary.mark(name)], np.int32) for name in ("prefix", "suffix", "middle")]
        if suffix_first:
            return np.concatenate([marks[0], marks[1], suffix, marks[2], prefix])
        return np.concatenate([marks[0], prefix, marks[1], suffix, marks[2]])

    @property
    def continues(self) -> bool:
        """It does."""
        return True

    def continuation(self, windows: Windows, given: Int64[np.ndarray, "batch"]) -> dict[str, np.ndarray]:
        """Pieces as they are where some stay so in training; else rearranged ones, behind whose middle is nothing."""
        rows, begins = [], []
        for tokens, segment_ids, count in zip(windows.tokens, windows.segment_ids, given.tolist(), strict=True):
            text = tokens[segment_ids > 0]
            before = text[:count]
            if self.rate == 1.0:
                before = self._before_middle(before, text[:0], self.spm_rate == 1.0)
            begins.append(len(before))
            rows.append([Piece(1, self.vocabulary.bos, np.concatenate([before, text[count:]]))])
        ends = [len(row[0].tokens) for row in rows]
        batch = shifted(rows, max(ends), self.vocabulary.pad) | {"weights": counted(begins, ends, max(ends))}
        del batch["prefix"]
        return batch

"""Masked language modelling (Devlin et al. 2019, section 3.1): restore chosen tokens from both sides."""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Int32

from research.data.draws import Draws
from research.data.windows import Windows
from research.kernels import Pattern
from research.objectives import units
from research.objectives.terms import BOTH_SIDES, Lengths, Objective


@dataclasses.dataclass(frozen=True)
class Masked(Objective):
    """A share of each window's tokens is a target: shown as `[MASK]`, as a random token, or as it is.

    Attributes:
      vocabulary: special tokens are neither chosen nor drawn.
      rate: share of a window's tokens that are chosen, rounded; at least one. Of words and spans, which are chosen as a
        whole, as many as fit.
      mask_token_rate: share of the chosen tokens (words, spans) that are shown as `[MASK]`.
      random_token_rate: share of them that are shown as tokens drawn uniformly.
      masking: `token`, `whole_word` or `span`.
      rate_start: rate in the first update, from where it changes linearly to `rate` in the last; none: `rate`.
    """

    rate: float
    mask_token_rate: float
    random_token_rate: float
    masking: str = "token"
    rate_start: float | None = None
    name: ClassVar[str] = "masked"
    has_accuracy: ClassVar[bool] = True

    @property
    def pattern(self) -> Pattern:
        """Both sides."""
        return BOTH_SIDES

    def lengths(self, raw_length: int) -> Lengths:
        """As many positions as raw tokens."""
        return Lengths(raw_length)

    def expected_targets(self, raw_length: int) -> float:
        """The share at the mean of the rates of a run."""
        mean = self.rate if self.rate_start is None else (self.rate + self.rate_start) / 2
        return max(1.0, mean * raw_length)

    def max_targets(self, sequence_length: int) -> int:
        """Positions that the head is computed at: the most that can be chosen, in steps of 8 so that near rates share a
        compiled program."""
        most = max(1, round(max(self.rate, self.rate_start or 0.0) * sequence_length))
        return min(sequence_length, -(-most // 8) * 8)

    def corrupt(self, windows: Windows, draws: Draws) -> dict[str, np.ndarray]:
        """Shows chosen tokens as `[MASK]`, as a random ordinary token, or as they are."""
        shown, chosen = self.masked(windows.tokens, windows.segment_ids, draws)
        return {
            "tokens": shown,
            "segment_ids": windows.segment_ids,
            "positions": windows.positions,
            "targets": windows.tokens,
            "weights": chosen.astype(np.float32),
        }

    def masked(
        self, tokens: Int32[np.ndarray, "batch seq"], segment_ids: Int32[np.ndarray, "batch seq"], draws: Draws
    ) -> tuple[Int32[np.ndarray, "batch seq"], Bool[np.ndarray, "batch seq"]]:
        """What is shown, and which places are to be restored."""
        length = tokens.shape[1]
        special = np.asarray(self.vocabulary.special)
        candidates = (segment_ids > 0) & ~np.isin(tokens, special)
        count = candidates.sum(axis=1)
        rate: float | np.ndarray = self.rate
        if self.rate_start is not None and draws.progress is not None:
            rate = self.rate_start + (self.rate - self.rate_start) * draws.progress
        wanted = np.minimum(count, np.maximum(1, np.rint(rate * count).astype(np.int64)))
        begins = units.begins(self.masking, self.vocabulary, tokens, segment_ids, candidates, draws)
        scores = draws.uniform("choose", length)
        chosen = units.choose(candidates, begins, scores, wanted, passes_over=self.masking != "span")
        kind = units.at_begins(begins.groups, draws.uniform("kind", length))
        ordinary = np.setdiff1d(np.arange(self.vocabulary.size), special)
        random_tokens = ordinary[(draws.uniform("token", length) * len(ordinary)).astype(np.int64)]
        shown = np.where(chosen & (kind < self.mask_token_rate), self.vocabulary.mask, tokens)
        drawn = chosen & (kind >= self.mask_token_rate) & (kind < self.mask_token_rate + self.random_token_rate)
        return np.where(drawn, random_tokens, shown).astype(np.int32), chosen

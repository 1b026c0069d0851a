"""Causal language modelling: each token from those before it in its document."""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Int64

from research.data.draws import Draws
from research.data.windows import Windows
from research.kernels import Pattern
from research.objectives.terms import BACKWARD, Lengths, Objective


@dataclasses.dataclass(frozen=True)
class Causal(Objective):
    """Every token of a window is a target; its input is the token before it, or `bos` at the start of a document."""

    name: ClassVar[str] = "causal"
    predicts_text: ClassVar[bool] = True

    @property
    def pattern(self) -> Pattern:
        """What stands before."""
        return BACKWARD

    def lengths(self, raw_length: int) -> Lengths:
        """As many positions as raw tokens."""
        return Lengths(raw_length)

    def expected_targets(self, raw_length: int) -> float:
        """All."""
        return float(raw_length)

    def corrupt(self, windows: Windows, draws: Draws) -> dict[str, np.ndarray]:
        """The tokens themselves as targets, shifted by one as inputs; nothing is drawn."""
        del draws
        return self._next_tokens(windows)

    @property
    def continues(self) -> bool:
        """It does."""
        return True

    def continuation(self, windows: Windows, given: Int64[np.ndarray, "batch"]) -> dict[str, np.ndarray]:
        """The same inputs and targets; what is given weighs nothing."""
        batch = self._next_tokens(windows)
        batch["weights"] *= windows.positions >= given[:, None]
        return batch

    def _next_tokens(self, windows: Windows) -> dict[str, np.ndarray]:
        before = np.concatenate([windows.left[:, None], windows.tokens[:, :-1]], axis=1)
        begins = windows.segment_ids[:, 1:] != windows.segment_ids[:, :-1]
        before[:, 1:][begins] = self.vocabulary.bos
        real = windows.segment_ids > 0
        return {
            "tokens": np.where(real, before, self.vocabulary.pad).astype(np.int32),
            "segment_ids": windows.segment_ids,
            "positions": windows.positions,
            "targets": windows.tokens,
            "weights": real.astype(np.float32),
        }

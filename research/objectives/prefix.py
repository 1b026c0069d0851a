"""Prefix language modelling (Liu et al. 2018, section 4.2; Raffel et al. 2020, section 3.2.1): the rest of a document
from a beginning that is read from both sides."""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Int64

from research.data.draws import Draws
from research.data.windows import Windows
from research.kernels import Pattern
from research.objectives.causal import Causal
from research.objectives.terms import PREFIX


@dataclasses.dataclass(frozen=True)
class Prefix(Causal):
    """As causal, but a beginning of each piece of a document is given: no target, and seen from all of the piece.

    Attributes:
      fraction: share of a piece that is given; none: drawn uniformly. The last token is always predicted.
    """

    fraction: float | None = None
    name: ClassVar[str] = "prefix"
    predicts_text: ClassVar[bool] = False

    @property
    def pattern(self) -> Pattern:
        """What stands before, and all of the prefix."""
        return PREFIX

    def expected_targets(self, raw_length: int) -> float:
        """The share that is not given; of `n` tokens 0 to `n - 1` are, each as often."""
        return (raw_length + 1) / 2 if self.fraction is None else raw_length * (1 - self.fraction)

    def corrupt(self, windows: Windows, draws: Draws) -> dict[str, np.ndarray]:
        """The causal batch with flags at the inputs that are given, and no weight at targets that are."""
        batch = super().corrupt(windows, draws)
        lengths = piece_lengths(windows)
        begins = np.arange(windows.raw_length)[None, :] - windows.positions
        share = np.take_along_axis(draws.uniform("prefix", windows.raw_length), begins, axis=1)
        given = given_tokens(lengths, share, self.fraction)
        real = windows.segment_ids > 0
        # Position `i` of a piece holds token `i - 1`: the inputs of `given` tokens are at positions 1 to `given`.
        batch["prefix"] = (real & (given > 0) & (windows.positions <= given)).astype(np.int32)
        batch["weights"] = (real & (windows.positions >= given)).astype(np.float32)
        return batch

    def continuation(self, windows: Windows, given: Int64[np.ndarray, "batch"]) -> dict[str, np.ndarray]:
        """What is given is the prefix."""
        batch = super().continuation(windows, given)
        batch["prefix"] = ((windows.segment_ids > 0) & (windows.positions <= given[:, None])).astype(np.int32)
        return batch


def piece_lengths(windows: Windows) -> np.ndarray:
    """At each place the number of tokens of the piece that it belongs to; 0 in padding."""
    rows = np.arange(len(windows.tokens))[:, None] * (windows.raw_length + 1)
    keys = rows + windows.segment_ids
    counts = np.bincount(keys.reshape(-1), minlength=len(windows.tokens) * (windows.raw_length + 1))
    return np.where(windows.segment_ids > 0, counts[keys], 0)


def given_tokens(lengths: np.ndarray, share: np.ndarray, fraction: float | None) -> np.ndarray:
    """How many of `lengths` tokens are given: a fraction, or uniformly 0 to all but one by `share` in [0, 1)."""
    wanted = share * lengths if fraction is None else np.rint(fraction * lengths)
    return np.clip(wanted.astype(np.int64), 0, np.maximum(lengths - 1, 0))

"""Causal language modelling: each token from those before it in its document."""

import dataclasses

import numpy as np
from jaxtyping import Array, Float, Int

from research.data.draws import Draws
from research.data.windows import Windows
from research.kernels import Pattern
from research.objectives.terms import Batch, Objective
from research.vocabulary import Vocabulary

BACKWARD = Pattern(causal=True)


@dataclasses.dataclass(frozen=True)
class Causal(Objective):
    """Every token of a window is a target; its input is the token before it, or `bos` at the start of a document."""

    vocabulary: Vocabulary
    name: str = "causal"
    pattern: Pattern = BACKWARD

    def raw_length(self, sequence_length: int) -> int:
        """As many raw tokens as positions."""
        return sequence_length

    def corrupt(self, windows: Windows, draws: Draws) -> dict[str, np.ndarray]:
        """The tokens themselves as targets, shifted by one as inputs; nothing is drawn."""
        del draws
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

    def select(
        self, hidden: Float[Array, "batch seq embed"], batch: Batch
    ) -> tuple[Float[Array, "chosen embed"], Int[Array, " chosen"], Float[Array, " chosen"]]:
        """All positions."""
        return hidden.reshape(-1, hidden.shape[-1]), batch["targets"].reshape(-1), batch["weights"].reshape(-1)

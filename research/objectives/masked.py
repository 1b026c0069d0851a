"""Masked language modelling (Devlin et al. 2019, section 3.1): restore chosen tokens from both sides."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from research.data.draws import Draws
from research.data.windows import Windows
from research.kernels import Pattern
from research.objectives.terms import Batch, Objective
from research.vocabulary import Vocabulary

BOTH_SIDES = Pattern(causal=False)


@dataclasses.dataclass(frozen=True)
class Masked(Objective):
    """A share of each window's tokens is a target: shown as `[MASK]`, as a random token, or as it is.

    Attributes:
      vocabulary: special tokens are neither chosen nor drawn.
      rate: share of a window's tokens that are chosen, rounded; at least one.
      mask_token_rate: share of the chosen that is shown as `[MASK]`.
      random_token_rate: share of the chosen that is shown as a token drawn uniformly.
    """

    vocabulary: Vocabulary
    rate: float
    mask_token_rate: float
    random_token_rate: float
    name: str = "masked"
    pattern: Pattern = BOTH_SIDES

    def raw_length(self, sequence_length: int) -> int:
        """As many raw tokens as positions."""
        return sequence_length

    def max_targets(self, sequence_length: int) -> int:
        """Positions that the head is computed at: the most that can be chosen, in steps of 8 so that near rates share a
        compiled program."""
        most = max(1, round(self.rate * sequence_length))
        return min(sequence_length, -(-most // 8) * 8)

    def corrupt(self, windows: Windows, draws: Draws) -> dict[str, np.ndarray]:
        """Shows chosen tokens as `[MASK]`, as a random ordinary token, or as they are."""
        length = windows.tokens.shape[1]
        special = np.asarray(self.vocabulary.special)
        candidates = (windows.segment_ids > 0) & ~np.isin(windows.tokens, special)
        count = candidates.sum(axis=1)
        wanted = np.minimum(count, np.maximum(1, np.rint(self.rate * count).astype(np.int64)))
        order = np.argsort(np.where(candidates, draws.uniform("choose", length), 2.0), axis=1, kind="stable")
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.arange(length)[None, :], axis=1)
        chosen = rank < wanted[:, None]

        kind = draws.uniform("kind", length)
        ordinary = np.setdiff1d(np.arange(self.vocabulary.size), special)
        random_tokens = ordinary[(draws.uniform("token", length) * len(ordinary)).astype(np.int64)]
        shown = np.where(chosen & (kind < self.mask_token_rate), self.vocabulary.mask, windows.tokens)
        drawn = chosen & (kind >= self.mask_token_rate) & (kind < self.mask_token_rate + self.random_token_rate)
        return {
            "tokens": np.where(drawn, random_tokens, shown).astype(np.int32),
            "segment_ids": windows.segment_ids,
            "positions": windows.positions,
            "targets": windows.tokens,
            "weights": chosen.astype(np.float32),
        }

    def select(
        self, hidden: Float[Array, "batch seq embed"], batch: Batch
    ) -> tuple[Float[Array, "chosen embed"], Int[Array, " chosen"], Float[Array, " chosen"]]:
        """The chosen positions of each row, and as many others of weight zero as `max_targets` leaves room for."""
        weights, places = jax.lax.top_k(batch["weights"], self.max_targets(hidden.shape[1]))
        picked = jnp.take_along_axis(hidden, places[:, :, None], axis=1)
        targets = jnp.take_along_axis(batch["targets"], places, axis=1)
        return picked.reshape(-1, hidden.shape[-1]), targets.reshape(-1), weights.reshape(-1)

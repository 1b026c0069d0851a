"""The interface of an objective, and a loss as a named sum over a named weight."""

import abc
import bisect
import dataclasses
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int64

from research.data.draws import Draws
from research.data.windows import Windows
from research.errors import UserError
from research.kernels import Pattern
from research.models import Model, Outputs
from research.vocabulary import Vocabulary

Batch = Mapping[str, Array]
BACKWARD = Pattern(causal=True)
BOTH_SIDES = Pattern(causal=False)
PREFIX = Pattern(causal=True, prefix=True)


class Term(NamedTuple):
    """One part of a loss: `coefficient * sum / weight`, sums and weights added over micro-batches and devices first.

    A coefficient of 0 means that the term is reported and not minimised.
    """

    sum: Float[Array, ""]
    weight: Float[Array, ""]
    coefficient: float


class Lengths(NamedTuple):
    """Positions of a row: of the stack that predicts, and of the encoder (0: there is none)."""

    sequence: int
    encoder: int = 0


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """What is corrupted, what attention may see, what is predicted.

    A batch holds int32 `tokens`, `segment_ids` (0: padding), `positions` and `targets`, and float32 `weights`, each
    `[batch, seq]`; where there are any, int32 `prefix` (1: seen from everywhere in its segment) and `types` beside
    them, `encoder_tokens`, `encoder_segment_ids` and `encoder_positions` `[batch, encoder_seq]`, and what belongs to a
    whole row `[batch]`. Masks are never built on the host. Each piece of a document is corrupted on its own.

    Attributes:
      vocabulary: of the tokenizer, extended by the ids that the objective writes.
      label_smoothing: probability that a target gives to all ids alike.
      z_loss: coefficient of the squared log-normaliser.
    """

    vocabulary: Vocabulary
    _: dataclasses.KW_ONLY
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    name: ClassVar[str]
    # Held-out windows and training windows come with another window beside them.
    partners: ClassVar[bool] = False
    # Every token of the text is predicted, so that the sum of the losses is a code length of the text.
    predicts_text: ClassVar[bool] = False
    # The share of targets that are the most probable id is a measure that people know.
    has_accuracy: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def pattern(self) -> Pattern:
        """What attention may see of a segment."""

    @abc.abstractmethod
    def lengths(self, raw_length: int) -> Lengths:
        """Positions of the rows that windows of `raw_length` tokens become."""

    @abc.abstractmethod
    def expected_targets(self, raw_length: int) -> float:
        """Mean number of targets in a window of `raw_length` tokens that is one document, up to rounding."""

    @abc.abstractmethod
    def corrupt(self, windows: Windows, draws: Draws) -> dict[str, np.ndarray]:
        """The batch that raw windows become; `draws` are keyed by seed, epoch and window."""

    @property
    def continues(self) -> bool:
        """Whether its models are asked for a text from what stands before it; `continuation` says in which form."""
        return False

    def continuation(self, windows: Windows, given: Int64[np.ndarray, "batch"]) -> dict[str, np.ndarray]:
        """The batch that asks for the end of each window from its beginning, in the form that training asked in.

        The targets of weight one are the tokens behind the given ones, in their order, whatever the objective: what it
        writes around them weighs nothing. No row is longer than the longest of the batch needs. Nothing is drawn.

        Args:
          windows: a piece of one document each, at the begin of its row, without special tokens.
          given: tokens of each that may be read, at least one; at least one is left.

        Raises:
          UserError: the objective predicts no text from what stands before it.
        """
        del windows, given
        raise UserError(
            f"objective.name={self.name} predicts no text from what stands before it: ask its models for something else"
        )

    def raw_length(self, sequence_length: int) -> int:
        """Most raw tokens of a window that becomes `sequence_length` positions at most; 0 if not even one does."""
        return bisect.bisect_right(range(1, 4 * sequence_length), sequence_length, key=lambda n: max(self.lengths(n)))

    def max_targets(self, sequence_length: int) -> int:
        """Positions of a row that the head is computed at."""
        return sequence_length

    def select(
        self, hidden: Float[Array, "batch seq embed"], batch: Batch
    ) -> tuple[Float[Array, "chosen embed"], Int[Array, " chosen"], Float[Array, " chosen"]]:
        """Hidden states, targets and weights of the predicted positions, and of others of weight zero up to
        `max_targets` a row."""
        length, width = hidden.shape[1:]
        targets, weights = batch["targets"], batch["weights"]
        if (most := self.max_targets(length)) < length:
            weights, places = jax.lax.top_k(weights, most)
            hidden = jnp.take_along_axis(hidden, places[:, :, None], axis=1)
            targets = jnp.take_along_axis(targets, places, axis=1)
        return hidden.reshape(-1, width), targets.reshape(-1), weights.reshape(-1)

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """The weight of each term over a whole batch `[..., rows, seq]`, known before the model runs."""
        targets = jnp.sum(batch["weights"])
        known = {"loss": targets}
        if self.label_smoothing or self.z_loss:
            known |= {"cross_entropy": targets, "z": targets}
        return known

    def terms(self, model: Model, params: Mapping, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """The named parts of the loss."""
        hidden, targets, weights = self.select(outputs.hidden, batch)
        losses = model.vocabulary_loss(params, hidden, targets, weights, self.label_smoothing, self.z_loss)
        known = self.weights(batch)
        found = {"loss": Term(losses.total, known["loss"], 1.0)}
        if self.label_smoothing or self.z_loss:
            found["cross_entropy"] = Term(losses.cross_entropy, known["cross_entropy"], 0.0)
            found["z"] = Term(losses.z, known["z"], 0.0)
        return found

    def hits(
        self, model: Model, params: Mapping, outputs: Outputs, batch: Batch
    ) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
        """How often the most probable answer is right, and how often it was asked for, by question; "" is the tokens'.

        None of it where every token is a target.
        """
        if not self.has_accuracy:
            return {}
        hidden, targets, weights = self.select(outputs.hidden, batch)
        right = (model.predictions(params, hidden) == targets).astype(jnp.float32)
        return {"": (jnp.sum(weights * right), jnp.sum(weights))}

"""The interface of an objective, and a loss as a named sum over a named weight."""

import abc
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from research.data.draws import Draws
from research.data.windows import Windows
from research.kernels import Pattern
from research.models import Outputs, Transformer

Batch = Mapping[str, Array]


class Term(NamedTuple):
    """One part of a loss: `coefficient * sum / weight`, sums and weights added over micro-batches and devices first."""

    sum: Float[Array, ""]
    weight: Float[Array, ""]
    coefficient: float


class Objective(abc.ABC):
    """What is corrupted, what attention may see, what is predicted.

    A batch holds int32 `tokens`, `segment_ids` (0: padding), `positions` and `targets`, and float32 `weights`, each
    `[batch, seq]`; masks are never built on the host.
    """

    name: str
    pattern: Pattern

    @abc.abstractmethod
    def raw_length(self, sequence_length: int) -> int:
        """Raw tokens in a window that becomes `sequence_length` positions."""

    @abc.abstractmethod
    def corrupt(self, windows: Windows, draws: Draws) -> dict[str, np.ndarray]:
        """The batch that raw windows become; `draws` are keyed by seed, epoch and window."""

    @abc.abstractmethod
    def select(
        self, hidden: Float[Array, "batch seq embed"], batch: Batch
    ) -> tuple[Float[Array, "chosen embed"], Int[Array, " chosen"], Float[Array, " chosen"]]:
        """Hidden states, targets and weights of the positions that are predicted."""

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """The weight of each term over a whole batch, known before the model runs."""
        return {"loss": jnp.sum(batch["weights"])}

    def terms(self, model: Transformer, params: Mapping, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """The named parts of the loss."""
        hidden, targets, weights = self.select(outputs.hidden, batch)
        total = model.vocabulary_loss(params, hidden, targets, weights)
        return {"loss": Term(total, self.weights(batch)["loss"], 1.0)}

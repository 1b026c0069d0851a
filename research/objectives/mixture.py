"""Several objectives in one run: each window is given to one of them."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int64

from research.data.draws import Draws
from research.data.windows import Windows
from research.kernels import Pattern
from research.models import Model, Outputs
from research.objectives.terms import BACKWARD, PREFIX, Batch, Lengths, Objective, Term


@dataclasses.dataclass(frozen=True)
class Mixture(Objective):
    """A window belongs to one member, by a draw of its own; its row is what that member makes of it, padded.

    All rows share one program: a causal row flags no position as a prefix, a bidirectional one all. `members` `[batch]`
    numbers each row's member. The loss is the mean over all targets, so that an objective with more targets a window
    weighs more; the loss of each member is reported beside it.

    Attributes:
      parts: members and their shares of the windows, which add up to one.
    """

    parts: tuple[tuple[Objective, float], ...]
    name: ClassVar[str] = "mixture"

    @property
    def members(self) -> list[Objective]:
        """The objectives."""
        return [member for member, _ in self.parts]

    @property
    def pattern(self) -> Pattern:
        """What stands before, and what is flagged, where a member flags anything."""
        return BACKWARD if all(member.pattern == BACKWARD for member in self.members) else PREFIX

    def lengths(self, raw_length: int) -> Lengths:
        """The longest rows."""
        return Lengths(*map(max, zip(*(member.lengths(raw_length) for member in self.members), strict=True)))

    def expected_targets(self, raw_length: int) -> float:
        """The mean over the members."""
        return sum(share * member.expected_targets(raw_length) for member, share in self.parts)

    def corrupt(self, windows: Windows, draws: Draws) -> dict[str, np.ndarray]:
        """What the members make of their windows, each row in its place."""
        lengths = self.lengths(windows.raw_length)
        rows = len(windows.tokens)
        edges = np.cumsum([share for _, share in self.parts])[:-1]
        members = np.searchsorted(edges, draws.uniform("member", 1)[:, 0], side="right")
        batch: dict[str, np.ndarray] = {"members": members.astype(np.int32)}
        for name in ("tokens", "segment_ids", "positions", "targets", "weights", "prefix"):
            batch[name] = np.zeros((rows, lengths.sequence), np.float32 if name == "weights" else np.int32)
        for name in ("tokens", "segment_ids", "positions") if lengths.encoder else ():
            batch[f"encoder_{name}"] = np.zeros((rows, lengths.encoder), np.int32)
        for name in {"tokens", "targets", "encoder_tokens"} & set(batch):
            batch[name][:] = self.vocabulary.pad
        for number, member in enumerate(self.members):
            own = np.flatnonzero(members == number)
            made = dict(member.corrupt(windows.rows(own), draws.rows(own))) if len(own) else {}
            if made and not member.pattern.causal:
                made["prefix"] = (made["segment_ids"] > 0).astype(np.int32)
            for name, array in made.items():
                batch[name][own, : array.shape[1]] = array
        if self.pattern == BACKWARD:
            del batch["prefix"]
        return batch

    @property
    def continues(self) -> bool:
        """Where one of its members does."""
        return any(member.continues for member in self.members)

    def continuation(self, windows: Windows, given: Int64[np.ndarray, "batch"]) -> dict[str, np.ndarray]:
        """That of the first member that has one."""
        member = next((member for member in self.members if member.continues), None)
        if member is None:
            return super().continuation(windows, given)
        batch = member.continuation(windows, given)
        if self.pattern.prefix and "prefix" not in batch:
            batch["prefix"] = np.zeros_like(batch["tokens"])
        return batch

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Of each member also the number of its targets."""
        own = {
            member.name: jnp.sum(batch["weights"] * _of(number, batch)) for number, member in enumerate(self.members)
        }
        return super().weights(batch) | own

    def terms(self, model: Model, params: Mapping, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """The loss, and the cross entropy of each member, which is reported and not minimised.

        The figures of the members cost a forward pass of the vocabulary head for each of them.
        """
        found, known = super().terms(model, params, outputs, batch), self.weights(batch)
        fixed, hidden = jax.lax.stop_gradient((params, outputs.hidden))
        for number, member in enumerate(self.members):
            chosen = {**batch, "weights": batch["weights"] * _of(number, batch)}
            losses = model.vocabulary_loss(fixed, *self.select(hidden, chosen))
            found[member.name] = Term(losses.cross_entropy, known[member.name], 0.0)
        return found


def _of(number: int, batch: Batch) -> Float[Array, "*rows 1"]:
    """1 for the rows of a member."""
    return (batch["members"] == number).astype(jnp.float32)[..., None]

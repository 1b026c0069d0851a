"""Two sentences and a question about them, jointly with masked language modelling.

Next-sentence prediction (Devlin et al. 2019, section 3.1, task 2) asks whether the second follows the first in the
text; sentence-order prediction (Lan et al. 2020, section 3.1) whether two that follow each other were swapped.
"Sentence" is what those papers mean by it: a stretch of text.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from research.data.draws import Draws
from research.data.windows import Windows
from research.models import Model, Outputs
from research.objectives.masked import Masked
from research.objectives.terms import Batch, Lengths, Term


@dataclasses.dataclass(frozen=True)
class SentencePairs(Masked):
    """The longest piece of a window is cut in two, which stand first in the row: `bos` A `eos` B `eos`, of types 0
    and 1. The other pieces follow as they are; all are masked.

    Beside the batch of masked language modelling: `types`, and for each row `labels` (0: as in the text, 1: swapped, or
    of another document) and `label_weights` (0 where the longest piece cannot be cut).

    Attributes:
      pairs: `order` or `next`.
    """

    pairs: str = "order"
    name: ClassVar[str] = "sentence_pairs"
    partners: ClassVar[bool] = True

    def lengths(self, raw_length: int) -> Lengths:
        """`bos` and two `eos` more than raw tokens."""
        return Lengths(raw_length + 3)

    def expected_targets(self, raw_length: int) -> float:
        """The share that is masked, where a second sentence of another document is as long as the one it replaces."""
        return super().expected_targets(raw_length)

    def corrupt(self, windows: Windows, draws: Draws) -> dict[str, np.ndarray]:
        """Cuts, swaps or replaces, and masks."""
        shape = (len(windows.tokens), self.lengths(windows.raw_length).sequence)
        tokens = np.full(shape, self.vocabulary.pad, np.int32)
        segment_ids, positions, types = (np.zeros(shape, np.int32) for _ in range(3))
        labels, label_weights = np.zeros(shape[0], np.int32), np.zeros(shape[0], np.float32)
        uniform = draws.uniform("pair", 3)
        for row in range(shape[0]):
            pieces, pair = self._pieces(windows, row)
            if pair is not None:
                first, second, labels[row] = self._pair(windows, row, pair, uniform[row])
                label_weights[row] = 1.0
                bos, eos = [self.vocabulary.bos], [self.vocabulary.eos]
                pieces.insert(0, np.concatenate([bos, first, eos, second, eos]))
                types[row, len(first) + 2 : len(first) + len(second) + 3] = 1
            begin = 0
            for segment, piece in enumerate(pieces, 1):
                end = begin + len(piece)
                tokens[row, begin:end], segment_ids[row, begin:end] = piece, segment
                positions[row, begin:end] = np.arange(end - begin)
                begin = end
        shown, chosen = self.masked(tokens, segment_ids, draws)
        return {
            "tokens": shown,
            "segment_ids": segment_ids,
            "positions": positions,
            "targets": tokens,
            "weights": chosen.astype(np.float32),
            "types": types,
            "labels": labels,
            "label_weights": label_weights,
        }

    def _pieces(self, windows: Windows, row: int) -> tuple[list[np.ndarray], np.ndarray | None]:
        """The pieces of a row, without its longest if that has two tokens before `eos`, and those."""
        pieces = [windows.tokens[row, begin:end] for begin, end in windows.documents(row)]
        if not pieces:
            return pieces, None
        longest = int(np.argmax([len(piece) for piece in pieces]))
        text = pieces[longest]
        text = text[:-1] if text[-1] == self.vocabulary.eos else text
        if len(text) < 2:
            return pieces, None
        return pieces[:longest] + pieces[longest + 1 :], text

    def _pair(
        self, windows: Windows, row: int, text: np.ndarray, uniform: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """First and second sentence, and the label."""
        cut = 1 + int(uniform[0] * (len(text) - 1))
        first, second = text[:cut], text[cut:]
        if uniform[1] < 0.5:
            return first, second, 0
        if self.pairs == "order":
            return second, first, 1
        partners = windows.partners
        assert partners is not None
        _, other = self._pieces(partners, row) if partners.ids[row] != windows.ids[row] else ([], None)
        if other is None:
            return first, second, 0
        start = int(uniform[2] * max(1, len(other) - len(second) + 1))
        return first, other[start : start + len(second)], 1

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """That of the pairs is the number of rows that have one."""
        return super().weights(batch) | {"pairs": jnp.sum(batch["label_weights"])}

    def terms(self, model: Model, params: Mapping, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """The masked loss and the cross entropy of the labels, each of coefficient one."""
        logits = model.classify_pairs(params, outputs.hidden)
        chosen = jnp.take_along_axis(logits, batch["labels"][:, None], axis=-1)[:, 0]
        losses = batch["label_weights"] * (jax.nn.logsumexp(logits, axis=-1) - chosen)
        pairs = Term(jnp.sum(losses), self.weights(batch)["pairs"], 1.0)
        return super().terms(model, params, outputs, batch) | {"pairs": pairs}

    def hits(
        self, model: Model, params: Mapping, outputs: Outputs, batch: Batch
    ) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
        """Of the masked tokens, and of the pairs."""
        found = jnp.argmax(model.classify_pairs(params, outputs.hidden), axis=-1).astype(jnp.int32)
        right = jnp.sum(batch["label_weights"] * (found == batch["labels"]).astype(jnp.float32))
        pairs = {"pairs": (right, jnp.sum(batch["label_weights"]))}
        return super().hits(model, params, outputs, batch) | pairs

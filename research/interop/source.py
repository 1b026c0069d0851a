"""What an importer gives before any weight is read: settings, and how each leaf is read, slice by slice."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from research.data.tokenizer import Tokenizer
from research.settings import ModelSettings


class Leaf(NamedTuple):
    """One leaf of a model's weights, not yet read.

    Attributes:
      shape: of the whole leaf, as the model declares it.
      dtype: of what `read` gives.
      read: `read(index)` gives the part `index` (one slice a dimension) and touches little more of the file than that.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[tuple[slice, ...]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Source:
    """A model in someone else's format, opened.

    Attributes:
      model: shape and numerics.
      vocab_size: rows of the embedding.
      objective: what the model was trained on, and so its attention pattern: `causal`, `masked` or `span_corruption`.
      leaves: how to read each weight, by its path in the model.
      tokenizer: the tokenizer or where it lies; none where the source has none.
    """

    model: ModelSettings
    vocab_size: int
    objective: str
    leaves: Mapping[str, Leaf]
    tokenizer: Path | Tokenizer | None

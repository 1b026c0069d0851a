"""A Hugging Face directory, opened: what model it is, and how its weights are read."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from research.errors import UserError
from research.interop import storage, weights
from research.interop.core import core
from research.interop.families import FAMILIES
from research.interop.family import HEAD, PAIRS, Family
from research.interop.source import Source
from research.interop.traits import Config
from research.interop.weights import Piece
from research.models import Model
from research.settings import ModelSettings

CONFIG = "config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
# Names that BERT's weights had before LayerNorm took those of PyTorch.
_OLD_NAMES = {"gamma": "weight", "beta": "bias"}


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model of `transformers`.

    Attributes:
      source: settings, weights and tokenizer.
      family: its model type.
      parts: what it has beside its body.
      config: its config.json.
    """

    source: Source
    family: Family
    parts: frozenset[str]
    config: Mapping[str, Any]


def open_directory(directory: Path) -> Opened:
    """Opens a model's directory; of the weights only the headers are read.

    Raises:
      UserError: what is there is not a model that the core can be; the sentence names file, key or tensor.
    """
    if not directory.is_dir():
        raise UserError(f"there is no directory {directory}")
    where = str(directory / CONFIG)
    values = storage.read_json(directory / CONFIG)
    family, architecture = identify(values, where)
    tensors = _named(storage.open_directory(directory), family)
    parts = family.found_parts(architecture, tensors)
    model = family.read(Config(where, values, family.defaults), parts)
    every = pieces(family, core(model), parts, bare=is_bare(family, tensors))
    _resolve_copies(tensors, {piece.name for some in every.values() for piece in some}, family, directory)
    weights.check(tensors, every, str(directory), family.ignored)
    leaves = weights.leaves(tensors, core(model).parameters(), every)
    kept = {leaf.dtype for leaf in leaves.values()}
    brain = np.dtype(ml_dtypes.bfloat16)
    model = dataclasses.replace(model, parameter_dtype="bfloat16" if kept == {brain} else "float32")
    assert model.vocab_size is not None
    tokenizer = directory if any((directory / name).is_file() for name in TOKENIZER_FILES) else None
    return Opened(Source(model, model.vocab_size, family.objective, leaves, tokenizer), family, parts, values)


def identify(values: Mapping[str, Any], where: str) -> tuple[Family, str]:
    """The family and the architecture that a config names.

    Raises:
      UserError: Isoflop does not have it.
    """
    kind = str(values.get("model_type"))
    if kind not in FAMILIES:
        raise UserError(f"{where}: model_type={kind} is not one of {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    listed = values.get("architectures") or [next(iter(family.architectures))]
    named = str(listed[0] if isinstance(listed, list) else listed)
    if named not in family.architectures:
        raise UserError(f"{where}: architectures={named!r} is not one of {', '.join(family.architectures)}")
    return family, named


def _named(tensors: Mapping[str, np.ndarray], family: Family) -> dict[str, np.ndarray]:
    """The tensors by the names that are in use today."""
    if not family.model_type.endswith("bert"):
        return dict(tensors)
    pattern = r"(?<=LayerNorm\.)(gamma|beta)$"
    return {re.sub(pattern, lambda match: _OLD_NAMES[match[1]], name): found for name, found in tensors.items()}


def is_bare(family: Family, tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the body's tensors have no prefix."""
    return not any(name.startswith(family.prefix) for name in tensors)


def pieces(family: Family, model: Model, parts: frozenset[str], bare: bool | None = None) -> dict[str, list[Piece]]:
    """Which tensor holds which part of the model's weights; by default as `transformers` names them."""
    settings: ModelSettings = model.settings

    def count(path: str) -> int:
        return settings.encoder_layers if path.startswith("encoder/") else settings.num_layers

    without = not parts & {HEAD, PAIRS} if bare is None else bare
    return weights.pieces(model.parameters(), family.rows(settings, without), count)


def _resolve_copies(tensors: dict[str, np.ndarray], needed: set[str], family: Family, directory: Path) -> None:
    """Removes tensors that repeat another, and puts a copy in the place of an original that is not there.

    Raises:
      UserError: a copy differs, though the config says that the two are one.
    """
    for name, original in family.copies.items():
        if name in needed or name not in tensors:
            continue
        copy = tensors.pop(name)
        kept = tensors.setdefault(original, copy)
        if kept.shape != copy.shape or not np.array_equal(_bits(kept), _bits(copy)):
            raise UserError(
                f"{directory}: the tensors {name} and {original} differ, though the config says that they are tied "
                "(tie_word_embeddings): set it to false, or mend the weights"
            )


def _bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint16) if array.dtype.itemsize == 2 else array

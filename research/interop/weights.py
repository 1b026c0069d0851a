"""Our weights in another library's tensors: which tensor holds which part of a leaf, both ways."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from research.errors import UserError
from research.interop.layout import layout
from research.interop.names import Row
from research.interop.source import Leaf
from research.interop.storage import Stored, listed
from research.parameters import Parameter


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a leaf that lies in one tensor.

    Attributes:
      path: of the leaf.
      index: place in the leaf's stacked dimensions: none, (layer,) or (layer, expert).
      shape: of the rest.
      name: of the tensor.
      layout: of the tensor, to ours.
      part: which part of the tensor.
    """

    path: str
    index: tuple[int, ...]
    shape: tuple[int, ...]
    name: str
    layout: str
    part: int

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return layout(self.layout).stored_shape(self.shape)

    def view(self, stored: np.ndarray) -> np.ndarray:
        """This piece of the tensor, as ours; nothing is copied."""
        return layout(self.layout).view(stored, self.shape, self.part)


def pieces(
    parameters: Mapping[str, Parameter], rows: Iterable[Row], layers_of: Callable[[str], int]
) -> dict[str, list[Piece]]:
    """`{path: its pieces}` for every weight of a model.

    Args:
      parameters: the model's.
      rows: names and layouts; those of weights that the model does not have are left out.
      layers_of: number of layers of the stack that a path belongs to; a leaf with fewer lacks the first ones.
    """
    found: dict[str, list[Piece]] = {}
    for row in rows:
        parameter = parameters.get(row.path)
        if parameter is None:
            continue
        assert row.path not in found, f"two rows for {row.path}"
        depth = ("{layer}" in row.name) + ("{expert}" in row.name)
        stacked, rest = parameter.shape[:depth], parameter.shape[depth:]
        first = layers_of(row.path) - stacked[0] if depth else 0
        found[row.path] = [
            Piece(row.path, index, rest, _named(row.name, index, first), row.layout, row.part)
            for index in np.ndindex(*stacked)
        ]
    lacking = sorted(parameters.keys() - found.keys())
    assert not lacking, f"no row for {lacking}"
    return found


def _named(pattern: str, index: tuple[int, ...], first: int) -> str:
    numbers = dict(zip(("layer", "expert"), (str(number) for number in index), strict=False))
    if index:
        numbers["layer"] = str(index[0] + first)
    return re.sub(r"\{(layer|expert)\}", lambda match: numbers[match[1]], pattern)


# --- from tensors -----------------------------------------------------------------------------------------------------


def check(tensors: Mapping[str, np.ndarray], every: Mapping[str, list[Piece]], where: str, ignored: str) -> None:
    """Raises `UserError` where tensors are missing, left over, or of another shape; the sentence names them.

    Args:
      tensors: what there is.
      every: what the model needs.
      where: the file or directory, for the sentence.
      ignored: regular expression of names that hold nothing that the model does not have already.
    """
    needed = {piece.name: piece for parts in every.values() for piece in parts}
    if missing := sorted(needed.keys() - tensors.keys()):
        raise UserError(f"{where} lacks the tensors {listed(missing)}: it is not the model that its config describes")
    extra = [name for name in sorted(tensors.keys() - needed.keys()) if not re.search(ignored, name)]
    if extra:
        raise UserError(f"{where} has tensors that this model has no place for: {listed(extra)}")
    for name, piece in needed.items():
        if tensors[name].shape != piece.stored_shape:
            raise UserError(
                f"{where}: the tensor {name} has the shape {list(tensors[name].shape)}, "
                f"its config asks for {list(piece.stored_shape)}"
            )
        if tensors[name].dtype.kind not in "fV":
            raise UserError(f"{where}: the tensor {name} holds {tensors[name].dtype}, not floating-point numbers")


def leaves(
    tensors: Mapping[str, np.ndarray], parameters: Mapping[str, Parameter], every: Mapping[str, list[Piece]]
) -> dict[str, Leaf]:
    """How to read each leaf from memory-mapped tensors; a leaf whose tensors differ in type has their common one."""
    found = {}
    for path, parameter in parameters.items():
        views = {piece.index: piece.view(tensors[piece.name]) for piece in every[path]}
        dtype = np.result_type(*{view.dtype for view in views.values()})
        found[path] = Leaf(parameter.shape, dtype, _reader(views, parameter.shape, dtype))
    return found


def _reader(
    views: Mapping[tuple[int, ...], np.ndarray], shape: tuple[int, ...], dtype: np.dtype
) -> Callable[[tuple[slice, ...]], np.ndarray]:
    depth = len(next(iter(views)))

    def read(index: tuple[slice, ...]) -> np.ndarray:
        chosen = [range(*part.indices(size)) for part, size in zip(index, shape, strict=True)]
        out = np.empty([len(numbers) for numbers in chosen], dtype)
        for place in np.ndindex(*out.shape[:depth]):
            stacked = tuple(numbers[at] for numbers, at in zip(chosen[:depth], place, strict=True))
            out[place] = views[stacked][index[depth:]]
        return out

    return read


# --- to tensors -------------------------------------------------------------------------------------------------------


def stored(flat: Mapping[str, Any], every: Mapping[str, list[Piece]], dtype: np.dtype | None = None) -> list[Stored]:
    """What is to be written of weights `{path: array}`, on the host or on devices; each tensor is made alone.

    Args:
      flat: the weights.
      every: their pieces.
      dtype: of all tensors; none: that of the weights.
    """
    tensors: dict[str, list[Piece]] = {}
    for parts in every.values():
        for piece in parts:
            tensors.setdefault(piece.name, []).append(piece)
    return [_one(name, parts, flat, dtype) for name, parts in tensors.items()]


def _one(name: str, parts: list[Piece], flat: Mapping[str, Any], dtype: np.dtype | None) -> Stored:
    shape = parts[0].stored_shape
    kept = np.result_type(*{np.dtype(flat[piece.path].dtype) for piece in parts}) if dtype is None else dtype

    def make() -> np.ndarray:
        made = np.empty(shape, kept)
        for piece in parts:
            piece.view(made)[...] = _values(flat[piece.path], piece.index).astype(kept, copy=False)
        return made

    return Stored(name, shape, kept, make)


def _values(leaf: Any, index: tuple[int, ...]) -> np.ndarray:
    """A part of a leaf on the host. What lies on an accelerator is cut there, so that no more than the part travels."""
    elsewhere = isinstance(leaf, jax.Array) and (
        len(leaf.devices()) > 1 or next(iter(leaf.devices())).platform != "cpu"
    )
    return np.asarray(leaf[index]) if elsewhere and index else np.asarray(leaf)[index]

"""Writing GGUF files."""

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from research.data.tokenizer import Tokenizer
from research.errors import UserError
from research.interop.gguf_architectures import (
    ROTARY_FACTORS,
    Architecture,
    architecture_of,
    rotary_factors,
    write_keys,
)
from research.interop.gguf_tensors import BFLOAT16, DTYPES, FLOAT32, library, pieces_of, to_theirs
from research.interop.gguf_tokenizer import tokenizer_keys
from research.interop.source import Leaf
from research.interop.weights import Piece
from research.parameters import Parameter
from research.settings import ModelSettings

Making = tuple[str, tuple[int, ...], np.dtype, Callable[[], np.ndarray]]


def write_gguf(
    path: Path,
    settings: ModelSettings,
    vocab_size: int,
    leaves: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    dtype: str = "float32",
) -> None:
    """Writes a model as a GGUF file, one tensor in memory at a time.

    Vectors (norms, biases) are float32 whatever the type of the matrices, as llama.cpp wants them.

    Args:
      path: must not exist yet.
      settings: of the model; `max_positions` is the context that the file states.
      vocab_size: rows of the embedding; ids that the tokenizer lacks are named as unused.
      leaves: each weight by its path: an array on the host or on devices, or a `Leaf`.
      tokenizer: written into the file.
      dtype: of the matrices: float32, float16 or bfloat16.

    Raises:
      UserError: a model or tokenizer that the format has no words for, or a path that exists or cannot be written to.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype}: a GGUF is written in {', '.join(DTYPES)}")
    if path.exists():
        raise UserError(f"{path} exists: name a new file")
    if settings.max_positions is None:
        raise UserError("model.max_positions=none: a GGUF states the context of its model, set it")
    architecture = architecture_of(settings)
    keys = _model_keys(architecture, settings, vocab_size, dtype)
    keys |= tokenizer_keys(tokenizer, vocab_size) if tokenizer else {}
    tensors = list(_tensors(architecture, settings, vocab_size, leaves, DTYPES[dtype]))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}~", dir=path.parent))
        try:
            _write(temporary / path.name, architecture.name, keys, tensors)
            os.replace(temporary / path.name, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): make room or name another file") from error


def _write(path: Path, architecture: str, keys: Mapping[str, Any], tensors: list[Making]) -> None:
    kinds = library().GGMLQuantizationType
    writer = library().GGUFWriter(path, architecture)
    for key, value in keys.items():
        _add(writer, key, value)
    for name, shape, dtype, _ in tensors:
        raw = kinds.BF16 if dtype == BFLOAT16 else None
        writer.add_tensor_info(name, shape, dtype, math.prod(shape) * dtype.itemsize, raw)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, _, dtype, make in tensors:
            writer.write_tensor_data(np.ascontiguousarray(make(), dtype))
    finally:
        writer.close()


def _add(writer: Any, key: str, value: Any) -> None:
    """Adds a key of the type that llama.cpp reads it as."""
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    if type(value) in add:
        add[type(value)](key, value)
    else:
        writer.add_array(key, value)


def _model_keys(architecture: Architecture, settings: ModelSettings, vocab_size: int, dtype: str) -> dict[str, Any]:
    files = library().LlamaFileType
    types = {"float32": files.ALL_F32, "float16": files.MOSTLY_F16, "bfloat16": files.MOSTLY_BF16}
    own = {f"{architecture.name}.{key}": value for key, value in write_keys(settings).items()}
    return {
        "general.name": "isoflop",
        "general.file_type": int(types[dtype]),
        **own,
        f"{architecture.name}.vocab_size": vocab_size,
    }


def _tensors(
    architecture: Architecture, settings: ModelSettings, vocab_size: int, leaves: Mapping[str, Any], dtype: np.dtype
) -> Iterator[Making]:
    """Name, shape, type and values of every tensor."""
    parameters, every = pieces_of(architecture, settings, vocab_size)
    if parameters.keys() != leaves.keys():
        raise UserError(
            f"the weights {sorted(parameters.keys() ^ leaves.keys())} are missing or not the model's: give its own"
        )
    tensors: dict[str, list[Piece]] = {}
    for parts in every.values():
        for piece in parts:
            tensors.setdefault(piece.name, []).append(piece)
    for name, parts in tensors.items():
        shape = parts[0].stored_shape
        stored = dtype if len(shape) > 1 else FLOAT32
        yield name, shape, stored, partial(_made, architecture, parts, parameters, leaves, stored)
    if settings.rotary_scaling == "llama3":
        factors = rotary_factors(settings)
        yield ROTARY_FACTORS, factors.shape, FLOAT32, lambda: factors


def _made(
    architecture: Architecture,
    parts: list[Piece],
    parameters: Mapping[str, Parameter],
    leaves: Mapping[str, Any],
    dtype: np.dtype,
) -> np.ndarray:
    made = np.empty(parts[0].stored_shape, dtype)
    for piece in parts:
        piece.view(made)[...] = _values(leaves[piece.path], piece.index).astype(dtype)
    return to_theirs(architecture, parameters[parts[0].path], made)


def _values(leaf: Any, index: tuple[int, ...]) -> np.ndarray:
    if isinstance(leaf, Leaf):
        stacked = tuple(slice(i, i + 1) for i in index)
        rest = tuple(slice(0, size) for size in leaf.shape[len(index) :])
        return leaf.read(stacked + rest).reshape(leaf.shape[len(index) :])
    return np.asarray(leaf[index] if index else leaf)

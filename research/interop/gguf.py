"""GGUF files, the format of llama.cpp: read with any quantisation, written in float32, float16 or bfloat16."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from research.errors import UserError
from research.interop.gguf_architectures import ARCHITECTURES, ROTARY_FACTORS, Architecture, read_settings
from research.interop.gguf_tensors import BFLOAT16, DTYPES, FLOAT32, library, pieces_of, to_ours
from research.interop.gguf_tokenizer import read_tokenizer
from research.interop.gguf_writing import write_gguf
from research.interop.source import Leaf, Source
from research.interop.weights import Piece, check
from research.parameters import Parameter

__all__ = ["open_gguf", "write_gguf"]


def open_gguf(path: Path) -> Source:
    """A GGUF file, its weights not read yet.

    Quantised tensors are read as float32, others as they are; a leaf whose tensors differ is float32.

    Raises:
      UserError: not a GGUF, an architecture or quantisation that Isoflop does not know, tensors that are missing, left
        over or of another shape, or a tokenizer of another size; the sentence names it.
    """
    reader = _reader(path)
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    name = metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise UserError(
            f"{path}: general.architecture={name} is none that Isoflop knows: convert a model of one of "
            f"{', '.join(ARCHITECTURES)}"
        )
    architecture = ARCHITECTURES[name]
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    _check_types(path, tensors.values())
    try:
        keys = {key.removeprefix(f"{name}."): value for key, value in metadata.items() if key.startswith(f"{name}.")}
        factors = _values(tensors[ROTARY_FACTORS]) if ROTARY_FACTORS in tensors else None
        settings = read_settings(architecture, keys, tensors.keys(), factors)
        tokenizer = read_tokenizer(metadata)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if "token_embd.weight" not in tensors:
        raise UserError(f"{path} lacks the tensor token_embd.weight: convert the model again")
    vocab_size = int(tensors["token_embd.weight"].shape[-1])
    if tokenizer is not None and tokenizer.vocabulary.size != vocab_size:
        raise UserError(
            f"{path}: the tokenizer has {tokenizer.vocabulary.size} ids, but the embedding {vocab_size} rows: convert "
            "the model again"
        )
    if all(_dtype(tensor) == BFLOAT16 for tensor in tensors.values() if len(tensor.shape) > 1):
        settings = dataclasses.replace(settings, parameter_dtype="bfloat16")
    parameters, every = pieces_of(architecture, settings, vocab_size)
    shapes = {name: np.broadcast_to(np.zeros((), np.float32), _shape(tensor)) for name, tensor in tensors.items()}
    check(shapes, every, str(path), ignored=rf"^{ROTARY_FACTORS}$|\.attn_rot_embd$")
    leaves = {where: _leaf(architecture, parameter, every[where], tensors) for where, parameter in parameters.items()}
    return Source(settings, vocab_size, "causal", leaves, tokenizer)


def _reader(path: Path) -> Any:
    try:
        return library().GGUFReader(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a GGUF file") from error
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise UserError(f"{path} is not a GGUF file, or a damaged one ({error}): fetch or convert it again") from error


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))


def _dtype(tensor: Any) -> np.dtype:
    """What a tensor is read as."""
    kinds = library().GGMLQuantizationType
    return {kinds.F16: DTYPES["float16"], kinds.BF16: BFLOAT16}.get(tensor.tensor_type, FLOAT32)


def _values(tensor: Any) -> np.ndarray:
    """The numbers of a tensor, dequantised where they are quantised."""
    kinds = library().GGMLQuantizationType
    if tensor.tensor_type in {kinds.F32, kinds.F16}:
        return tensor.data
    if tensor.tensor_type == kinds.BF16:
        return tensor.data.view(BFLOAT16)
    return library().quants.dequantize(tensor.data, tensor.tensor_type)


def _check_types(path: Path, tensors: Iterable[Any]) -> None:
    """Dequantises a row of each kind."""
    for tensor in {tensor.tensor_type: tensor for tensor in tensors}.values():
        try:
            _values(tensor._replace(data=tensor.data[:1]))
        except (NotImplementedError, KeyError) as error:
            raise UserError(
                f"{path}: {tensor.name} has the type {tensor.tensor_type.name}, which cannot be dequantised: convert "
                "the model to F16, Q8_0 or another of the usual types"
            ) from error


def _leaf(architecture: Architecture, parameter: Parameter, parts: list[Piece], tensors: Mapping[str, Any]) -> Leaf:
    dtypes = {_dtype(tensors[piece.name]) for piece in parts}
    dtype = dtypes.pop() if len(dtypes) == 1 else FLOAT32
    at = {piece.index: piece for piece in parts}
    depth = len(parts[0].index)

    def value(piece: Piece) -> np.ndarray:
        return piece.view(to_ours(architecture, parameter, _values(tensors[piece.name])))

    def read(index: tuple[slice, ...]) -> np.ndarray:
        chosen = [range(*part.indices(size)) for part, size in zip(index, parameter.shape, strict=True)]
        out = np.empty([len(numbers) for numbers in chosen], dtype)
        for place in np.ndindex(*out.shape[:depth]):
            stacked = tuple(numbers[i] for numbers, i in zip(chosen[:depth], place, strict=True))
            out[place] = value(at[stacked])[index[depth:]]
        return out

    return Leaf(parameter.shape, dtype, read)

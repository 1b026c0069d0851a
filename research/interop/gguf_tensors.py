"""What reading and writing GGUF files share: the library, types, and where each weight lies."""

import dataclasses
from types import ModuleType

import ml_dtypes
import numpy as np

from research.errors import UserError
from research.interop.gguf_architectures import Architecture
from research.interop.weights import Piece, pieces
from research.kernels.choice import REFERENCE
from research.models import build
from research.parameters import Parameter
from research.settings import ModelSettings, Settings

FLOAT32, BFLOAT16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)
DTYPES = {"float32": FLOAT32, "float16": np.dtype(np.float16), "bfloat16": BFLOAT16}


def library() -> ModuleType:
    """The `gguf` library."""
    try:
        import gguf
    except ImportError as error:
        raise UserError("GGUF files need the gguf library: pip install 'isoflop[interop]'") from error
    return gguf


def pieces_of(
    architecture: Architecture, settings: ModelSettings, vocab_size: int
) -> tuple[dict[str, Parameter], dict[str, list[Piece]]]:
    """A model's parameters by path, and the tensors that hold each."""
    model = dataclasses.replace(settings, vocab_size=vocab_size)
    parameters = build(Settings(model=model), REFERENCE).parameters()
    return parameters, pieces(parameters, architecture.rows, lambda _: settings.num_layers)


def to_ours(architecture: Architecture, parameter: Parameter, stored: np.ndarray) -> np.ndarray:
    """A stored tensor with its rows in our order and without the one that is added to norms; not yet in our layout."""
    if _alternates(architecture, parameter):
        split = stored.reshape(parameter.shape[-2], -1, 2, *stored.shape[1:])
        return split.swapaxes(1, 2).reshape(stored.shape)
    return stored - np.ones((), stored.dtype) if _raised(architecture, parameter) else stored


def to_theirs(architecture: Architecture, parameter: Parameter, stored: np.ndarray) -> np.ndarray:
    """The inverse of `to_ours`."""
    if _alternates(architecture, parameter):
        split = stored.reshape(parameter.shape[-2], 2, -1, *stored.shape[1:])
        return split.swapaxes(1, 2).reshape(stored.shape)
    return stored + np.ones((), stored.dtype) if _raised(architecture, parameter) else stored


def _alternates(architecture: Architecture, parameter: Parameter) -> bool:
    names = ("query", "key", "query_bias", "key_bias")
    return architecture.interleaved and parameter.path in {f"layers/attention/{name}" for name in names}


def _raised(architecture: Architecture, parameter: Parameter) -> bool:
    return architecture.raised_norms and parameter.kind == "norm"

"""The safetensors format, read as memory maps and written tensor by tensor.

A file is the length of a header (8 bytes, little-endian), the header (JSON: for each tensor its type, shape and the
place of its bytes), and the bytes. The format's own library does not give bfloat16 to NumPy and writes only what is
wholly in memory; both are needed here. https://github.com/huggingface/safetensors#format
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from research.errors import UserError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "consolidated.00.pth")
_LONGEST_HEADER = 100_000_000

DTYPES: Mapping[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}


class Stored(NamedTuple):
    """A tensor that is to be written.

    Attributes:
      name: its name in the file.
      shape: sizes.
      dtype: type in the file.
      make: gives the values when their turn has come, so that one tensor at a time is in memory.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


# --- reading ----------------------------------------------------------------------------------------------------------


def open_directory(directory: Path) -> dict[str, np.ndarray]:
    """Every tensor of a model's directory, as memory maps: nothing is read before it is used.

    Raises:
      UserError: there are no such weights, only pickled ones, or a file is damaged or lies elsewhere.
    """
    if (directory / WEIGHTS).exists():
        return open_file(directory / WEIGHTS)
    if not (directory / INDEX).exists():
        pickled = next((name for name in _PICKLED if (directory / name).exists()), None)
        if pickled:
            raise UserError(
                f"{directory / pickled} is a pickle, which can run any code when it is opened: "
                f"convert it to {WEIGHTS} where you trust it (save_pretrained of transformers does)"
            )
        raise UserError(f"{directory} has no weights: neither {WEIGHTS} nor {INDEX} is there")
    places = _read_index(directory / INDEX)
    found: dict[str, np.ndarray] = {}
    for name in sorted(set(places.values())):
        found |= open_file(directory / name)
    missing = sorted(places.keys() - found.keys())
    if missing:
        raise UserError(f"{directory / INDEX} names {listed(missing)}, which the files do not hold: fetch them again")
    return found


def _read_index(path: Path) -> dict[str, str]:
    """`{tensor: file}` of a model in several files, all of which lie beside the index."""
    content = read_json(path)
    places = content.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{path} is damaged: weight_map is missing; fetch it again")
    for name in sorted(set(places.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{path} leads to {name!r}, which is not a safetensors file beside it: nothing is read")
        if not (path.parent / name).is_file():
            raise UserError(f"{path.parent / name} is missing: fetch it again")
    return places


def open_file(path: Path) -> dict[str, np.ndarray]:
    """The tensors of one file, as views of its memory map.

    Raises:
      UserError: the file is damaged, or holds a type that NumPy does not have.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is not an object")
        header.pop("__metadata__", None)
        data = np.memmap(path, np.uint8, "r", offset=8 + length) if size > 8 + length else np.zeros(0, np.uint8)
        return {name: _view(data, name, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file ({error}): fetch it again") from error


def _view(data: np.ndarray, name: str, entry: Mapping[str, Any]) -> np.ndarray:
    code, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if code not in DTYPES:
        raise UserError(f"the tensor {name} has type {code}: export it as F32, F16 or BF16 first")
    dtype = DTYPES[code]
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, start, stop)):
        raise ValueError(f"{name} has sizes that are no numbers")
    if not start <= stop <= len(data) or stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} does not lie where the header says")
    return data[start:stop].view(dtype).reshape(shape)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      UserError: no such file, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is damaged: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: not a JSON object")
    return content


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


# --- writing ----------------------------------------------------------------------------------------------------------


def write_directory(directory: Path, tensors: Iterable[Stored]) -> None:
    """Writes tensors into one file, or into several with an index where they are more than `SHARD_BYTES` together."""
    ordered = sorted(tensors, key=lambda tensor: tensor.name)
    shards: list[list[Stored]] = [[]]
    for tensor in ordered:
        if shards[-1] and sum(other.nbytes for other in shards[-1]) + tensor.nbytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append(tensor)
    if len(shards) == 1:
        write_file(directory / WEIGHTS, shards[0])
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(directory / name, shard)
        places |= {tensor.name: name for tensor in shard}
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in ordered)}, "weight_map": places}
    (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_file(path: Path, tensors: Iterable[Stored]) -> None:
    """Writes one file; each tensor is made when its turn has come. The widest types come first, so that all align."""
    ordered = sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for tensor in ordered:
        offsets = [place, place + tensor.nbytes]
        header[tensor.name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        place += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered:
            values = np.asarray(tensor.make(), order="C")
            assert (values.shape, values.dtype) == (tensor.shape, tensor.dtype), f"{tensor.name}: {values.shape}"
            file.write(values.reshape(-1).view(np.uint8).data)

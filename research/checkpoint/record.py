"""What a checkpoint says about itself: step, held-out loss, and shape, dtype and digest of every leaf."""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from research.checkpoint.digest import digests
from research.errors import UserError

COMMIT_FILE = "commit_success.txt"
STATE, RECORD, FILES = "state", "record", "files.json"
_LISTED = 3


class DamagedError(Exception):
    """A checkpoint that is not what was saved; the message names the file or leaf and says what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of a saved state."""

    shape: tuple[int, ...]
    dtype: str
    digest: str

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class Record:
    """The record of one checkpoint; `leaves` are named by their path in the state."""

    step: int
    heldout_loss: float | None
    leaves: Mapping[str, Leaf]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, with a checksum over the rest."""
        content = dataclasses.asdict(self)
        return content | {"checksum": _checksum(content)}


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def make_record(step: int, leaves: Mapping[str, Any], heldout_loss: float | None) -> tuple[Record, list[str]]:
    """The record of a state on the devices, and the paths of its leaves that hold NaN or infinity."""
    found = digests(leaves)
    if heldout_loss is not None and not math.isfinite(heldout_loss):
        heldout_loss = None
    described = {path: Leaf(tuple(leaf.shape), str(leaf.dtype), found[path][0]) for path, leaf in leaves.items()}
    return Record(step, heldout_loss, described), [path for path, (_, finite) in found.items() if not finite]


def step_directory(directory: epath.Path, step: int) -> epath.Path:
    """Where the checkpoint of a step lies: `checkpoints/00000500`."""
    return directory / f"{step:08d}"


def committed_steps(directory: epath.Path) -> list[int]:
    """The steps of all complete checkpoints, ascending. Reads only."""
    if not directory.exists():
        return []
    names = [path.name for path in directory.iterdir() if re.fullmatch(r"\d{8,}", path.name)]
    return sorted(int(name) for name in names if (directory / name / COMMIT_FILE).exists())


def read_record(directory: epath.Path, step: int) -> Record:
    """The record of a committed step.

    Raises:
      DamagedError: it is missing, not what was written, or of another step.
    """
    file = step_directory(directory, step) / RECORD / "data.json"
    try:
        content = json.loads(file.read_text())
        checksum = content.pop("checksum")
        leaves = {
            path: Leaf(tuple(leaf["shape"]), leaf["dtype"], leaf["digest"]) for path, leaf in content["leaves"].items()
        }
        record = Record(content["step"], content["heldout_loss"], leaves)
    except FileNotFoundError as error:
        raise DamagedError(f"{RECORD}/{file.name} is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{RECORD}/{file.name} is truncated or altered") from error
    if checksum != _checksum(content):
        raise DamagedError(f"{RECORD}/{file.name} is altered: its checksum does not match")
    if record.step != step:
        raise DamagedError(f"{RECORD}/{file.name} is of step {record.step}, so this directory was renamed or copied")
    return record


def write_file_sizes(path: epath.Path) -> None:
    """Notes the size of every file of a committed step: what is missing or cut short can then be named by its file."""
    part = path / f"{FILES}.part"
    part.write_text(json.dumps(_file_sizes(path)))
    part.replace(path / FILES)


def check_file_sizes(path: epath.Path) -> None:
    """Raises `DamagedError` where a file is missing or has another size.

    A step whose run was killed between commit and note has no note, and is judged by its digests alone.
    """
    try:
        noted = json.loads((path / FILES).read_text())
    except FileNotFoundError:
        return
    except ValueError as error:
        raise DamagedError(f"{FILES} is truncated or altered") from error
    found = _file_sizes(path)
    for name, size in noted.items():
        if name not in found:
            raise DamagedError(f"{name} is missing")
        if found[name] != size:
            raise DamagedError(f"{name} has {found[name]} bytes instead of {size}")


def _file_sizes(path: epath.Path) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for entry in path.iterdir():
        if entry.is_dir():
            sizes |= {f"{entry.name}/{name}": size for name, size in _file_sizes(entry).items()}
        elif not entry.name.startswith(FILES):
            sizes[entry.name] = int(entry.stat().length)
    return sizes


def check_same_model(record: Record, targets: Mapping[str, Any], prefix: str | tuple[str, ...] = "") -> None:
    """Raises `UserError` where the saved leaves below `prefix` are not those that are asked for.

    Args:
      record: of the checkpoint.
      targets: `{path: anything with shape and dtype}`.
      prefix: beginnings of the paths that are compared: all of the state, or `params/`.
    """
    saved = {path: str(leaf) for path, leaf in record.leaves.items() if path.startswith(prefix)}
    asked = {path: str(Leaf(tuple(leaf.shape), str(leaf.dtype), "")) for path, leaf in targets.items()}
    different = [
        f"{path} is {saved.get(path, 'absent')} in the checkpoint and {asked.get(path, 'absent')} in this model"
        for path in sorted(saved.keys() | asked.keys())
        if saved.get(path) != asked.get(path)
    ]
    if different:
        more = f"; and {len(different) - _LISTED} more" if len(different) > _LISTED else ""
        raise UserError(
            f"the checkpoint of step {record.step} is of another model ({'; '.join(different[:_LISTED])}{more}): "
            "use the settings that it was saved with, or another --workdir"
        )

"""How a branch begins: with the weights, moments and rows that its trunk had after so many updates.

A branch is an ordinary run that happens to be interrupted at that step: it goes on from the copied checkpoint, with its
own schedule, and its losses are those of a run with its settings from the start.
"""

import os
import shutil
from pathlib import Path

from etils import epath

from research import config
from research.checkpoint.record import committed_steps, step_directory
from research.errors import UserError
from research.sweeps.folder import Folder
from research.sweeps.sweep import Cell
from research.train.metrics import METRICS, read_metrics, write_json, write_text

CONFIG = "config.json"


def is_trunk(folder: Folder, cell: Cell) -> bool:
    """Whether a cell is one that others branch from."""
    return any(other.after == cell.id for other in folder.cells)


def prepare(folder: Folder, cell: Cell) -> None:
    """Makes the run directory of a branch, unless it is there.

    Raises:
      UserError: the trunk has no checkpoint of that step.
    """
    run = folder.run(cell.id)
    if cell.after is None or cell.from_step is None or run.exists():
        return
    trunk = folder.run(cell.after)
    saved = epath.Path(trunk / "checkpoints")
    if cell.from_step not in committed_steps(saved):
        raise UserError(
            f"the trunk {trunk} has no checkpoint of update {cell.from_step}: delete its folder and run "
            f"`isoflop sweep retry {folder.directory} {cell.after}`"
        )
    made = run.with_name(f".{run.name}.{os.getpid()}")
    shutil.rmtree(made, ignore_errors=True)
    source = Path(step_directory(saved, cell.from_step))
    try:
        shutil.copytree(source, made / "checkpoints" / source.name)
    except OSError as error:
        raise UserError(f"{made} cannot be written ({error.strerror or error}): make room or permit it") from error
    _write_rows(trunk / METRICS, made / METRICS, cell.from_step)
    provenance = config.read_json(trunk / CONFIG).get("provenance", {})
    origin = {"cell": cell.after, "step": cell.from_step, "config_hash": provenance.get("config_hash")}
    own = {"config_hash": config.scientific_hash(cell.settings), "branched_from": origin}
    write_json(made / CONFIG, config.to_record(cell.settings) | {"provenance": provenance | own})
    made.rename(run)


def _write_rows(source: Path, target: Path, last: int) -> None:
    """The rows of the updates up to `last`, as they stand."""
    count = sum(row["step"] <= last for row in read_metrics(source))
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    write_text(target, "".join(lines[:count]))

"""Which checkpoints of a finished cell stay."""

import shutil
from pathlib import Path

from etils import epath

from research.checkpoint.record import DamagedError, committed_steps, read_record, step_directory
from research.errors import UserError


def prune(run: Path, keep: str, *, trunk: bool = False) -> list[int]:
    """Removes what `keep` does not want of a run's checkpoints, and gives the steps that stay.

    `all` keeps what there is; a trunk keeps what its branches begin with, whatever is wanted.
    """
    directory = epath.Path(run / "checkpoints")
    steps = committed_steps(directory)
    if keep == "all" or trunk or not steps:
        return steps
    stay = {"none": [], "last": steps[-1:], "best": [_best(directory, steps)]}[keep]
    for step in steps:
        if step not in stay:
            _remove(Path(step_directory(directory, step)))
    return stay


def _best(directory: epath.Path, steps: list[int]) -> int:
    losses = []
    for step in steps:
        try:
            loss = read_record(directory, step).heldout_loss
        except DamagedError:
            continue
        if loss is not None:
            losses.append((loss, step))
    return min(losses)[1] if losses else steps[-1]


def _remove(path: Path) -> None:
    try:
        (path / "commit_success.txt").unlink(missing_ok=True)  # first, so that what is half removed counts as absent
        shutil.rmtree(path)
    except OSError as error:
        raise UserError(f"{path} cannot be removed ({error.strerror or error}): permit it, or keep='all'") from error

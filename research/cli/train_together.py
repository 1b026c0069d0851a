"""Trains several runs together in one program (`research/train/population.py`), each in a directory of its own."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from research.cli import train
from research.cli.arguments import Result
from research.cli.progress import Progress
from research.errors import UserError
from research.evaluate.heldout import sums_of
from research.settings import Settings
from research.train import population
from research.train.loop import Outcome
from research.train.metrics import EventLog
from research.train.report import write_report


@dataclasses.dataclass(frozen=True)
class Asked:
    """A run to be trained with others.

    Attributes:
      name: for people.
      settings: of the run; what may differ from the others' says `research/sweeps/population.py`.
      workdir: its directory.
      data_hash: that its data must have.
      withdrawn: once true, the run is saved and leaves the others.
    """

    name: str
    settings: Settings
    workdir: Path
    data_hash: str | None = None
    withdrawn: Callable[[], bool] = lambda: False


def execute_together(asked: Sequence[Asked], shown: Console) -> list[Result | UserError]:
    """Trains, or goes on with, the runs of several directories in this one process.

    Returns:
      For each what `train.execute` gives, or the mistake that ended it: it ends none of the others.

    Raises:
      UserError: they cannot go on together, and each can alone.
    """
    first = asked[0].settings
    train.start(first)
    ends: dict[int, Result | UserError] = {}
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress(first.train.num_steps, 0, first.train.log_every, shown))
        opened: dict[int, train.Opened] = {}
        for number, one in enumerate(asked):
            try:
                opened[number] = train.open_run(stack, one.settings, one.workdir, one.data_hash, progress)
            except UserError as error:
                ends[number] = error
        if opened:
            outcomes = _trained({number: (asked[number], run) for number, run in opened.items()}, progress)
            for (number, run), outcome in zip(opened.items(), outcomes, strict=True):
                ends[number] = _concluded(run, outcome, progress)
    return [ends[number] for number in range(len(asked))]


def _trained(runs: dict[int, tuple[Asked, train.Opened]], progress: Progress) -> list[Outcome | UserError]:
    first = next(iter(runs.values()))[1].assembly
    sums = sums_of(first.model, first.objective)
    members = []
    for one, run in runs.values():
        assert isinstance(run.events, EventLog)  # a population has one process
        evaluate = train.evaluation(run, sums)
        members.append(
            population.Member(
                one.name, run.assembly, run.prepared, run.workdir, evaluate, run.lock, run.events, one.withdrawn
            )
        )
    return population.run(members, progress)


def _concluded(run: train.Opened, outcome: Outcome | UserError, progress: Progress) -> Result | UserError:
    """What follows the training of one of them."""
    try:
        if isinstance(outcome, UserError):
            raise outcome
        result = train.conclude(run, outcome, progress)
        if "signal" in result:
            return 128 + int(result["signal"]), result
        return 0, {**result, "workdir": str(run.workdir), "report": str(write_report(run.workdir))}
    except UserError as error:
        train.note_failure(run, error)
        return error

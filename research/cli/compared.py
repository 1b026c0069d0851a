"""Runs that are compared, and which yardstick fits their objectives."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.cli import rundir
from research.cli.arguments import Overrides, changed
from research.data.prepare import Prepared
from research.errors import UserError
from research.settings import Settings
from research.train.assembly import Assembly, assemble

AUTO, SUFFIXES, PROBES, BASELINES = YARDSTICKS = ("auto", "suffixes", "probes", "baselines")

NAMED = 3  # runs that a reason lists by name

Stage = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is compared, without its weights."""

    name: str
    workdir: Path
    settings: Settings
    provenance: dict[str, Any]
    prepared: Prepared
    assembly: Assembly

    @property
    def objective(self) -> str:
        """Its objective, and what it is a mixture of."""
        own = self.settings.objective
        return f"{own.name} ({own.mixture})" if own.name == "mixture" else own.name

    @property
    def continues(self) -> bool:
        """Whether it predicts text from what stands before it."""
        return self.assembly.objective.continues

    @property
    def corpus(self) -> tuple[Any, Any]:
        """What decides which documents are held out, whatever tokenizer reads them."""
        return self.prepared.manifest["source"], self.prepared.manifest["data"]


def open_runs(
    paths: Sequence[Path], overrides: Overrides, stage: Stage, named: Mapping[Path, str] | None = None
) -> list[Run]:
    """The runs, of one corpus, by the names that some of them have, or by their paths.

    Raises:
      UserError: fewer than two, one twice, one that is no run, or runs of different data.
    """
    if len(paths) < 2:
        raise UserError(f"{paths[0]} alone cannot be compared: name two run directories or more")
    known = named or {}
    rest = iter(names_of([path for path in paths if path not in known]))
    names = [known[path] if path in known else next(rest) for path in paths]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{twice} is named twice: name each run once")
    found = []
    for name, path in zip(names, paths, strict=True):
        if not (path / rundir.CONFIG).exists():
            raise UserError(f"{path} is not a run directory, it has no {rundir.CONFIG}: name directories of runs")
        if not (path / "checkpoints").exists():
            raise UserError(f"{path} has no checkpoint yet: let `isoflop train` write one, or leave the run out")
        saved, provenance = rundir.open_settings(path)
        settings = changed(saved, overrides)
        prepared = rundir.open_recorded_data(settings, provenance, stage)
        assembly = assemble(settings, prepared.tokenizer.vocabulary)
        found.append(Run(name, path, settings, provenance, prepared, assembly))
    for run in found[1:]:
        if run.corpus != found[0].corpus:
            raise UserError(
                f"{found[0].name} and {run.name} are of different data (data hashes {found[0].prepared.data_hash} and "
                f"{run.prepared.data_hash}), and what one holds out the other may have been trained on: compare runs "
                "of one corpus and split"
            )
    return found


def names_of(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    for count in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def choose(runs: Sequence[Run], wanted: str) -> tuple[list[str], str]:
    """The yardsticks of runs, and why.

    Raises:
      UserError: the one that is wanted does not fit.
    """
    mute = [run for run in runs if not run.continues]
    several = len({run.prepared.data_hash for run in runs}) > 1
    tokenizers = "is measured in tokens, and these runs have several tokenizers: compare runs of one data hash"
    if wanted == SUFFIXES and mute:
        raise UserError(
            f"--yardstick=suffixes: {mute[0].name} (objective.name={mute[0].settings.objective.name}) predicts no text "
            "from what stands before it; choose probes or baselines, or leave the run out"
        )
    if wanted in (PROBES, BASELINES) and several:
        raise UserError(f"--yardstick={wanted} {tokenizers}, or those that predict text by --yardstick=suffixes")
    if wanted != AUTO:
        return [wanted], "it was asked for"
    if not mute:
        return [SUFFIXES], (
            "all of these objectives predict text from what stands before it, so that each is asked, in its own form, "
            "for the same bytes behind the same bytes"
        )
    if several:
        raise UserError(f"what {mute[0].name} ({mute[0].objective}) is compared by {tokenizers}")
    named = ", ".join(run.name for run in mute[:NAMED]) + (f" and {len(mute) - NAMED} more" if mute[NAMED:] else "")
    reason = f"no text from what stands before it is predicted by {named}, whose loss answers another question"
    first = []
    if len(runs) - len(mute) > 1:
        first, reason = [SUFFIXES], f"{reason}; the others are asked for the same suffixes among themselves"
    if "documents" not in runs[0].prepared.manifest["files"]:
        return [*first, BASELINES], (
            f"{reason}; this corpus has no labels for probes, and each run stands beside its baselines"
        )
    return [*first, PROBES, BASELINES], (
        f"{reason}; frozen features of all are probed, and each run stands beside its own baselines"
    )

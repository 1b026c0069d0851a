"""Compare runs of one corpus by a yardstick that their objectives share.

suffixes   bits per byte of the same ends of held-out text behind the same beginnings: for all that predict text
probes     how much of a document's origin a line reads off the frozen features: for any objective
baselines  how far each run is below the frequencies of its own targets: for any, and never an order

auto takes suffixes where all runs predict text from what stands before it; with a masked model among them probes and
baselines, since the loss of hidden tokens and that of next tokens answer different questions and are never ranked.
Intervals are 95 % bootstraps over documents; differences are of the same documents.

A sweep's folder stands for its cells that are done; what was found is written into it, and its report shows it.

examples:
  isoflop compare runs/causal runs/prefix runs/spans
  isoflop compare runs/causal runs/masked --json
  isoflop compare runs/15m runs/30m --given=64 --suffix=64
  isoflop compare sweeps/objectives
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from research.cli.arguments import Result, absolute, console
from research.cli.compared import AUTO, BASELINES, PROBES, SUFFIXES, YARDSTICKS, choose, open_runs
from research.cli.execution import compilation_cache
from research.cli.progress import Progress
from research.cli.yardsticks import Amounts, compare
from research.errors import UserError
from research.sweeps import folder as folders
from research.sweeps.analysis import COMPARISON
from research.sweeps.ledger import DONE, Ledger
from research.train.metrics import write_json

NOTHING = "-"


def epilog() -> str | None:
    """What `--help` ends with."""
    return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("runs", nargs="+", type=absolute, metavar="RUN", help="run directories, or a sweep's folder")
    parser.add_argument("--yardstick", choices=YARDSTICKS, default=AUTO, help="default: auto")
    parser.add_argument("--given", type=int, default=32, help="suffixes: tokens that are given (default: 32)")
    parser.add_argument("--suffix", type=int, default=32, help="suffixes: tokens that are asked for (default: 32)")
    parser.add_argument(
        "--documents", type=int, default=2000, help="probes: documents to learn from, and at most to count on"
    )


def run(options: argparse.Namespace) -> Result:
    """Compares the newest good checkpoints of runs."""
    amounts = Amounts(options.given, options.suffix, options.documents)
    for name, value in vars(amounts).items():
        if value < 1:
            raise UserError(f"--{name}={value} must be at least 1")
    shown = console(options)
    compilation_cache()
    sweeps = [path for path in options.runs if (path / folders.SWEEP).exists()]
    cells = {path: name for sweep in sweeps for path, name in finished(sweep).items()}
    alone = [path for path in options.runs if path not in sweeps]
    with Progress(0, 0, 1, shown) as progress:
        progress.stage("opening the runs")
        runs = open_runs([*cells, *alone], options.overrides, progress.stage, cells)
        yardsticks, reason = choose(runs, options.yardstick)
        found = compare(runs, yardsticks, amounts, progress.stage)
    result = {"yardsticks": yardsticks, "reason": reason, **found}
    show(shown, result)
    if sweeps == options.runs and len(sweeps) == 1:
        kept = [one | {"workdir": str(Path(one["workdir"]).relative_to(sweeps[0]))} for one in result["runs"]]
        write_json(sweeps[0] / COMPARISON, {**result, "runs": kept})
        shown.print(f"\n{sweeps[0] / COMPARISON}: isoflop sweep report {sweeps[0]} shows it", soft_wrap=True)
    return 0, result


def finished(directory: Path) -> dict[Path, str]:
    """Run directories and names of a sweep's cells that are done and have a checkpoint.

    Raises:
      UserError: there are fewer than two.
    """
    folder = folders.open_folder(directory)
    ledger = Ledger(directory)
    done = {folder.run(cell.id): cell.name for cell in folder.cells if ledger.seen(cell.id)["state"] == DONE}
    found = {run: name for run, name in done.items() if any((run / "checkpoints").glob("*"))}
    if len(found) < 2:
        lost = folder.content["keep"] == "none" and len(done) > 1
        raise UserError(
            f"{directory} has {len(done)} finished cells, {len(found)} of them with a checkpoint, and a comparison "
            f"needs two: {'its keep is none, run the sweep anew with last' if lost else 'let the sweep finish'}"
        )
    return found


def show(shown: Console, result: Mapping[str, Any]) -> None:
    """The yardsticks and why, the checkpoints, a table for each."""
    shown.print(f"yardstick: {' and '.join(result['yardsticks'])}", style="bold")
    shown.print(f"because {result['reason']}", markup=False, soft_wrap=True)
    for run in result["runs"]:
        if run["step"] < run["num_steps"]:
            shown.print(f"{run['run']} is unfinished: {run['step']:,} of {run['num_steps']:,} updates", markup=False)
    tables = {SUFFIXES: suffixes_table, PROBES: probes_table, BASELINES: baselines_table}
    for name in result["yardsticks"]:
        title, rows, notes = tables[name](result[name])
        shown.print()
        shown.print(title, style="bold", markup=False, soft_wrap=True)
        for line in aligned(rows):
            shown.print(f"  {line}", markup=False, soft_wrap=True)
        for note in notes:
            shown.print(note, markup=False, soft_wrap=True)


Table = tuple[str, list[list[str]], list[str]]


def suffixes_table(found: Mapping[str, Any]) -> Table:
    """Bits per byte, best first."""
    rows = [["run", "objective", "updates", "bits per byte", "more than the best"]]
    for row in found["ranked"]:
        numbers = [interval(row["bits_per_byte"], "{:.4f}"), interval(row["from_best"], "{:+.4f}")]
        rows.append([row["run"], row["objective"], f"{row['step']:,}", *numbers])
    title = (
        f"bits per byte of {found['bytes']:,} held-out bytes: the next {found['suffix']} tokens behind "
        f"{found['given']}, {found['pieces']:,} times in {found['documents']:,} documents"
    )
    return title, rows, ties(found["ranked"])


def probes_table(found: Mapping[str, Any]) -> Table:
    """Accuracies, best first, then what needs no model."""
    names = ["run", "objective", "updates", "accuracy", "from the best", "over untrained", "over bag of tokens"]
    rows = [[*names, "features"]]
    for row in found["ranked"]:
        numbers = [interval(row["accuracy"], "{:.1%}")]
        numbers += [interval(row[name], "{:+.1%}") for name in ("from_best", "over_untrained", "over_bag_of_tokens")]
        rows.append([row["run"], row["objective"], f"{row['step']:,}", *numbers, row["features"]])
    for name in ("bag_of_tokens", "most_frequent"):
        known = interval(found[name], "{:.1%}")
        rows.append([name.replace("_", " "), NOTHING, NOTHING, known, NOTHING, NOTHING, NOTHING, NOTHING])
    documents = found["documents"]
    title = (
        f"linear probes of the {found['label']} ({len(found['classes'])} classes) on {documents['counted']:,} held-out "
        f"documents, the first {found['tokens']} tokens of each; fitted to {documents['fitted']:,}, chosen on "
        f"{documents['chosen']:,}"
    )
    return title, rows, ties(found["ranked"])


def baselines_table(found: Mapping[str, Any]) -> Table:
    """Each run beside what counting reaches at its own question."""
    rows = [["run", "objective", "updates", "loss", "by frequency", "removed", "accuracy", "by frequency"]]
    rows[0] += ["bits per byte", "3-gram"]
    for row in found["rows"]:
        numbers = [number(row["loss"], "{:.4f}"), number(row["unigram_loss"], "{:.4f}")]
        numbers += [number(row[name], "{:.1%}") for name in ("share_removed", "accuracy", "unigram_accuracy")]
        numbers += [number(row[name], "{:.4f}") for name in ("bits_per_byte", "trigram_bits_per_byte")]
        rows.append([row["run"], row["objective"], f"{row['step']:,}", *numbers])
    title = "held-out loss in nats a target, and that of the frequencies of the run's own targets"
    return title, rows, ["no order: the targets of different objectives are different questions"]


def ties(ranked: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which runs the interval does not tell from the best."""
    best, *others = ranked
    near = [row["run"] for row in others if row["from_best"]["low"] is None or not apart(row["from_best"])]
    if not near:
        return []
    return [f"not told apart from {best['run']} by these documents: {', '.join(near)}"]


def apart(difference: Mapping[str, float]) -> bool:
    """Whether an interval leaves zero out."""
    return not difference["low"] <= 0.0 <= difference["high"]


def interval(found: Mapping[str, float | None] | None, form: str) -> str:
    """A number with its interval."""
    if found is None:
        return NOTHING
    whole = number(found["value"], form)
    return whole if found["low"] is None else f"{whole} [{number(found['low'], form)}, {number(found['high'], form)}]"


def number(value: float | None, form: str) -> str:
    """A number, or a dash for none."""
    return NOTHING if value is None else form.format(value)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines whose columns stand below one another."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]

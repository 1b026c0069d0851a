"""Run many cells that answer one question: on this machine, on SLURM, in the cloud; look after them; report.

A sweep file experiments/QUESTION/sweep.py has one function get_sweep(), which names a recipe and its points. All cells
are checked and planned before any is started. The folder holds all state: the same command goes on wherever a cell, a
worker or this command was stopped or killed, and no finished cell runs again.

  run SWEEP --on=PLACE --workdir=DIR   check, plan, and run all cells; again: go on
  status DIR                           where the cells stand
  report DIR                           rows.json, rows.csv, answer.json, report.html
  retry DIR CELLS | --failed           put failed or cancelled cells back
  cancel DIR [CELLS]                   end some cells, or all of them and their jobs
  add DIR --seeds=N                    more seeds of every cell
  promote DIR CELL --output=FILE       write a cell as a recipe
  work DIR                             what the places run: takes free cells one after the other

examples:
  isoflop sweep run experiments/quick_ladder/sweep.py --on=local --workdir=runs/quick_ladder --parallel=2
  isoflop sweep run experiments/quick_ladder/sweep.py --on=slurm --workdir=runs/ladder --parallel=16 --devices=gpu:1 --hours=4
  isoflop sweep run experiments/quick_ladder/sweep.py --on=local --workdir=runs/ladder --dry-run --topology=v5e:2x2 --price=1.2
  isoflop sweep run experiments/QUESTION/sweep.py --on=slurm --workdir=runs/rates --devices=gpu:1 --hours=4 --pack=16
  isoflop sweep status runs/quick_ladder
"""  # noqa: E501 - a command is read in one line

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from research.cli.arguments import Result
    from research.sweeps.folder import Folder
    from research.sweeps.preflight import Checked, Place
    from research.sweeps.sweep import Cell, Sweep

PACK = "train up to K cells that differ in numbers and seeds in one program, where it pays (default 1: each alone)"


def epilog() -> str | None:
    """What `--help` ends with."""
    return "isoflop sweep run --help shows places, resources and options."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own verbs."""
    from research.cli.arguments import absolute
    from research.cli.launch import add_launcher

    def folder(text: str) -> Path | str:
        return text if "://" in text else absolute(text)

    verbs = parser.add_subparsers(dest="what", metavar="VERB", required=True)

    def verb(name: str, meaning: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=meaning, description=meaning, allow_abbrev=False)
        made.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one object at the end")
        if name != "run":
            made.add_argument("directory", type=folder, metavar="DIR", help="of the sweep")
        return made

    run_ = verb("run", "check, plan and run all cells of a sweep, or go on with them")
    run_.add_argument("sweep", type=Path, metavar="SWEEP", help="experiments/QUESTION/sweep.py")
    run_.add_argument("--workdir", dest="directory", required=True, type=folder, metavar="DIR", help="of the sweep")
    run_.add_argument("--skip-refused", action="store_true", help="run the other cells where some are refused")
    run_.add_argument("--any-commit", action="store_true", help="go on with cells that another commit began")
    run_.add_argument("--pack", type=int, default=1, metavar="K", help=PACK)
    run_.add_argument("--topology", help="plan for these chips: v5p:4x4x4, gpu:h100:8x4 (see isoflop plan)")
    run_.add_argument("--price", type=float, help="of a chip for an hour")
    add_launcher(run_, default="local")
    verb("status", "where the cells of a sweep stand").add_argument(
        "--follow", action="store_true", help="until all have ended"
    )
    retry = verb("retry", "put failed or cancelled cells back; the same run command runs them")
    retry.add_argument("cells", nargs="*", metavar="CELL", help="id, its beginning, or name")
    retry.add_argument("--failed", action="store_true", help="all that failed")
    cancel = verb("cancel", "end cells, or the whole sweep with its jobs")
    cancel.add_argument("cells", nargs="*", metavar="CELL", help="id, its beginning, or name; none: all")
    more = verb("add", "more seeds of every cell, or of some")
    more.add_argument("cells", nargs="*", metavar="CELL", help="id, its beginning, or name; none: all")
    more.add_argument("--seeds", type=int, required=True, metavar="N", help="so many more")
    more.add_argument("--skip-refused", action="store_true", help="add the others where some are refused")
    promote = verb("promote", "write a cell as a recipe, with its command, cost and result")
    promote.add_argument("cell", metavar="CELL", help="id, its beginning, or name")
    promote.add_argument("--output", type=absolute, required=True, metavar="FILE", help="configs/mine.py")
    verb("report", "rows.json, rows.csv, answer.json and report.html of a sweep")
    work = verb("work", "take free cells one after the other, until none is left")
    work.add_argument("--cells", help="these alone: ids or names, with commas")
    work.add_argument("--pack", type=int, default=1, metavar="K", help=PACK)
    work.add_argument("--job", default="", help="name of the job, for the record")
    work.add_argument("--any-commit", action="store_true", help="go on with cells that another commit began")


def run(options: argparse.Namespace) -> "Result":
    """Does what the inner verb says."""
    if options.overrides:
        raise UserError(
            f"--config.{options.overrides[0][0]}: a sweep's keys stand in its sweep file, change them there"
        )
    if "://" in str(options.directory):
        raise UserError(f"{options.directory}: a sweep's folder is on a file system, since a bucket has no locks")
    from research.cli import sweep_verbs

    inner = {
        "run": run_sweep,
        "status": sweep_verbs.status,
        "retry": sweep_verbs.retry,
        "cancel": sweep_verbs.cancel,
        "add": sweep_verbs.add,
        "promote": sweep_verbs.promote,
        "report": sweep_verbs.report,
        "work": work,
    }
    return inner[options.what](options)


# --- run --------------------------------------------------------------------------------------------------------------


def run_sweep(options: argparse.Namespace) -> "Result":
    """Checks, plans and starts, or goes on."""
    import jax

    from research.cli import sweep_attendance
    from research.cli.arguments import console
    from research.cli.launch import chosen_launcher
    from research.sweeps import folder as folders
    from research.sweeps.population import check_pack
    from research.sweeps.sweep import cells_of, load_sweep

    jax.config.update("jax_platforms", "cpu")  # this process plans; the accelerators are for the workers
    shown = console(options)
    sweep = load_sweep(options.sweep)
    cells, refused = cells_of(sweep)
    workers = options.place_parallel or 1
    if workers < 1:
        raise UserError(f"--parallel={workers}: at least one worker runs at a time")
    check_pack(options.pack)
    if options.on != "local":
        options.place_parallel = None
    launcher = chosen_launcher(options)
    directory: Path = options.directory
    if not launcher.SHARES_FILES and launcher.place(directory) != directory:
        raise UserError(
            f"--workdir={directory} is not seen by the jobs of --on={options.on}: mount what they share here, and "
            "choose a folder below its --root"
        )
    if (directory / folders.SWEEP).exists():
        folder = _reopened(directory, sweep, cells, options.any_commit)
        if options.dry_run:
            shown.print(f"{directory} is begun: isoflop sweep status {directory}", soft_wrap=True)
            return 0, {"workdir": str(directory), "begun": True}
    else:
        checked, place = _checked(options, sweep, cells, workers, shown)
        problems = [*((one.name, one.reason) for one in refused)]
        problems += [(one.cell.name, one.problem) for one in checked if one.problem is not None]
        record = _show_plan(shown, checked, problems, place)
        if options.dry_run:
            job = sweep_attendance.job(launcher, options, directory, "sweep-1")
            shown.print(launcher.describe([job]).rstrip(), markup=False, soft_wrap=True)
            return (1 if problems else 0), record
        _refuse(problems, len(sweep.points), options.skip_refused)
        folder = _created(options, sweep, checked, refused)
    return sweep_attendance.attend(folder, launcher, options, workers, shown)


def _reopened(directory: Path, sweep: "Sweep", cells: "list[Cell]", any_commit: bool) -> "Folder":
    from research.sweeps import folder as folders
    from research.sweeps.preflight import data_hashes

    folder = folders.open_folder(directory)
    folders.check_same(folder, sweep, cells, [one["name"] for one in folder.content["refused"]])
    folders.check_commit(folder, any_commit)
    folders.check_data(folder, data_hashes(folder.cells))
    if any_commit and not folder.content["any_commit"]:
        folder = folders.rewrite(folder, any_commit=True)
    return folder


def _checked(
    options: argparse.Namespace, sweep: "Sweep", cells: "list[Cell]", workers: int, shown: Any
) -> "tuple[list[Checked], Place]":
    from research.plan import topologies
    from research.sweeps import preflight

    if options.price is not None and (options.price < 0 or options.topology is None):
        raise UserError(f"--price={options.price:g}: a price is not negative, and is of the chips of a --topology")
    if options.topology is not None:
        place = preflight.Place(topologies.parse(options.topology, options.slices or 1), options.price)
    else:
        place = preflight.here(workers) if options.on == "local" else preflight.Place(here=False)
    told: set[str] = set()

    def tell(line: str) -> None:
        if line not in told:
            told.add(line)
            shown.print(line, style="dim", markup=False)

    found = preflight.preflight(cells, place, keep=sweep.keep, max_epochs=sweep.max_epochs, tell=tell)
    return found, place


def _show_plan(shown: Any, checked: "list[Checked]", problems: list[tuple[str, str]], place: "Place") -> dict[str, Any]:
    from research.cli import sweep_tables
    from research.sweeps.preflight import totals

    sums = totals(checked)
    shown.print(sweep_tables.plan_table(checked))
    if problems:
        shown.print(sweep_tables.refusals(problems))
    shown.print(sweep_tables.total_line(sums, len(checked) - sum(one.problem is not None for one in checked)))
    if place.topology is None and place.memory is None:
        shown.print("memory is not checked: --topology names the chips", style="dim")
    plans = [{"id": one.cell.id, "name": one.cell.name, **one.plan} for one in checked if one.problem is None]
    return {"cells": plans, "refused": [{"name": name, "reason": why} for name, why in problems], "totals": sums}


def _refuse(problems: list[tuple[str, str]], points: int, skip: bool) -> None:
    if not problems:
        return
    if len(problems) == points:
        raise UserError(f"every cell is refused; the first, {problems[0][0]}: {problems[0][1]}")
    if not skip:
        raise UserError(
            f"{len(problems)} of {points} cells are refused (the first, {problems[0][0]}: {problems[0][1]}): mend the "
            "sweep file, or run the others with --skip-refused"
        )


def _created(options: argparse.Namespace, sweep: "Sweep", checked: "list[Checked]", refused: Any) -> "Folder":
    from research.sweeps import folder as folders
    from research.sweeps.resolve import base_record
    from research.sweeps.sweep import Refused, text_hash

    good = [one for one in checked if one.problem is None]
    known = {one.cell.id for one in good}
    kept = [one for one in good if one.cell.after is None or one.cell.after in known]
    entries = [folders.described(one.cell, one.plan, one.data_hash) for one in kept]
    out = [*refused, *(Refused(one.cell.name, one.cell.point, one.problem) for one in checked if one.problem)]
    out += [Refused(one.cell.name, one.cell.point, "its trunk is refused") for one in good if one not in kept]
    source = {"sweep": str(options.sweep), "sweep_hash": text_hash(options.sweep)}
    return folders.create(options.directory, sweep, base_record(sweep.recipe), entries, out, source, options.any_commit)


# --- work -------------------------------------------------------------------------------------------------------------


def work(options: argparse.Namespace) -> "Result":
    """A worker: takes free cells until none is left."""
    from rich.console import Console

    from research.cli import train, train_together
    from research.cli.execution import set_up_training
    from research.parallel import mesh
    from research.sweeps import folder as folders
    from research.sweeps.population import check_pack
    from research.sweeps.worker import Worker

    pack = check_pack(options.pack)
    folder = folders.open_folder(options.directory)
    folders.check_commit(folder, options.any_commit)
    cells = folder.chosen(options.cells.split(",")) if options.cells else list(folder.cells)
    mesh.start_processes(folder.cells[0].settings.parallel)
    set_up_training()
    shown = Console(stderr=options.json, highlight=False, soft_wrap=True)

    def run_cell(cell: "Cell", directory: Path, data_hash: str) -> "Result":
        return train.execute(cell.settings, directory, shown, data_hash=data_hash)

    def run_pack(asked: "Sequence[tuple[Cell, Path, str, Callable[[], bool]]]") -> "list[Result | UserError]":
        runs = [
            train_together.Asked(cell.name, cell.settings, directory, data_hash, withdrawn)
            for cell, directory, data_hash, withdrawn in asked
        ]
        return train_together.execute_together(runs, shown)

    def tell(line: str) -> None:
        shown.print(line, style="bold", markup=False)

    worker = Worker(folder, run_cell, cells=cells, job=options.job, tell=tell, pack=pack, together=run_pack)
    return worker.run(), {"workdir": str(folder.directory)}

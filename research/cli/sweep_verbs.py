"""The verbs of a sweep that is there: status, report, retry, cancel, add, promote."""

import argparse
import contextlib
import time
from typing import Any

from rich.console import Console
from rich.live import Live

import launch
from launch import records
from research import config
from research.cli import sweep_tables
from research.cli.arguments import Result, console
from research.errors import UserError
from research.sweeps import analysis, foretelling, promotion
from research.sweeps import folder as folders
from research.sweeps.folder import Folder
from research.sweeps.ledger import DONE, FAILED, PENDING, RUNNING, Ledger
from research.sweeps.rows import curves_of, facts_of, rows_of, write_rows


def status(options: argparse.Namespace) -> Result:
    """Where the cells stand; with --follow until all have ended."""
    folder, shown = folders.open_folder(options.directory), console(options)
    found = sweep_tables.statuses(folder)
    if options.follow and shown.is_terminal:
        with Live(sweep_tables.status_table(found), console=shown, transient=True) as live:
            while any(one["state"] in (PENDING, RUNNING) for one in found):
                time.sleep(1.0)
                found = sweep_tables.statuses(folder)
                live.update(sweep_tables.status_table(found))
    elif options.follow:
        while any(one["state"] in (PENDING, RUNNING) for one in found):
            time.sleep(1.0)
            found = sweep_tables.statuses(folder)
    shown.print(sweep_tables.status_table(found))
    shown.print(sweep_tables.summary_line(folder, found))
    jobs = []
    for handle in records.read(folder.directory):
        with contextlib.suppress(UserError):
            now = launch.of(handle).status(handle)
            jobs.append({"name": handle.name, "id": handle.id, "launcher": handle.launcher, "state": now.state})
    if busy := [job for job in jobs if job["state"] in ("queued", "running", "preempted")]:
        shown.print("jobs: " + ", ".join(f"{job['name']} {job['state']}" for job in busy), markup=False)
    counts = {state: sum(one["state"] == state for one in found) for state in sweep_tables.STYLES}
    left = sweep_tables.seconds_left(folder, found)
    return 0, {"workdir": str(folder.directory), "states": counts, "seconds_left": left, "cells": found, "jobs": jobs}


def report(options: argparse.Namespace) -> Result:
    """Writes what the sweep has found so far."""
    return 0, write(folders.open_folder(options.directory), console(options))


def write(folder: Folder, shown: Console) -> dict[str, Any]:
    """Rows, answers and the report page; says where they are."""
    from research.scaling.report import write_report

    rows = write_rows(folder)
    answers = analysis.answers_of(folder.content, rows) | analysis.comparison_of(folder.directory)
    if (said := foretelling.foretold(folder)) is not None:
        answers["foretold"] = {"made": said["made"], "predictions": said["predictions"]}
    settings = {cell.id: {key: cell.settings[key] for key in config.KEYS} for cell in folder.cells}
    path = write_report(folder.directory, facts_of(folder), rows, curves_of(folder), answers, settings)
    done = sum(row["state"] == DONE for row in rows)
    shown.print(f"{done} of {len(rows)} cells are done")
    shown.print(f"report: {path}", soft_wrap=True)
    cells = [{name: row[name] for name in ("id", "name", "state", "bits_per_byte", "reason")} for row in rows]
    return {"workdir": str(folder.directory), "report": str(path), "answers": answers, "cells": cells}


def retry(options: argparse.Namespace) -> Result:
    """Puts cells back."""
    folder, shown = folders.open_folder(options.directory), console(options)
    ledger = Ledger(folder.directory)
    if bool(options.cells) == options.failed:
        raise UserError("retry: name cells, or say --failed for all that failed")
    cells = folder.chosen(options.cells)
    if options.failed:
        cells = [cell for cell in cells if ledger.read(cell.id)["state"] == FAILED]
    put = [cell.id for cell in cells if ledger.retry(cell.id)]
    kept = [cell for cell in cells if cell.id not in put]
    if kept:
        shown.print(f"not put back, since neither failed nor cancelled: {', '.join(cell.name for cell in kept)}")
    if put:
        shown.print(f"pending again: {', '.join(put)}; the same run command runs them")
    return 0, {"workdir": str(folder.directory), "retried": put}


def cancel(options: argparse.Namespace) -> Result:
    """Ends cells; without names all of them, and the jobs of the sweep."""
    folder, shown = folders.open_folder(options.directory), console(options)
    ledger = Ledger(folder.directory)
    ended = [cell.id for cell in folder.chosen(options.cells) if ledger.cancel(cell.id)]
    jobs = []
    for handle in [] if options.cells else records.read(folder.directory):
        launcher = launch.of(handle)
        if not launcher.status(handle).ended:
            launcher.cancel(handle)
            jobs.append(handle.name)
    shown.print(f"{len(ended)} cells cancelled" + (f", jobs: {', '.join(jobs)}" if jobs else ""), markup=False)
    return 0, {"workdir": str(folder.directory), "cancelled": ended, "jobs": jobs}


# --- add --------------------------------------------------------------------------------------------------------------


def add(options: argparse.Namespace) -> Result:
    """Further seeds of cells, after those that are there; checked as the first ones were."""
    import jax

    from research.sweeps import preflight

    jax.config.update("jax_platforms", "cpu")
    folder, shown = folders.open_folder(options.directory), console(options)
    if options.seeds < 1:
        raise UserError(f"--seeds={options.seeds}: add at least one")
    new = folders.further_seeds(folder, folder.chosen(options.cells), options.seeds)
    content = folder.content
    checked = preflight.preflight(
        new, preflight.Place(here=False), keep=content["keep"], max_epochs=content["max_epochs"]
    )
    shown.print(sweep_tables.plan_table(checked))
    bad = [one for one in checked if one.problem is not None]
    if bad and not options.skip_refused:
        raise UserError(f"{len(bad)} of the new cells are refused; {bad[0].cell.name}: {bad[0].problem}")
    entries = [
        folders.described(one.cell, one.plan, one.data_hash) | {"added": True} for one in checked if not one.problem
    ]
    folders.rewrite(folder, cells=[*content["cells"], *entries])
    shown.print(f"{len(entries)} cells added: the same run command runs them")
    return 0, {"workdir": str(folder.directory), "added": [entry["id"] for entry in entries]}


# --- promote ----------------------------------------------------------------------------------------------------------


def promote(options: argparse.Namespace) -> Result:
    """Writes a cell as a recipe."""
    folder, shown = folders.open_folder(options.directory), console(options)
    cell, path = folder.cell(options.cell), options.output
    row = next(row for row in rows_of(folder) if row["id"] == cell.id)
    promotion.promote(folder, cell, row, path)
    shown.print(f"recipe: {path}", soft_wrap=True)
    return 0, {"recipe": str(path), "cell": cell.id, "config_hash": config.scientific_hash(cell.settings)}

"""The verbs of a sweep that is there: status, report, retry, cancel, add, promote."""

import argparse
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

import launch
from launch import records
from research import config
from research.cli import sweep_tables
from research.cli.arguments import Result, console
from research.errors import UserError
from research.sweeps import analysis
from research.sweeps import folder as folders
from research.sweeps.algebra import canonical
from research.sweeps.folder import Folder
from research.sweeps.ledger import DONE, FAILED, PENDING, RUNNING, Ledger
from research.sweeps.rows import curves_of, facts_of, rows_of, write_rows
from research.sweeps.sweep import Cell, check_ids, make_cell, names_of, with_trunks
from research.train.metrics import write_text
from research.train.report import quantity


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
    answers = analysis.answers_of(folder.content, rows)
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
    shown.print(f"{len(put)} cells are pending again: the same run command runs them")
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
    new = further_seeds(folder, folder.chosen(options.cells), options.seeds)
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


def further_seeds(folder: Folder, cells: Sequence[Cell], count: int) -> list[Cell]:
    """The cells of `count` seeds more for each group of cells that differ in nothing but the seed."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(_without_seed(cell), []).append(cell)
    highest: dict[str, int] = {}
    for cell in folder.cells:
        key = _without_seed(cell)
        highest[key] = max(highest.get(key, -1), cell.settings.seed)
    points, held_out = [], []
    for key, group in groups.items():
        for seed in range(highest[key] + 1, highest[key] + 1 + count):
            points.append({**group[0].point, "seed": seed})
            held_out.append(group[0].held_out)
    names = names_of([*(cell.point for cell in folder.cells), *points])[len(folder.cells) :]
    base, keep = folder.content["base"], folder.content["keep"]
    made = [
        make_cell(base, point, name, keep, held_out=out)
        for point, name, out in zip(points, names, held_out, strict=True)
    ]
    check_ids([*folder.cells, *made])
    known = {cell.id for cell in made}
    whole = with_trunks([*folder.cells, *made], {cell.name: cell.point for cell in [*folder.cells, *made]})
    return [cell for cell in whole if cell.id in known]


def _without_seed(cell: Cell) -> str:
    return canonical({key: value for key, value in cell.point.items() if key != "seed"})


# --- promote ----------------------------------------------------------------------------------------------------------


def promote(options: argparse.Namespace) -> Result:
    """Writes a cell as a recipe."""
    folder, shown = folders.open_folder(options.directory), console(options)
    cell, path = folder.cell(options.cell), options.output
    if path.suffix != ".py":
        raise UserError(f"--output={path}: a recipe is a Python file, name it so")
    if path.exists():
        raise UserError(f"--output={path} is there already: choose another name, or remove it")
    row = next(row for row in rows_of(folder) if row["id"] == cell.id)
    write_text(path, recipe_text(folder, cell, row, path))
    written = config.to_settings(config.load_recipe(str(path)))
    assert config.scientific_hash(written) == config.scientific_hash(cell.settings), config.differences(
        written, cell.settings
    )
    shown.print(f"recipe: {path}", soft_wrap=True)
    return 0, {"recipe": str(path), "cell": cell.id, "config_hash": config.scientific_hash(cell.settings)}


def recipe_text(folder: Folder, cell: Cell, row: dict[str, Any], path: Path) -> str:
    """A recipe whose header says its command, what it cost and what it gave."""
    content = folder.content
    fact = folder.fact(cell.id)
    cost = f"{quantity(fact['plan']['tokens'])} tokens, {fact['plan']['flops']:.2e} model FLOPs"
    if row["training_seconds"]:
        cost += f", {row['training_seconds']:,.0f} seconds of training on {content['host']}"
    found = [
        f"{row[name]:.4f} {text}"
        for name, text in (("bits_per_byte", "held-out bits per byte"), ("heldout_loss", "nats a held-out target"))
        if row[name] is not None
    ]
    header = [
        f'"""{_plain(content["question"])}',
        "",
        f"    isoflop train --config={path.name} --workdir=runs/{path.stem}",
        "",
        f"Cost: {cost}.",
        f"Result: {', '.join(found) or 'not run yet'}.",
        f"The cell {cell.id} ({_plain(cell.name)}) of a sweep over {_plain(content['recipe'])}, promoted;",
        f"commit {content['commit'][:20]}, data {fact['data_hash']}.",
        '"""',
    ]
    rooms: dict[str, dict[str, Any]] = {}
    for name, key in config.KEYS.items():
        if cell.settings[name] != key.default and name != "train.keep_every":
            room, _, last = name.rpartition(".")
            rooms.setdefault(room, {})[last] = cell.settings[name]
    lines = ["    config = base.get_config()"]
    for room, values in rooms.items():
        given = ", ".join(f"{name}={value!r}" for name, value in values.items())
        lines.append(f"    config.{room}.update({given})" if room else f"    config.{given.replace('=', ' = ')}")
    body = ["def get_config() -> ml_collections.ConfigDict:", '    """The recipe."""', *lines, "    return config"]
    return "\n".join([*header, "", "import ml_collections", "", "from configs import base", "", "", *body]) + "\n"


def _plain(text: str) -> str:
    return text.replace("\\", "/").replace('"', "'")

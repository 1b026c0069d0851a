"""The folder of a sweep: what its cells are, written once, and whether it is this sweep that it is of."""

import contextlib
import dataclasses
import datetime
import fcntl
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from research import config
from research.errors import UserError
from research.sweeps.algebra import Point, canonical
from research.sweeps.sweep import Cell, Refused, Sweep, check_ids, make_cell, names_of, tuning_of, with_trunks
from research.train import provenance
from research.train.metrics import write_json

SWEEP, CELLS, STATES, JOBS = "sweep.json", "cells", "state", "jobs"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Folder:
    """A sweep's folder, opened.

    Attributes:
      directory: of the sweep.
      content: of its `sweep.json`.
      cells: in their order, trunks before their branches.
    """

    directory: Path
    content: Mapping[str, Any]
    cells: tuple[Cell, ...]

    def run(self, cell_id: str) -> Path:
        """The run directory of a cell."""
        return self.directory / CELLS / cell_id

    def cell(self, text: str) -> Cell:
        """The cell of an id, of the beginning of one, or of a name.

        Raises:
          UserError: there is none, or there are several.
        """
        found = [cell for cell in self.cells if text in (cell.id, cell.name)]
        found = found or [cell for cell in self.cells if text and cell.id.startswith(text)]
        if len(found) != 1:
            problem = "is the beginning of several ids" if found else "is neither id nor name of a cell"
            raise UserError(f"{text!r} {problem} of {self.directory}: `isoflop sweep status` lists the cells")
        return found[0]

    def chosen(self, names: Sequence[str]) -> list[Cell]:
        """The cells that are named; all of them where none is."""
        return [self.cell(name) for name in names] if names else list(self.cells)

    def fact(self, cell_id: str) -> Mapping[str, Any]:
        """What `sweep.json` says of a cell: `plan`, `data_hash` and its identity."""
        entry: Mapping[str, Any] = next(entry for entry in self.content["cells"] if entry["id"] == cell_id)
        return entry


def now() -> str:
    """The time, UTC, to the millisecond."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def described(cell: Cell, plan: Mapping[str, Any], data_hash: str) -> dict[str, Any]:
    """A cell's entry in `sweep.json`."""
    return {
        "id": cell.id,
        "name": cell.name,
        "point": dict(cell.point),
        "after": cell.after,
        "from_step": cell.from_step,
        "held_out": cell.held_out,
        "data_hash": data_hash,
        "plan": dict(plan),
    }


def create(
    directory: Path,
    sweep: Sweep,
    base: Mapping[str, Any],
    entries: Sequence[Mapping[str, Any]],
    refused: Sequence[Refused],
    source: Mapping[str, str],
    any_commit: bool,
) -> Folder:
    """Writes the `sweep.json` of a new sweep; `source` says which sweep file it came from."""
    settings = [make_cell(base, entry["point"], entry["name"], sweep.keep).settings for entry in entries]
    content = {
        "format": FORMAT,
        "question": sweep.question,
        "recipe": sweep.recipe,
        **source,
        "commit": provenance.commit(),
        "any_commit": any_commit,
        "versions": provenance.versions(),
        "host": socket.gethostname(),
        "created": now(),
        "base": base,
        "baseline": sweep.baseline,
        "yardstick": sweep.yardstick,
        "keep": sweep.keep,
        "analyses": list(sweep.analyses),
        "max_epochs": sweep.max_epochs,
        "tuning": tuning_of(sweep, settings),
        "cells": list(entries),
        "refused": [dataclasses.asdict(one) for one in refused],
    }
    for name in (CELLS, STATES, JOBS):
        _make(directory / name)
    write_json(directory / SWEEP, content)
    return open_folder(directory)


def rewrite(folder: Folder, **changes: Any) -> Folder:
    """The same folder with other content: cells that were added, a commit that was let pass."""
    write_json(folder.directory / SWEEP, {**folder.content, **changes})
    return open_folder(folder.directory)


def open_folder(directory: Path) -> Folder:
    """A sweep's folder.

    Raises:
      UserError: it is none, or its `sweep.json` is damaged or of a newer Isoflop.
    """
    path = directory / SWEEP
    if not path.exists():
        raise UserError(f"{directory} is no sweep's folder: it has no {SWEEP}")
    content = config.read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT or "cells" not in content:
        raise UserError(f"{path} is damaged or of another Isoflop: restore it, or use a new --workdir")
    try:
        cells = [cell_of(content, entry) for entry in content["cells"]]
        cells = with_trunks(cells, {entry["name"]: entry["point"] for entry in content["cells"]})
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): restore it, or use a new --workdir") from error
    return Folder(directory, content, tuple(cells))


def cell_of(content: Mapping[str, Any], entry: Mapping[str, Any]) -> Cell:
    """The cell of an entry, under the id that it was given."""
    point: Point = entry["point"]
    made = make_cell(content["base"], point, entry["name"], content["keep"], held_out=entry["held_out"])
    return dataclasses.replace(made, id=entry["id"], after=entry["after"])


def check_same(folder: Folder, sweep: Sweep, cells: Sequence[Cell], refused: Sequence[str]) -> None:
    """Raises `UserError` where a folder is of another sweep: of another question, or of other cells.

    Cells that were added to the folder, and points that were refused when it was made, are no difference.
    """
    if folder.content["question"] != sweep.question:
        raise UserError(
            f"{folder.directory} is of the question {folder.content['question']!r}, this sweep asks "
            f"{sweep.question!r}: use a new --workdir"
        )
    known = {cell.id for cell in folder.cells}
    new = [cell.name for cell in cells if cell.id not in known and cell.name not in refused]
    wanted = {cell.id for cell in cells}
    gone = [entry["name"] for entry in folder.content["cells"] if entry["id"] not in wanted and not entry.get("added")]
    if new or gone:
        listed = ", ".join([f"new: {name}" for name in new[:2]] + [f"gone: {name}" for name in gone[:2]])
        raise UserError(
            f"{folder.directory} is of another sweep file ({len(new)} cells new, {len(gone)} gone; {listed}): use a "
            "new --workdir"
        )


def check_commit(folder: Folder, any_commit: bool) -> None:
    """Raises `UserError` where another commit would go on with a folder's cells."""
    here, there = provenance.commit(), folder.content["commit"]
    if here != there and not (any_commit or folder.content["any_commit"]):
        if here.partition("+")[0] == there.partition("+")[0]:
            before, after = ("with changed files", "without") if "+" in there else ("without changed files", "with")
            raise UserError(
                f"{folder.directory} was begun by commit {there[:20]} {before}, and here it is {after}: undo or make "
                "the changes, use a new --workdir, or say --any-commit where the difference changes no number"
            )
        raise UserError(
            f"{folder.directory} was begun by commit {there[:20]}, this is {here[:20]}: check that one out, use a new "
            "--workdir, or say --any-commit where the difference changes no number"
        )


def check_data(folder: Folder, hashes: Mapping[str, str]) -> None:
    """Raises `UserError` where a cell's data are no longer those that the folder was made with."""
    for entry in folder.content["cells"]:
        here = hashes.get(entry["id"], entry["data_hash"])
        if here != entry["data_hash"]:
            raise UserError(
                f"{folder.directory} is of other data: the cell {entry['name']} used {entry['data_hash']}, its sources "
                f"now give {here}: restore them, or use a new --workdir"
            )


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


@contextlib.contextmanager
def exclusively(directory: Path) -> Iterator[None]:
    """While it is open, no other process changes states of the sweep's folder this way."""
    try:
        with (directory / STATES / ".exclusive").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise UserError(
            f"{directory} cannot be written to ({error.strerror or error}): make room or permit it"
        ) from error


def _make(directory: Path) -> None:
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory} cannot be made ({error.strerror or error}): choose another --workdir") from error

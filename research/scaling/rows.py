"""Runs as columns, from anyone's CSV or a sweep's rows.json; what is wrong is refused by row and column."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from research.errors import UserError

FLOPS_FACTOR = 6.0  # C = 6 N D: Kaplan et al. 2020, section 2.1
SPREAD = 0.05  # of C / (N D) between runs, in logarithms, above which its mean is a bad rule
TOTAL, NON_EMBEDDING = "parameters", "non_embedding_parameters"
SWEEP = {"loss": "bits_per_byte", "params": TOTAL, "tokens": "tokens_seen", "flops": "model_flops"}
NAMES = ("id", "name", "run")
FILE = "rows.json"


@dataclass(frozen=True)
class Columns:
    """Which column holds what; two of the three quantities of compute are enough.

    Attributes:
      loss: the measure, less is better.
      params: parameters N.
      tokens: tokens seen D.
      flops: training FLOPs C.
      unique: distinct tokens, where data repeats.
      curve: what the rows of one training curve share, where there are several rows a run.
      count: `parameters` or `non_embedding_parameters`: what N counts.
    """

    loss: str
    params: str | None = None
    tokens: str | None = None
    flops: str | None = None
    unique: str | None = None
    curve: str | None = None
    count: str = TOTAL


@dataclass(frozen=True)
class Runs:
    """Measured runs.

    Attributes:
      names: of the runs.
      parameters: N.
      tokens: D, seen.
      flops: C.
      loss: less is better.
      unique: distinct tokens, if they were given.
      curve: which training curve a row belongs to, if curves were given.
      count: what N counts, `parameters` or `non_embedding_parameters`.
      flops_factor: C / (N D).
      held_out: names of runs that the sweep itself keeps for prediction.
      notes: what was assumed, in sentences.
    """

    names: tuple[str, ...]
    parameters: Float[np.ndarray, " runs"]
    tokens: Float[np.ndarray, " runs"]
    flops: Float[np.ndarray, " runs"]
    loss: Float[np.ndarray, " runs"]
    unique: Float[np.ndarray, " runs"] | None = None
    curve: Int[np.ndarray, " runs"] | None = None
    count: str = TOTAL
    flops_factor: float = FLOPS_FACTOR
    held_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Int[np.ndarray, " taken"]) -> "Runs":
        """Some of the runs."""
        return Runs(
            tuple(self.names[row] for row in rows.tolist()),
            self.parameters[rows],
            self.tokens[rows],
            self.flops[rows],
            self.loss[rows],
            None if self.unique is None else self.unique[rows],
            None if self.curve is None else self.curve[rows],
            self.count,
            self.flops_factor,
            self.held_out,
            self.notes,
        )

    def places(self) -> Int[np.ndarray, " runs"]:
        """A number for each run, equal for those of the same parameters, tokens and distinct tokens: other seeds."""
        columns = [self.parameters, self.tokens, *([] if self.unique is None else [self.unique])]
        return np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)[1].reshape(-1)

    def ends(self) -> "Runs":
        """The last row of each curve; all rows where no curves were given."""
        if self.curve is None:
            return self
        last = {int(curve): row for row, curve in sorted(enumerate(self.curve), key=lambda pair: self.tokens[pair[0]])}
        return self.take(np.array(sorted(last.values())))

    def split(self, held_out: Sequence[str]) -> tuple["Runs", "Runs"]:
        """Runs to fit, and runs to predict.

        Args:
          held_out: names of runs, `largest` for the largest budget, or `largest:K` for the K largest runs by FLOPs.

        Raises:
          UserError: no such run, or none is left.
        """
        chosen: set[int] = set()
        for word in held_out:
            if word == "largest" or word.startswith("largest:"):
                chosen |= set(self._largest(word))
            elif word in self.names:
                chosen |= {row for row, name in enumerate(self.names) if name == word}
            else:
                raise UserError(f"--hold-out {word}: no run has this name: name runs, or say largest or largest:K")
        rows = np.arange(len(self))
        held = np.isin(rows, sorted(chosen))
        if self.curve is not None:  # a run is held out whole
            held = np.isin(self.curve, self.curve[held])
        if held.all():
            raise UserError(f"--hold-out {' '.join(held_out)} leaves no run to fit: hold fewer out")
        return self.take(rows[~held]), self.take(rows[held])

    def _largest(self, word: str) -> list[int]:
        order = np.argsort(-self.flops, kind="stable")
        if word == "largest":  # the whole rung, which an isoFLOP sweep has at several sizes
            return np.flatnonzero(self.flops > 0.9 * self.flops.max()).tolist()
        number = word.partition(":")[2]
        if not number.isdigit() or int(number) < 1:
            raise UserError(f"--hold-out {word}: K of largest:K is a number of runs, 1 or more")
        return order[: int(number)].tolist()


def read(path: Path, columns: Mapping[str, Any] | None = None, where: Mapping[str, str] | None = None) -> Runs:
    """Runs of a CSV, of a `rows.json`, or of a sweep's folder.

    Args:
      columns: fields of `Columns`; for a sweep those that are not as it writes them.
      where: text that columns must hold for a row to be taken, `point.KEY` for what a cell changes.

    Raises:
      UserError: no such file or column, or a row that cannot be right.
    """
    path = path / FILE if path.is_dir() else path
    rows, skipped, defaults = table(path)
    given = {name: value for name, value in (columns or {}).items() if value is not None}
    if given.get("count") == NON_EMBEDDING and defaults:
        defaults["params"] = NON_EMBEDDING
    given = defaults | given
    if "loss" not in given:
        raise UserError(f"which column of {path} is the loss: add --loss, and two of --params, --tokens and --flops")
    rows = [row for row in rows if _matches(row, where or {}, str(path))]
    runs = from_rows(rows, Columns(**given), str(path))
    return runs if not skipped else replace(runs, notes=(*runs.notes, f"{skipped} cells are not done and are left out"))


def _matches(row: Mapping[str, Any], where: Mapping[str, str], source: str) -> bool:
    point = row.get("point")
    flat = {**row, **{f"point.{name}": value for name, value in (point if isinstance(point, dict) else {}).items()}}
    for name, text in where.items():
        if name not in flat and not name.startswith("point."):
            raise UserError(f"--where {name}={text}: {source} has no column {name!r}")
    return all(str(flat.get(name)) == text for name, text in where.items())


def table(path: Path) -> tuple[list[dict[str, Any]], int, dict[str, str]]:
    """Rows of a file, each with the number of its line or entry as `""`; how many unfinished cells it has besides; and
    which columns hold what, where a sweep wrote it.

    Raises:
      UserError: the file is not there, or is no table.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text: give a CSV with a header, or a sweep's {FILE}") from error
    if path.suffix == ".json":
        return _entries(path, text)
    reader = csv.DictReader(text.splitlines())
    header = list(reader.fieldnames or [])
    if twice := {name for name in header if header.count(name) > 1}:
        raise UserError(f"{path} has two columns {min(twice)!r}: rename one")
    rows = []
    for row in reader:
        if None in row or None in row.values():
            raise UserError(
                f"{path}, line {reader.line_num} has not the {len(header)} values that the header names: mend it"
            )
        rows.append({"": f"line {reader.line_num}", **row})
    return rows, 0, {}


def _entries(path: Path, text: str) -> tuple[list[dict[str, Any]], int, dict[str, str]]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): give a sweep's {FILE}, or a CSV with a header") from error
    rows = content.get("rows") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} has no list of rows: give a sweep's {FILE}, or a CSV with a header")
    done = [row for row in rows if row.get("state", "done") == "done"]
    defaults = dict(SWEEP) if any("state" in row for row in rows) else {}
    if defaults and isinstance(content, dict) and content.get("yardstick"):
        defaults["loss"] = str(content["yardstick"])
    return [{"": f"row {number}", **row} for number, row in enumerate(done, 1)], len(rows) - len(done), defaults


def from_rows(rows: Sequence[Mapping[str, Any]], columns: Columns, source: str = "the table") -> Runs:
    """Columns of rows, checked; the third of parameters, tokens and FLOPs from C = 6 N D.

    Raises:
      UserError: a column is missing, a value is no positive number, or two runs have one name.
    """
    if not rows:
        raise UserError(f"{source} has no finished run: fits need several")
    given = {"params": columns.params, "tokens": columns.tokens, "flops": columns.flops}
    known = {name: column for name, column in given.items() if column is not None}
    if len(known) < 2:
        raise UserError("name two of --params, --tokens and --flops: the third follows from C = 6 N D")
    found = {name: _numbers(rows, column, source) for name, column in known.items()}
    loss = _numbers(rows, columns.loss, source)
    unique = None if columns.unique is None else _numbers(rows, columns.unique, source)
    names, curve = _names(rows, columns, source)
    notes, factor = [], FLOPS_FACTOR
    if "flops" not in found:
        found["flops"] = FLOPS_FACTOR * found["params"] * found["tokens"]
        notes.append("FLOPs are taken as C = 6 N D")
    elif "tokens" not in found:
        found["tokens"] = found["flops"] / (FLOPS_FACTOR * found["params"])
        notes.append("tokens are taken from C = 6 N D")
    elif "params" not in found:
        found["params"] = found["flops"] / (FLOPS_FACTOR * found["tokens"])
        notes.append("parameters are taken from C = 6 N D")
    else:
        ratio = np.log(found["flops"] / (found["params"] * found["tokens"]))
        factor = float(np.exp(ratio.mean()))
        spread = float(ratio.std())
        notes.append(f"C = {factor:.3g} N D, the mean of the runs" + _warning(spread))
    named = "non-embedding parameters" if columns.count == NON_EMBEDDING else "all parameters"
    notes.append(f"N counts {named}" + (f" (column {columns.params})" if columns.params else ""))
    return Runs(
        names,
        found["params"],
        found["tokens"],
        found["flops"],
        loss,
        unique,
        curve,
        columns.count,
        factor,
        tuple(name for name, row in zip(names, rows, strict=True) if row.get("held_out") is True),
        tuple(notes),
    )


def _warning(spread: float) -> str:
    return f", from which they differ by {spread:.0%}: optima for a budget carry that error" if spread > SPREAD else ""


def _numbers(rows: Sequence[Mapping[str, Any]], column: str, source: str) -> Float[np.ndarray, " runs"]:
    """A column of positive numbers."""
    if not any(column in row for row in rows):
        has = ", ".join(str(name) for name in rows[0] if name)
        raise UserError(f"{source} has no column {column!r}: it has {has}")
    found = []
    for position, row in enumerate(rows, 1):
        where = f"{source}, {row.get('', f'row {position}')}, column {column!r}"
        value = row.get(column)
        try:
            number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            shown = "is empty" if value in (None, "") else f"is {value!r}, no number"
            raise UserError(f"{where} {shown}: mend the value or remove the row") from error
        if not math.isfinite(number) or number <= 0:
            raise UserError(f"{where} is {value}: it must be positive and finite; mend the value or remove the row")
        found.append(number)
    return np.array(found, dtype=np.float64)


def _names(
    rows: Sequence[Mapping[str, Any]], columns: Columns, source: str
) -> tuple[tuple[str, ...], Int[np.ndarray, " runs"] | None]:
    """Names of the rows, unique unless rows are points of curves; and the curve of each."""
    if columns.curve is not None:
        if columns.curve not in rows[0]:
            raise UserError(f"{source} has no column {columns.curve!r}: --curve names what the rows of a run share")
        names = tuple(str(row.get(columns.curve)) for row in rows)
        order = {name: number for number, name in enumerate(dict.fromkeys(names))}
        return names, np.array([order[name] for name in names])
    column = next((name for name in NAMES if name in rows[0]), None)
    if column is None:
        return tuple(str(row.get("", f"row {position}")) for position, row in enumerate(rows, 1)), None
    seen: dict[str, Any] = {}
    for position, row in enumerate(rows, 1):
        name = str(row.get(column))
        if name in seen:
            raise UserError(
                f"{source}, {seen[name]} and {row.get('', f'row {position}')} are both named {name!r} in column "
                f"{column!r}: rename one, or say --curve if they are points of one run"
            )
        seen[name] = row.get("", f"row {position}")
    return tuple(seen), None

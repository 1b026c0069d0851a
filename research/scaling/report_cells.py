"""Rows of a sweep as its report shows them: what each cell measured, what it may be compared with, how cells group."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from research.train.page import is_number, quantity

MOST_GROUPS = 12  # more colours cannot be told apart
# Figures that a row may hold under the name of the summary's held-out measures or without its prefix.
_PREFIX = "heldout_"
# What is measured on hidden tokens says nothing about text that is read from left to right, nor the other way round.
_OWN_LOSS = {"loss", "perplexity", "accuracy"}
_HIDDEN = {"masked", "sentence_pairs"}


@dataclass(frozen=True)
class Kind:
    """Cells whose measure may be ranked against one another.

    Attributes:
      key: of the measure and, where it is the objective's own, of the objective.
      label: how the measure is called.
      unit: of an axis.
      higher: whether more is better.
    """

    key: str
    label: str
    unit: str
    higher: bool


@dataclass(frozen=True)
class Cell:
    """A row of the sweep.

    Attributes:
      id: of the cell, and of its folder.
      name: short and readable.
      state: pending, running, done, failed or cancelled.
      objective: its name, or nothing where it is unknown.
      kind: what it may be compared with.
      measure: its figure by that yardstick; None where it has none (yet), or where it is not finite.
      row: all of the row.
    """

    id: str
    name: str
    state: str
    objective: str
    kind: Kind
    measure: float | None
    row: Mapping[str, Any]

    def number(self, *names: str) -> float | None:
        """The first of these figures that the row has, with or without `heldout_`."""
        for name in names:
            for key in (name, _PREFIX + name):
                if is_number(self.row.get(key)):
                    return float(self.row[key])
        return None

    @property
    def point(self) -> Mapping[str, Any]:
        """What the cell is: overrides by dotted key."""
        point = self.row.get("point") or {}
        return point if isinstance(point, Mapping) else json.loads(point)

    @property
    def seconds(self) -> float | None:
        """Wall-clock time of all attempts, as far as it is known."""
        return self.number("wall_seconds", "seconds")

    @property
    def attempts(self) -> Sequence[Mapping[str, Any]]:
        """How each process that worked on it ended, as far as that was written down."""
        found = self.row.get("history", self.row.get("attempts"))
        return [a for a in found if isinstance(a, Mapping)] if isinstance(found, list) else []

    @property
    def num_attempts(self) -> int:
        """How often it was begun."""
        found = self.row.get("attempts")
        return int(found) if is_number(found) else len(self.attempts)

    @property
    def reason(self) -> str:
        """Why it failed, as far as that is known."""
        said = [self.row.get("reason"), *[attempt.get("reason") for attempt in reversed(self.attempts)]]
        return next((str(reason) for reason in said if reason), "")


@dataclass(frozen=True)
class Grouping:
    """A way to colour cells.

    Attributes:
      key: of the settings, or `parameters`, `budget`, `objective`.
      label: as the page calls it.
      values: names of the groups, in order.
      ordered: whether the order means more and less.
      of: group of each cell; -1 for a cell that has none.
    """

    key: str
    label: str
    values: tuple[str, ...]
    ordered: bool
    of: tuple[int, ...]


def read_cells(sweep: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """The rows with what they may be compared by; `sweep["yardstick"]` names the measure that they share.

    An objective that this measure says nothing about, in any of its cells, is measured by its own loss.
    """
    yardstick = str(sweep.get("yardstick") or "bits_per_byte").removeprefix(_PREFIX)
    recipe = str(sweep.get("recipe") or "").rsplit("/", 1)[-1].split(".")[0]
    bare = [_bare(row, recipe) for row in rows]
    measured = {cell.objective for cell in bare if cell.number(yardstick) is not None}
    lossy = {cell.objective for cell in bare if cell.number("loss") is not None}
    cells = []
    for cell in bare:
        hidden = cell.objective in _HIDDEN and yardstick == "bits_per_byte"
        own = yardstick in _OWN_LOSS or hidden or cell.objective in lossy - measured
        measure = yardstick if not own or yardstick in _OWN_LOSS else "loss"
        cells.append(replace(cell, kind=_kind(measure, cell.objective if own else ""), measure=cell.number(measure)))
    return cells


def _bare(row: Mapping[str, Any], recipe: str) -> Cell:
    name, state = str(row.get("name") or row["id"]), str(row.get("state") or "unknown")
    cell = Cell(str(row["id"]), name, state, "", _NO, None, row)
    return replace(cell, objective=str(row.get("objective") or cell.point.get("objective.name") or recipe))


def _kind(measure: str, objective: str) -> Kind:
    """How a measure is called; that of one objective alone bears its name."""
    called, higher = measure.replace("_", " "), "accuracy" in measure
    unit = _UNITS.get(measure, called)
    if objective:
        return Kind(f"{measure} of {objective}", f"held-out {called} of {objective}", unit, higher)
    return Kind(measure, called, unit, higher)


_NO = Kind("", "", "", False)
_UNITS = {"loss": "nats a target", "bits_per_byte": "bits per byte of held-out text", "accuracy": "share of targets"}


def kinds(cells: Sequence[Cell]) -> list[Kind]:
    """Those of cells that measured something, or else of all, each once, the most frequent first."""
    found = [cell.kind for cell in cells if cell.measure is not None] or [cell.kind for cell in cells]
    return sorted(dict.fromkeys(found), key=lambda kind: -found.count(kind))


def ranked(cells: Sequence[Cell], kind: Kind) -> list[Cell]:
    """Cells of a kind that are done and measured, the best first."""
    found = [cell for cell in cells if cell.kind == kind and cell.measure is not None and cell.state == "done"]
    return sorted(found, key=lambda cell: (cell.measure or 0.0) * (-1 if kind.higher else 1))


def cells_said(count: int) -> str:
    """`1 cell`, `24 cells`."""
    return f"{count} cell{'' if count == 1 else 's'}"


def arms(cells: Sequence[Cell], kind: Kind) -> list[tuple[str, list[float]]]:
    """What was measured of cells that differ in their seed alone, under a common name; the best mean first."""
    alike: dict[str, list[Cell]] = {}
    for cell in ranked(cells, kind):
        rest = {name: value for name, value in cell.point.items() if not _is_seed(name)}
        alike.setdefault(json.dumps(rest, sort_keys=True) if cell.point else cell.id, []).append(cell)
    found = [
        (
            (re.sub(r",? ?\bseed[ =]\d+$", "", some[0].name) or "the model") if len(some) > 1 else some[0].name,
            [c.measure or 0.0 for c in some],
        )
        for some in alike.values()
    ]
    return sorted(found, key=lambda arm: sum(arm[1]) / len(arm[1]) * (-1 if kind.higher else 1))


def _is_seed(name: str) -> bool:
    return name == "seed" or name.endswith(".seed")


def varied(cells: Sequence[Cell]) -> list[str]:
    """Keys of points that are not the same in all cells, seeds last."""
    names = dict.fromkeys(name for cell in cells for name in cell.point)
    found = [name for name in names if len({_text(cell.point.get(name)) for cell in cells}) > 1]
    return sorted(found, key=lambda name: name == "seed" or name.endswith(".seed"))


def distinguishing(cells: Sequence[Cell]) -> list[str]:
    """The same, of keys that change together only the first: a width brings its number of heads."""
    kept: dict[tuple[int, ...], str] = {}
    for name in varied(cells):
        first: dict[str, int] = {}
        kept.setdefault(tuple(first.setdefault(_text(cell.point.get(name)), len(first)) for cell in cells), name)
    return list(kept.values())


def groupings(cells: Sequence[Cell]) -> list[Grouping]:
    """Every way to group the cells that gives 2 to 12 groups; of those that group alike, the first."""
    found = [
        _by_size(
            cells,
            "budget",
            "compute budget",
            ("model_flops",),
            0.25,
            lambda value: f"{value:.1e} FLOPs".replace(".0e", "e").replace("e+", "e"),
        ),
        _by_size(cells, "parameters", "parameters", ("parameters",), 0.02, quantity),
        _by_value(cells, "objective", "objective", [cell.objective for cell in cells]),
        *[_by_value(cells, name, name, [cell.point.get(name) for cell in cells]) for name in varied(cells)],
    ]
    kept: dict[tuple[int, ...], Grouping] = {}
    for grouping in found:
        first: dict[int, int] = {}
        alike = tuple(first.setdefault(group, len(first)) for group in grouping.of)
        if 2 <= len(grouping.values) <= MOST_GROUPS:
            kept.setdefault(alike, grouping)
    alone = Grouping("all", "nothing", ("all cells",), False, (0,) * len(cells))
    return [*kept.values(), alone]


def _by_size(
    cells: Sequence[Cell], key: str, label: str, names: tuple[str, ...], within: float, form: Callable[[float], str]
) -> Grouping:
    """Figures that differ by less than a share of the smallest among them are one group."""
    figures = [cell.number(*names) for cell in cells]
    starts: list[float] = []
    for figure in sorted(figure for figure in figures if figure):
        if not starts or figure > starts[-1] * (1 + within):
            starts.append(figure)
    of = [
        max((i for i, start in enumerate(starts) if figure >= start), default=-1) if figure else -1
        for figure in figures
    ]
    members = [[f for f, group in zip(figures, of, strict=True) if group == n and f] for n in range(len(starts))]
    values = tuple(form(float(f"{sorted(some)[len(some) // 2]:.3g}")) for some in members)
    return Grouping(key, label, values, True, tuple(of))


def _by_value(cells: Sequence[Cell], key: str, label: str, found: Sequence[Any]) -> Grouping:
    ordered = all(is_number(value) for value in found if value is not None)
    distinct = {_text(value): value for value in found}
    values = sorted(
        distinct,
        key=lambda text: (distinct[text] is None, distinct[text] if ordered and distinct[text] is not None else 0),
    )
    of = tuple(values.index(_text(value)) for value in found)
    return Grouping(key, label, tuple("recipe's" if text == "null" else text for text in values), ordered, of)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

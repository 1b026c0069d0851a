"""Tables of a sweep's cells and of their settings, as HTML."""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from research.scaling.report_cells import Cell, distinguishing, kinds
from research.scaling.report_charts import figure, scientific
from research.settings import Settings, keys
from research.train.page import duration, quantity

_KEYS = {key.name: key for key in keys(Settings)}
MOST_KEYS = 6  # columns of the cell table that say what a cell is


def cell_table(cells: Sequence[Cell]) -> str:
    """One row a cell, each with what it sorts by, and a link to its own report."""
    keys = distinguishing(cells)[:MOST_KEYS]
    several = len(kinds(cells)) > 1
    heads = [("cell", False), ("state", False), *[(key, False) for key in keys], ("parameters", True)]
    heads += [("tokens", True), ("model FLOPs", True)]
    heads += [("yardstick", False), ("to baseline", False)] if several else []
    heads += [(kinds(cells)[0].label if not several and cells else "measure", True), ("training loss", True)]
    heads += [("time", True), *[(text, True) for _, text in _hours(cells)], ("starts", True), ("id", False)]
    head = "".join(
        f'<th class="{"number" if number else ""}" aria-sort="none" data-name="{html.escape(_short(name))}">'
        f'<button type="button" title="sort by {html.escape(name)}">{html.escape(_short(name))}</button></th>'
        for name, number in heads
    )
    hours = [name for name, _ in _hours(cells)]
    rows = "".join(_cell_row(cell, keys, several, hours) for cell in cells)
    return f'<table class="cells" id="cell-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _cell_row(cell: Cell, keys: Sequence[str], several: bool, hours: Sequence[str]) -> str:
    link = html.escape(f"cells/{cell.id}/report.html", quote=True)
    shown = html.escape(cell.name)
    name = f'<i class="swatch" data-cell="{html.escape(cell.id)}"></i><a href="{link}" title="{shown}">{shown}</a>'
    columns = [
        _td(name, cell.name),
        _td(f'<span class="state {word_class(cell.state)}">{html.escape(cell.state)}</span>', cell.state),
    ]
    columns += [_td(html.escape(_brief(cell.point.get(key, "–"))), cell.point.get(key, "")) for key in keys]
    for value, text in (
        (cell.number("parameters"), quantity),
        (cell.number("tokens_seen", "tokens"), quantity),
        (cell.number("model_flops"), scientific),
    ):
        columns.append(_td("–" if value is None else text(value), value, number=True))
    if several:
        columns += [_td(html.escape(text), text) for text in (cell.kind.key.replace("_", " "), _distance(cell))]
    columns.append(_td(figure(cell), cell.measure, number=True))
    loss = cell.number("train_loss")
    columns.append(_td("–" if loss is None else f"{loss:.4f}", loss, number=True))
    columns.append(_td("–" if cell.seconds is None else duration(cell.seconds), cell.seconds, number=True))
    for name in hours:
        spent = cell.number(name)
        columns.append(_td("–" if spent is None else f"{spent:.2g}", spent, number=True))
    columns.append(_td(str(cell.num_attempts or "–"), cell.num_attempts, number=True))
    columns.append(_td(f"<code>{html.escape(cell.id)}</code>", cell.id))
    return f'<tr data-cell="{html.escape(cell.id)}">{"".join(columns)}</tr>'


def _hours(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """Costs that any cell tells."""
    found = (("core_hours", "core-hours"), ("chip_hours", "chip-hours"))
    return [(name, text) for name, text in found if any(cell.number(name) is not None for cell in cells)]


def _distance(cell: Cell) -> str:
    """From what counting reaches: the only figure in which cells of different objectives stand beside one another."""
    for name, form in (("bits_per_byte", "{:+.3f} bits"), ("accuracy", "{:+.1%} hits")):
        value, base = cell.number(name), cell.number(f"baseline_{name}")
        if value is not None and base is not None:
            return form.format(value - base).replace("-", "−")
    return "–"


def _td(body: str, sorts_by: Any, number: bool = False) -> str:
    value = "" if sorts_by is None else (repr(sorts_by) if isinstance(sorts_by, float) else str(sorts_by))
    return f'<td{" class=number" if number else ""} data-value="{html.escape(value)}">{body}</td>'


def shared_settings(shared: Mapping[str, Any]) -> str:
    """What all cells have in common, folded away."""
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(_literal(value))}</td><td>{html.escape(meaning(name))}</td></tr>"
        for name, value in shared.items()
    )
    if not rows:
        return ""
    return (
        f"<details><summary>{len(shared)} settings that are the same in all cells</summary>"
        f'<table class="shared"><tbody>{rows}</tbody></table></details>'
    )


def split_settings(
    settings: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Settings by cell into those that all cells share, and for each cell the others."""
    most = max(map(len, settings.values()), default=0)
    whole = [flat for flat in settings.values() if len(flat) == most]  # a cell that never began has its point alone
    first = whole[0] if whole else {}
    alike = [n for n in first if len({_literal(flat.get(n)) for flat in whole}) == 1]
    alike = [
        n for n in alike if all(_literal(flat.get(n, first[n])) == _literal(first[n]) for flat in settings.values())
    ]
    own = {cell: {n: v for n, v in flat.items() if n not in alike} for cell, flat in settings.items()}
    return {name: first[name] for name in alike}, own


def meaning(name: str) -> str:
    """What a key means, with its unit."""
    key = _KEYS.get(name)
    if key is None:
        return ""
    unit = key.metadata["unit"]
    return str(key.metadata["meaning"]) + (f" [{unit}]" if unit else "")


def options(cells: Iterable[Cell]) -> str:
    """Cells to choose from."""
    return "".join(f'<option value="{html.escape(cell.id)}">{html.escape(cell.name)}</option>' for cell in cells)


def _brief(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _literal(value)


def _short(name: str) -> str:
    *rooms, last = name.split(".")
    return (rooms[-1] if rooms and last == "name" else last).replace("_", " ")


def word_class(word: str) -> str:
    """A state or verdict as a class of the page's style."""
    return word if word.isidentifier() else "other"


def _literal(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

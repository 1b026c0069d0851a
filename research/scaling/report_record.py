"""What a sweep's numbers rest on, as HTML: how its cells ended, what they cost, where they come from."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from research.scaling.report_cells import Cell, cells_said
from research.scaling.report_tables import word_class
from research.train.page import is_number


def failures(cells: Sequence[Cell], refused: Sequence[Mapping[str, Any]]) -> str:
    """Points that were refused, and cells that failed, were cancelled, or needed more than one start."""
    told = [cell for cell in cells if cell.state in {"failed", "cancelled"} or cell.num_attempts > 1]
    rows = "".join(
        f'<tr><td><a href="{html.escape(f"cells/{cell.id}/report.html")}">{html.escape(cell.name)}</a></td>'
        f'<td><span class="state {word_class(cell.state)}">{html.escape(cell.state)}</span></td>'
        f"<td class=number>{cell.num_attempts or '–'}</td><td>{_ends(cell)}</td></tr>"
        for cell in told
    )
    rows += "".join(
        f'<tr data-refused><td>{html.escape(str(point.get("name", "")))}</td><td><span class="state failed">'
        f"refused</span></td><td class=number>–</td><td>{html.escape(str(point.get('reason', '')))}</td></tr>"
        for point in refused
    )
    head = "<thead><tr><th>cell</th><th>state</th><th class=number>starts</th><th>how they ended</th></tr></thead>"
    body = f'<table class="failures">{head}<tbody>{rows}</tbody></table>'
    return body if rows else '<p class="nothing">None: every cell ended at its first start, or has not begun.</p>'


def _ends(cell: Cell) -> str:
    """When each attempt began, where, how far it came, how it ended and why."""
    if not cell.attempts:
        return html.escape(
            cell.reason or ("cancelled by hand" if cell.state == "cancelled" else "no reason was recorded")
        )
    lines = []
    for attempt in cell.attempts:
        began = str(attempt.get("started") or "").split(".")[0].replace("T", " ")
        where = " ".join(str(attempt[key]) for key in ("host", "job") if attempt.get(key))
        reached = attempt.get("reached")
        ended = str(attempt.get("status") or "ended") + (f" at update {reached:,}" if is_number(reached) else "")
        lines.append(": ".join(part for part in (", ".join(p for p in (began, where) if p), ended) if part))
        lines[-1] += f", {attempt['reason']}" if attempt.get("reason") else ""
    return "<br>".join(html.escape(line) for line in lines)


def provenance(sweep: Mapping[str, Any], cells: Sequence[Cell]) -> str:
    """What the numbers rest on; what is not the same in all cells is said."""
    rows: dict[str, str] = {}
    sweep = {**sweep, "planned": {name: value for name, value in (sweep.get("planned") or {}).items() if value}}
    for name in (
        "recipe",
        "sweep",
        "sweep_hash",
        "created",
        "host",
        "yardstick",
        "tuning",
        "baseline",
        "keep",
        "analyses",
        "planned",
    ):
        if sweep.get(name):
            rows[name.replace("_", " ")] = html.escape(_readable(sweep[name]))
    for name in ("commit", "data_hash", "tokenizer_hash", "versions", "devices", "hardware", "schema", "confidence"):
        found = [cell.row.get(name) for cell in cells if cell.row.get(name) is not None]
        distinct = {_readable(value): value for value in found or ([sweep[name]] if sweep.get(name) else [])}
        if distinct:
            counts = {text: sum(_readable(value) == text for value in found) for text in distinct}
            several = len(distinct) > 1
            parts = [html.escape(text) + (f" ({cells_said(counts[text])})" if several else "") for text in distinct]
            warning = '<b class="warning">not the same in all cells: </b>' if several else ""
            rows[name.replace("_", " ")] = warning + "<br>".join(parts)
    seeds = sorted(
        {str(cell.row["seed"]) for cell in cells if cell.row.get("seed") is not None}, key=lambda s: (len(s), s)
    )
    if seeds:
        rows["seeds"] = html.escape(", ".join(seeds))
    hashes = {cell.row["config_hash"] for cell in cells if cell.row.get("config_hash")}
    if hashes:
        rows["settings"] = f"{len(hashes)} different; the hash of each is in rows.csv"
    return f"<dl>{''.join(f'<dt>{name}</dt><dd>{text}</dd>' for name, text in rows.items())}</dl>" if rows else ""


def _readable(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_readable(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_readable, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)

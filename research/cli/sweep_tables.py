"""Plans and states of cells as a person reads them."""

import datetime
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from research.sweeps.folder import Folder
from research.sweeps.ledger import DONE, RUNNING, Ledger
from research.sweeps.preflight import Checked
from research.sweeps.sweep import Cell
from research.train.metrics import METRICS, SUMMARY
from research.train.report import quantity

GIB = 2**30
SHOWN = 60
STYLES = {"done": "green", "running": "cyan", "failed": "red", "cancelled": "yellow", "pending": "dim"}


def plan_table(checked: Sequence[Checked]) -> Table:
    """What each cell will take."""
    timed = any(one.plan.get("seconds") for one in checked)
    numbers = ["parameters", "tokens", "FLOPs", "passes", *(["chip-hours"] if timed else [])]
    table = _table("id", "cell", *numbers, numbers=set(numbers))
    for one in checked[:SHOWN]:
        plan = one.plan
        if one.problem is not None:
            table.add_row(one.cell.id, escape(one.cell.name), "[red]refused[/red]")
            continue
        cells = [
            quantity(plan["parameters"]),
            quantity(plan["tokens"]),
            f"{plan['flops']:.2e}",
            f"{plan['epochs']:.2f}",
        ]
        hours = [f"{plan['chip_hours']:,.2f}" if plan["chip_hours"] else "-"] if timed else []
        table.add_row(one.cell.id, escape(one.cell.name), *cells, *hours)
    if len(checked) > SHOWN:
        table.add_row("...", f"and {len(checked) - SHOWN} more")
    return table


def refusals(problems: Sequence[tuple[str, str]]) -> Table:
    """Cells that cannot be run, and why."""
    table = _table("refused", "because")
    for name, reason in problems[:SHOWN]:
        table.add_row(escape(name), escape(reason))
    return table


def total_line(sums: Mapping[str, float | None], count: int) -> str:
    """Sums over the cells."""
    parts = [f"{sums['flops'] or 0:.2e} FLOPs", f"{quantity(sums['tokens'] or 0)} tokens"]
    parts.append(f"{(sums['bytes'] or 0) / GIB:.2g} GiB of checkpoints that stay")
    if sums["chip_hours"] is not None:
        parts.append(f"{sums['chip_hours']:,.1f} chip-hours")
    if sums["cost"] is not None:
        parts.append(f"cost {sums['cost']:,.0f}")
    return f"{count} {'cell' if count == 1 else 'cells'}: {', '.join(parts)}"


def statuses(folder: Folder) -> list[dict[str, Any]]:
    """Where each cell stands, as plain JSON."""
    ledger = Ledger(folder.directory)
    return [_status(folder, ledger, cell) for cell in folder.cells]


def _status(folder: Folder, ledger: Ledger, cell: Cell) -> dict[str, Any]:
    state, run = ledger.seen(cell.id), folder.run(cell.id)
    attempts = state["attempts"]
    last = last_row(run / METRICS)
    found: dict[str, Any] = {
        "id": cell.id,
        "name": cell.name,
        "state": state["state"],
        "step": int(last.get("step", 0)),
        "num_steps": cell.settings.train.num_steps,
        "loss": last.get("loss"),
        "bits_per_byte": None,
        "attempts": len(attempts),
        "began": attempts[0]["started"] if attempts else None,
        "holder": ledger.holder(cell.id) if state["state"] == RUNNING else None,
        "reason": attempts[-1]["reason"] if attempts and state["state"] != DONE else None,
    }
    if state["state"] == DONE and (run / SUMMARY).exists():
        found["bits_per_byte"] = json.loads((run / SUMMARY).read_text())["heldout_bits_per_byte"]
    return found


def last_row(path: Path) -> dict[str, Any]:
    """The last complete row of a `metrics.jsonl`, without reading the others."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 65536))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return {}
    for line in reversed(lines[:-1]):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        return found if isinstance(found, dict) else {}
    return {}


def status_table(found: Sequence[Mapping[str, Any]]) -> Table:
    """Where the cells stand; those that run or failed first where there are many."""
    table = _table(
        "id", "cell", "state", "update", "loss", "bits/byte", "tries", "", numbers={"update", "loss", "tries"}
    )
    order = ["running", "failed", "pending", "cancelled", "done"]
    shown = list(found)
    if len(shown) > SHOWN:
        shown = sorted(shown, key=lambda one: order.index(one["state"]))[:SHOWN]
    for one in shown:
        style = STYLES[one["state"]]
        holder = one["holder"]
        table.add_row(
            one["id"],
            escape(one["name"]),
            f"[{style}]{one['state']}[/{style}]",
            f"{one['step']:,}/{one['num_steps']:,}" if one["step"] else "",
            f"{one['loss']:.4f}" if isinstance(one["loss"], float) else "",
            f"{one['bits_per_byte']:.4f}" if one["bits_per_byte"] is not None else "",
            str(one["attempts"] or ""),
            escape(one["reason"] or (f"{holder['host']}:{holder['pid']}" if holder else "")),
        )
    if len(found) > SHOWN:
        table.add_row("...", f"and {len(found) - SHOWN} more")
    return table


def summary_line(folder: Folder, found: Sequence[Mapping[str, Any]]) -> str:
    """How many cells are where, and how long the rest may take at the pace so far."""
    states = [one["state"] for one in found]
    parts = [f"{states.count(state)} {state}" for state in STYLES if state in states]
    left = seconds_left(folder, found)
    return f"{len(found)} cells: {', '.join(parts)}" + (f"; about {_duration(left)} left" if left else "")


def seconds_left(folder: Folder, found: Sequence[Mapping[str, Any]]) -> float | None:
    """By the operations a second since the first cell began, waits included; none before any has been done."""
    began = [one["began"] for one in found if one["began"]]
    flops = {entry["id"]: entry["plan"]["flops"] for entry in folder.content["cells"]}
    shares = {one["id"]: 1.0 if one["state"] == DONE else one["step"] / one["num_steps"] for one in found}
    done = sum(flops[cell] * share for cell, share in shares.items())
    left = sum(flops[one["id"]] * (1 - shares[one["id"]]) for one in found if one["state"] in ("pending", "running"))
    if not began or not done or not left or "running" not in [one["state"] for one in found]:
        return None
    since = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(min(began))
    return float(left / done * since.total_seconds())


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _table(*columns: str, numbers: set[str] | None = None) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in columns:
        right = column in (numbers or set())
        table.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=column == "id")
    return table

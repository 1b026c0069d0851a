"""`report.html` of a sweep: its question, the answer, how sure that is, and all that it rests on, in one file."""

import html
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from research.scaling import report_charts as charts
from research.scaling import report_comparison, report_findings, report_transfer
from research.scaling import report_record as record
from research.scaling import report_tables as tables
from research.scaling.headline import answer, headline_fits, ranked_all, tuning, yardstick
from research.scaling.report_cells import Cell, cells_said, groupings, kinds, ranked, read_cells
from research.train.metrics import encode, write_text
from research.train.page import duration, fill, is_number, quantity, section, tile

REPORT, ANSWER = "report.html", "answer.json"
_EXPONENTS = {"a": ("Optimal size", "N ∝ C^a"), "gamma": ("Loss above its floor", "L − E ∝ C^−γ")}


def write_report(
    directory: Path,
    sweep: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    curves: Mapping[str, Mapping[str, Any]],
    answers: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Writes `report.html`, and beside it `answer.json`; returns the report's path.

    What is not there is left out, and where something could not be fitted the page says so; nothing but the arguments
    is read, so that the same arguments give the same bytes.

    Args:
      directory: of the sweep; the page links to `cells/ID/report.html`, `rows.json` and `rows.csv` in it.
      sweep: `question`, `recipe`, `yardstick`, and what else its `sweep.json` says.
      rows: one a cell, see `research.sweeps.rows`; `id` is the only key that must be there.
      curves: by cell, columns of its training curve and its held-out figures, see `research.sweeps.rows.curves_of`.
      answers: fits, predictions and verdicts, as `answer.json` holds them; may be empty.
      settings: by cell, all settings by dotted key, for the differences between cells; points where none are given.

    Raises:
      UserError: a file cannot be written.
    """
    question = str(sweep.get("question") or directory.resolve().name)
    cells = read_cells(sweep, rows)
    slots = {"question": html.escape(question)}
    slots |= _found(sweep, cells, answers) | _measured(sweep, cells, curves, answers, settings or {})
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / ANSWER, _dump({"question": question, **answers}))
    write_text(directory / REPORT, fill("research.scaling", "report_template.html", slots))
    return directory / REPORT


def _found(sweep: Mapping[str, Any], cells: Sequence[Cell], answers: Mapping[str, Any]) -> dict[str, str]:
    """The answer, and what it is made of."""
    fits = [fit for fit in answers.get("fits") or [] if isinstance(fit, Mapping)]
    confidence = answers.get("confidence") or 0.95
    told = answers.get("verdicts") or []
    verdicts = unfounded(sweep, answers) or report_findings.verdicts(told, _unit(cells), _higher(cells), confidence)
    predictions = report_findings.predictions(
        answers.get("predictions") or [], cells, confidence, fits, answers.get("foretold")
    )
    fitted = report_findings.estimates(fits, confidence) or missing_fits(sweep, cells, answers)
    compared = report_comparison.section(sweep, cells, answers)
    status, status_text = progress(cells)
    return {
        "status": status,
        "status_text": html.escape(status_text),
        "answer": html.escape(answer(cells, answers)),
        "yardstick": html.escape(yardstick(cells)),
        "tuning": html.escape(tuning(sweep, answers)),
        "tiles": tiles(cells, fits),
        "verdicts": section("Verdicts", "verdicts", verdicts),
        "compared": section("Objectives compared", "compared", compared),
        "estimates": section("Fits", "fits", fitted),
        "predictions": section("Predicted, then measured", "predictions", predictions),
    }


def _measured(
    sweep: Mapping[str, Any],
    cells: Sequence[Cell],
    curves: Mapping[str, Mapping[str, Any]],
    answers: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any]],
) -> dict[str, str]:
    """Charts, cells, and what they rest on."""
    from plotly.offline import get_plotlyjs

    shared, own = tables.split_settings({cell.id: settings.get(cell.id) or cell.point for cell in cells})
    ways = groupings(cells)
    first = charts.default_grouping(ways, answers)
    drawn = report_transfer.drawings(answers.get("transfer") or {}, _unit(cells))
    drawn += charts.drawings(cells, curves, answers, first)
    data = {
        "cells": [_plain(cell) for cell in cells],
        "groupings": [vars(way) for way in ways],
        "curves": charts.cell_curves(cells, curves),
        "charts": drawn,
        "settings": own,
        "meanings": {
            name: tables.meaning(name) for name in dict.fromkeys(name for flat in own.values() for name in flat)
        },
    }
    rates = report_transfer.section(answers.get("transfer") or {})
    rates += f'<div class="charts">{charts.figures(drawn, {"transfer", "rates"})}</div>' if rates else ""
    return {
        "transfer": section(report_transfer.heading(answers.get("transfer") or {}), "transfer", rates),
        "groupings": "".join(
            f'<option value="{number}"{" selected" if way is first else ""}>{html.escape(way.label)}</option>'
            for number, way in enumerate(ways)
        ),
        "fitted_charts": charts.figures(drawn, {"isoflop", "surface", "frontier"}),
        "curve_charts": charts.figures(drawn, {"heldout", "train"}),
        "cells": tables.cell_table(cells),
        "options": tables.options(cells),
        "shared": tables.shared_settings(shared),
        "failures": section("Failures and retries", "failures", record.failures(cells, sweep.get("refused") or [])),
        "provenance": section("Provenance", "provenance", record.provenance(sweep, cells)),
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        "script": resources.files("research.scaling").joinpath("report.js").read_text(encoding="utf-8"),
        "plotly": get_plotlyjs() if drawn else "",
    }


# --- parts -----------------------------------------------------------------------------------------------------------


def _unit(cells: Sequence[Cell]) -> str:
    found = kinds(cells)
    return found[0].label if len(found) == 1 else "each comparison's own yardstick"


def unfounded(sweep: Mapping[str, Any], answers: Mapping[str, Any]) -> str:
    """Why there are no verdicts, where they were asked for."""
    reason = answers.get("verdicts_refused")
    if "verdict" in (sweep.get("analyses") or ()) and not sweep.get("baseline") and not answers.get("verdicts"):
        reason = "the sweep names no baseline to compare with"
    return f'<p class="nothing">No verdicts: {html.escape(str(reason))}.</p>' if reason else ""


def _higher(cells: Sequence[Cell]) -> bool:
    return all(kind.higher for kind in kinds(cells)) and bool(cells)


def missing_fits(sweep: Mapping[str, Any], cells: Sequence[Cell], answers: Mapping[str, Any]) -> str:
    """Why there is no fit, unless none was asked for."""
    if sweep.get("analyses") and not {"fit", "isoflop"} & set(sweep["analyses"]):
        return ""
    count = len(ranked_all(cells))
    sizes = {cell.number("parameters") for cell in ranked_all(cells)}
    known = "all cells have one size, which is no question of scale" if len(sizes) == 1 else "no analysis was run"
    reason = answers.get("refused") or (known if count > 1 else f"{count} of {len(cells)} cells are measured")
    verdicts = " The comparisons below need none." if answers.get("verdicts") else ""
    return f'<p class="nothing">Nothing was fitted: {html.escape(str(reason))}.{verdicts}</p>'


def progress(cells: Sequence[Cell]) -> tuple[str, str]:
    """A word for its colour, and how many cells are in which state."""
    counts = Counter(cell.state for cell in cells)
    done = counts.pop("done", 0)
    others = "".join(f", {count} {state}" for state, count in sorted(counts.items()))
    word = "failed" if counts.get("failed") else ("complete" if done == len(cells) and cells else "unfinished")
    return word, f"{done} of {len(cells)} cells done{others}"


def tiles(cells: Sequence[Cell], fits: Sequence[Mapping[str, Any]]) -> str:
    """The headline figures: what was found, then what it cost."""
    found = []
    for kind in kinds(cells)[:3]:
        if order := ranked(cells, kind):
            found.append(
                tile(("Highest " if kind.higher else "Lowest ") + kind.label, charts.figure(order[0]), order[0].name)
            )
    for fit in headline_fits(fits):
        for name in ("a", "gamma"):
            value = (fit.get("estimates") or {}).get(name) or {}
            if is_number(value.get("value")) and len(found) < 5:
                between = f"{value['low']:.3f} to {value['high']:.3f}, " if is_number(value.get("low")) else ""
                label, law = _EXPONENTS[name]
                found.append(tile(label, f"{value['value']:.3f}", f"{between}{law}, {charts.title(fit)}"))
    for label, name, unit in (
        ("Compute", "model_flops", "model FLOPs, all cells"),
        ("Tokens", "tokens_seen", "seen, all cells"),
    ):
        total = sum(cell.number(name) or 0 for cell in cells)
        if total:
            found.append(tile(label, charts.scientific(total) if name == "model_flops" else quantity(total), unit))
    return "".join([*found, *_costs(cells)])


def _costs(cells: Sequence[Cell]) -> list[str]:
    found = []
    for name, label in (("chip_hours", "Chip-hours"), ("core_hours", "Core-hours")):
        hours = [value for cell in cells if (value := cell.number(name)) is not None]
        if hours:
            found.append(tile(label, f"{sum(hours):.3g}", f"{cells_said(len(hours))}, failed attempts included"))
    seconds = [cell.seconds for cell in cells if cell.seconds is not None]
    if seconds and not found:
        found.append(tile("Time", duration(sum(seconds)), f"wall clock of {cells_said(len(seconds))}, added"))
    starts = sum(max(cell.num_attempts - 1, 0) for cell in cells)
    failed = sum(cell.state == "failed" for cell in cells)
    retried = f"{starts} {'retry' if starts == 1 else 'retries'}"
    return [*found, tile("Failed", str(failed), retried)] if failed or starts else found


def _plain(cell: Cell) -> dict[str, Any]:
    return {
        "id": cell.id,
        "name": cell.name,
        "state": cell.state,
        "kind": cell.kind.key,
        "label": cell.kind.label,
        "y": cell.measure,
        "parameters": cell.number("parameters"),
        "non_embedding_parameters": cell.number("non_embedding_parameters"),
        "tokens": cell.number("tokens_seen", "tokens"),
        "flops": cell.number("model_flops"),
        "loss": cell.number("train_loss"),
    }


def _dump(value: Any) -> str:
    return json.dumps(json.loads(encode(value)), indent=2, ensure_ascii=False) + "\n"

"""Tables of a sweep's report, as HTML: cells, estimates, verdicts, predictions, failures, what a run rests on."""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from research.scaling.report_cells import Cell, Grouping, cells_said, distinguishing, kinds
from research.scaling.report_charts import figure, interval, scientific, title
from research.settings import Settings, keys
from research.train.page import duration, is_number, quantity

_KEYS = {key.name: key for key in keys(Settings)}
MOST_KEYS = 6  # columns of the cell table that say what a cell is


def cell_table(cells: Sequence[Cell], grouping: Grouping) -> str:
    """One row a cell, each with what it sorts by, and a link to its own report."""
    keys = distinguishing(cells)[:MOST_KEYS]
    several = len(kinds(cells)) > 1
    heads = [("cell", False), ("state", False), *[(key, False) for key in keys], ("parameters", True)]
    heads += [("tokens", True), ("model FLOPs", True)]
    heads += [("yardstick", False), ("to baseline", False)] if several else []
    heads += [(kinds(cells)[0].label if not several and cells else "measure", True), ("training loss", True)]
    heads += [("time", True), ("starts", True), ("id", False)]
    head = "".join(
        f'<th class="{"number" if number else ""}" aria-sort="none" data-name="{html.escape(_short(name))}">'
        f'<button type="button" title="sort by {html.escape(name)}">{html.escape(_short(name))}</button></th>'
        for name, number in heads
    )
    rows = "".join(_cell_row(cell, keys, several, group) for cell, group in zip(cells, grouping.of, strict=True))
    return f'<table class="cells" id="cell-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _cell_row(cell: Cell, keys: Sequence[str], several: bool, group: int) -> str:
    link = html.escape(f"cells/{cell.id}/report.html", quote=True)
    shown = html.escape(cell.name)
    name = f'<i class="swatch" data-cell="{html.escape(cell.id)}"></i><a href="{link}" title="{shown}">{shown}</a>'
    columns = [
        _td(name, cell.name),
        _td(f'<span class="state {_class(cell.state)}">{html.escape(cell.state)}</span>', cell.state),
    ]
    columns += [_td(html.escape(_literal(cell.point.get(key, "–"))), cell.point.get(key, "")) for key in keys]
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
    columns.append(_td(str(cell.num_attempts or "–"), cell.num_attempts, number=True))
    columns.append(_td(f"<code>{html.escape(cell.id)}</code>", cell.id))
    return f'<tr data-cell="{html.escape(cell.id)}">{"".join(columns)}</tr>'


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


def estimates(fits: Sequence[Mapping[str, Any]], confidence: float) -> str:
    """What each method found, with its interval; what it refused, and why."""
    noted = [list(fit.get("notes") or []) for fit in fits if not fit.get("refused")]
    shared = [note for note in (noted[0] if noted else []) if all(note in notes for notes in noted)]
    rows = []
    for fit in fits:
        name = f"<b>{html.escape(title(fit))}</b>"
        if fit.get("refused"):
            rows.append(
                f'<tr><td>{name}</td><td class="refusal">Not fitted: {html.escape(str(fit["refused"]))}</td></tr>'
            )
            continue
        found = fit.get("estimates") or {}
        values = "".join(
            f'<span class="estimate"><var>{html.escape(key)}</var> {html.escape(interval(value, _digits))}</span>'
            for key, value in found.items()
        )
        form = html.escape(str(fit.get("form") or ""))
        own = [note for note in fit.get("notes") or [] if note not in shared]
        said = "".join(f"<div class=note>{html.escape(str(note))}</div>" for note in own)
        rows.append(f"<tr><td>{name}<div class=note>{form}</div></td><td>{values}{said}</td></tr>")
    assumed = "".join(f" {html.escape(str(note))}." for note in shared if not str(note).startswith("N counts"))
    lead = f'<p class="lead">Estimates with {confidence:.0%} intervals. N counts {_counted(fits)}.{assumed}</p>'
    return f'{lead}<table class="fits"><tbody>{"".join(rows)}</tbody></table>' if rows else ""


def _counted(fits: Sequence[Mapping[str, Any]]) -> str:
    counts = dict.fromkeys(str(fit.get("count") or "parameters") for fit in fits)
    return " or ".join({"parameters": "all parameters"}.get(count, count.replace("_", " ")) for count in counts)


def verdicts(found: Sequence[Mapping[str, Any]], unit: str, higher: bool, confidence: float) -> str:
    """One row a comparison: the effect as a point with its interval about zero, and what follows."""
    known = [verdict.get(end) for verdict in found for end in ("effect", "low", "high")]
    most = 1.08 * max((abs(value) for value in known if is_number(value)), default=0.0) or 1.0
    baselines = {str(verdict["against"]) for verdict in found if verdict.get("against")}
    ends = ("worse", "better") if higher else ("better", "worse")
    rows = []
    for verdict in found:
        word = str(verdict.get("verdict") or "")
        against = f" <small>against {html.escape(str(verdict['against']))}</small>" if len(baselines) > 1 else ""
        p = next((verdict[name] for name in ("p_adjusted", "p") if is_number(verdict.get(name))), None)
        flipped = verdict.get("p_permutation")
        flips = f" <small>signs {flipped:.2g}</small>" if is_number(flipped) else ""
        rows.append(
            f"<tr data-verdict><td>{html.escape(str(verdict.get('name') or ''))}{against}</td>"
            f"<td class=number>{html.escape(interval(verdict, signed, 'effect'))}</td>"
            f"<td>{_strip(verdict, 'effect', -most, most, 0.0)}</td>"
            f"<td class=number>{'–' if p is None else f'{p:.2g}'}{flips}</td>"
            f"<td class=number>{html.escape(str(verdict.get('seeds', '–')))}</td>"
            f'<td><b class="word {_class(word)}">{html.escape(word)}</b> '
            f"{html.escape(_follows(verdict))}</td></tr>"
        )
    beside = f" against {html.escape(min(baselines))}" if len(baselines) == 1 else ""
    head = (
        f"<thead><tr><th>changed</th><th class=number>effect ({confidence:.0%})</th><th>{' ← 0 → '.join(ends)}</th>"
        "<th class=number>p</th><th class=number>seeds</th><th>verdict</th></tr></thead>"
    )
    lead = (
        f'<p class="lead">Effects on {html.escape(unit)}{beside}, paired by seed; p after correction for the number of '
        "comparisons where there are several; beside it, of a test that flips the signs of differences.</p>"
    )
    body = f'<div class="scroll"><table class="verdicts">{head}<tbody>{"".join(rows)}</tbody></table></div>'
    return lead + body if rows else ""


def _follows(verdict: Mapping[str, Any]) -> str:
    """What a verdict leaves open; its effect and test stand in the other columns."""
    word, more, sentence = verdict.get("verdict"), verdict.get("more_seeds"), str(verdict.get("sentence") or "")
    if is_number(more) and word == "inconclusive":
        return f"{more} more {'seed' if more == 1 else 'seeds'} would settle it, if effect and spread are as seen"
    if word == "equal":
        return f"within {verdict.get('margin')}, which was said not to matter"
    return sentence.rpartition("; ")[2] if word == "inconclusive" else ("" if "p_permutation" in verdict else sentence)


def predictions(found: Sequence[Mapping[str, Any]], cells: Sequence[Cell], confidence: float) -> str:
    """What was predicted for cells that were not fitted, beside what was then measured."""
    names = {cell.id: cell.name for cell in cells}
    rows, inside = [], 0
    for prediction in found:
        low, high, measured = (prediction.get(name) for name in ("low", "high", "measured"))
        known = is_number(measured) and is_number(low) and is_number(high)
        hit = known and low <= measured <= high  # type: ignore[operator]
        inside += bool(hit)
        marks = [v for v in (low, high, measured, prediction.get("predicted")) if is_number(v)]
        spread = (max(marks) - min(marks)) or 1.0 if marks else 1.0
        strip = (
            _strip(prediction, "predicted", min(marks) - spread / 4, max(marks) + spread / 4, measured) if marks else ""
        )
        gap = (
            measured - prediction["predicted"]
            if is_number(measured) and is_number(prediction.get("predicted"))
            else None
        )
        cell = str(prediction.get("cell", ""))
        rows.append(
            f"<tr data-prediction><td>{html.escape(names.get(cell, str(prediction.get('name', cell))))}</td>"
            f"<td class=number>{html.escape(interval(prediction, name='predicted'))}</td>"
            f"<td class=number>{interval({'value': measured})}</td><td>{strip}</td>"
            f"<td class=number>{'–' if gap is None else signed(gap)}</td>"
            f"<td>{('inside' if hit else 'outside') if known else 'not measured yet'}</td></tr>"
        )
    if not rows:
        return ""
    head = (
        f"<thead><tr><th>held out</th><th class=number>predicted ({confidence:.0%})</th><th class=number>measured</th>"
        "<th>interval, measured as a line</th><th class=number>measured less predicted</th><th></th></tr></thead>"
    )
    lead = f'<p class="lead">{inside} of {len(rows)} measured inside the interval that was predicted without them.</p>'
    return f'{lead}<div class="scroll"><table class="verdicts">{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _strip(found: Mapping[str, Any], name: str, low: float, high: float, line: Any) -> str:
    """An interval as a bar with its point, and a line across, between two ends; numbers stand beside it."""

    def place(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    marks = [f'<s style="left:{place(line)}"></s>'] if is_number(line) else []
    if is_number(found.get("low")) and is_number(found.get("high")):
        width = 100 * (found["high"] - found["low"]) / (high - low)
        marks.append(f'<i style="left:{place(found["low"])};width:{width:.2f}%"></i>')
    if is_number(found.get(name)):
        marks.append(f'<b style="left:{place(found[name])}"></b>')
    return f'<span class="strip" aria-hidden="true">{"".join(marks)}</span>'


def failures(cells: Sequence[Cell], refused: Sequence[Mapping[str, Any]]) -> str:
    """Points that were refused, and cells that failed, were cancelled, or needed more than one start."""
    told = [cell for cell in cells if cell.state in {"failed", "cancelled"} or cell.num_attempts > 1]
    rows = "".join(
        f'<tr><td><a href="{html.escape(f"cells/{cell.id}/report.html")}">{html.escape(cell.name)}</a></td>'
        f'<td><span class="state {_class(cell.state)}">{html.escape(cell.state)}</span></td>'
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
    if not cell.attempts:
        return html.escape(cell.reason or "no reason was recorded")
    parts = [
        " ".join(str(a[key]) for key in ("started", "status", "reason", "host", "job") if a.get(key))
        for a in cell.attempts
    ]
    return "<br>".join(html.escape(part) for part in parts)


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


def _short(name: str) -> str:
    *rooms, last = name.split(".")
    return (rooms[-1] if rooms and last == "name" else last).replace("_", " ")


def _class(word: str) -> str:
    return word if word.isidentifier() else "other"


def signed(value: float) -> str:
    """`+0.0123`, `−0.0123`."""
    return (f"{value:+.4f}" if abs(value) < 1000 else f"{value:+.4g}").replace("-", "−")


def _digits(value: float) -> str:
    return f"{value:#.4g}".rstrip(".") if 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"


def _literal(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _readable(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_readable(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_readable, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""A fit as one page: estimates, optima, and what they rest on as charts; works offline."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.scaling.rows import Runs
from research.train.page import fill, section

# Told apart by everyone (Okabe & Ito 2008).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a8a8a")


def page(name: str, record: Mapping[str, Any], runs: Runs) -> str:
    """HTML of a record (`answers.record`) over the runs that it was fitted to."""
    from plotly.offline import get_plotlyjs

    charts: dict[str, Any] = {}
    parts = [_fit(number, fit, runs, record["confidence"], charts) for number, fit in enumerate(record["fits"])]
    notes = list(dict.fromkeys(note for fit in record["fits"] for note in fit.get("notes", ())))
    listed = f"<ul>{''.join(f'<li>{html.escape(note)}</li>' for note in notes)}</ul>" if notes else ""
    slots = {
        "name": html.escape(name),
        "fits": "".join(parts),
        "assumed": section("Assumed", "assumed", listed),
        "provenance": html.escape(json.dumps(record["provenance"], ensure_ascii=False)),
        "plotly": get_plotlyjs() if charts else "",
        "charts": json.dumps(charts).replace("<", "\\u003c"),
    }
    return fill("research.scaling", "fit_template.html", slots)


def _fit(number: int, fit: Mapping[str, Any], runs: Runs, confidence: float, charts: dict[str, Any]) -> str:
    """One approach."""
    title, anchor = html.escape(fit["title"]), f"fit{number}"
    if fit.get("refused"):
        return section(title, anchor, f'<p class="refused">Not fitted: {html.escape(fit["refused"])}</p>')
    lines = [
        (name, f"{found['value']:.5g}", f"{found['low']:.5g} to {found['high']:.5g}")
        for name, found in fit["estimates"].items()
    ]
    body = _table(("estimate", "value", f"{confidence:.0%} interval"), lines)
    counted = "N, non-embedding" if fit["count"] == "non_embedding_parameters" else "N, all parameters"
    optima, frontier = fit["optima"], fit["frontier"]
    if optima:
        loss = "loss" in optima[0]
        head = ("budget, FLOPs", f"optimal {counted}", "optimal D", *(("loss",) if loss else ()))
        keys = ("parameters", "tokens", *(("loss",) if loss else ()))
        body += _table(head, [(f"{row['flops']:.3g}", *(_between(row[key]) for key in keys)) for row in optima])
    if frontier:
        charts[f"frontier{number}"] = _frontier(frontier)
        body += f'<div class="plot" id="frontier{number}"></div>'
    if fit["parabolas"]:
        charts[f"parabolas{number}"] = _parabolas(fit["parabolas"], runs, counted)
        body += f'<div class="plot" id="parabolas{number}"></div>'
    for said in fit["predictions"]:
        word = "inside" if said["inside"] else "outside"
        body += (
            f'<p class="{word}">{html.escape(said["cell"])}: predicted {said["predicted"]:.4f} ({said["low"]:.4f} to '
            f"{said['high']:.4f}), measured {said['measured']:.4f}, {word} the interval</p>"
        )
    return section(title, anchor, f'<p class="form">{html.escape(fit["form"])} · {fit["runs"]} runs</p>{body}')


def _frontier(frontier: Any) -> dict[str, Any]:
    """Optimal N and D by compute, with bars."""
    traces = []
    for key, name in (("parameters", "optimal N"), ("tokens", "optimal D")):
        found = [row[key] for row in frontier]
        bars = {
            "type": "data",
            "array": [one["high"] - one["value"] for one in found],
            "arrayminus": [one["value"] - one["low"] for one in found],
        }
        place = {"x": [row["flops"] for row in frontier], "y": [one["value"] for one in found]}
        traces.append({"type": "scatter", "mode": "lines+markers", "name": name, "error_y": bars, **place})
    return {"data": traces, "x": {"type": "log", "title": {"text": "FLOPs"}}, "y": {"type": "log"}}


def _parabolas(parabolas: Any, runs: Runs, counted: str) -> dict[str, Any]:
    """Losses over sizes, a colour a budget."""
    places = {name: row for row, name in enumerate(runs.names)}
    traces: list[dict[str, Any]] = []
    for number, one in enumerate(parabolas):
        colour = COLOURS[number % len(COLOURS)]
        rows = np.array([places[name] for name in one["cells"]])
        name = f"{one['flops']:.2e} FLOPs"
        points = {"x": runs.parameters[rows].tolist(), "y": runs.loss[rows].tolist()}
        line = {"x": [x for x, _ in one["curve"]], "y": [y for _, y in one["curve"]]}
        traces.append({"type": "scatter", "mode": "markers", "name": name, "marker": {"color": colour}, **points})
        traces.append({"type": "scatter", "mode": "lines", "showlegend": False, "line": {"color": colour}, **line})
        least = {"x": [one["minimum"]["parameters"]], "y": [one["minimum"]["loss"]]}
        star = {"color": colour, "symbol": "star", "size": 12}
        traces.append({"type": "scatter", "mode": "markers", "showlegend": False, "marker": star, **least})
    return {"data": traces, "x": {"type": "log", "title": {"text": counted}}, "y": {"title": {"text": "loss"}}}


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _between(found: Mapping[str, float]) -> str:
    return f"{found['value']:.4g} ({found['low']:.4g} to {found['high']:.4g})"

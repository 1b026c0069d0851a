"""What the report of a sweep draws: plain dictionaries that its script turns into charts, and each chart in words."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from research.scaling.report_cells import Cell, Grouping, Kind, cells_said, kinds, ranked
from research.train import curves
from research.train.page import is_number, quantity

POINTS_OF_CURVE, POINTS_OF_SURFACE = 160, 41
_AXES = {"step": "step", "tokens": "tokens_seen", "flops": "model_flops", "seconds": "seconds"}
Chart = dict[str, Any]


def cell_curves(cells: Sequence[Cell], found: Mapping[str, Mapping[str, Any]]) -> dict[str, Chart]:
    """Training and held-out curves by cell, each over steps, tokens, FLOPs and seconds of training."""
    drawn = {cell.id: _curve(cell, found[cell.id]) for cell in cells if found.get(cell.id)}
    return {cell: curve for cell, curve in drawn.items() if curve}


def _curve(cell: Cell, columns: Mapping[str, Any]) -> Chart:
    arrays = {name: np.asarray(values, np.float64) for name, values in columns.items()}
    if not len(arrays.get("step", [])):
        return {}
    over = {axis: arrays[name] for axis, name in _AXES.items() if name in arrays}
    chart: Chart = {}
    if "loss" in arrays:
        places = curves.thinned(arrays["loss"], POINTS_OF_CURVE)
        chart["train"] = _line(arrays["loss"][places], {axis: x[places] for axis, x in over.items()})
    measure = f"heldout_{cell.kind.key.split(' of ')[0]}"
    if len(arrays.get(measure, [])):
        steps = arrays["heldout_step"]
        along = {axis: np.interp(steps, arrays["step"], x) for axis, x in over.items()}
        chart["heldout"] = _line(arrays[measure], along)
    return chart


def _line(y: Float[np.ndarray, " n"], over: Mapping[str, np.ndarray]) -> Chart:
    return {"y": curves.plain(y)} | {axis: curves.plain(x) for axis, x in over.items()}


def isoflop(fit: Mapping[str, Any], cells: Sequence[Cell]) -> list[Chart]:
    """Parabolas of a fit, each with points along it, its minimum, how sure that is, and the cells that it runs through.

    Fits name cells by their names, or by their ids where names are not unique.
    """
    ids = {cell.name: cell.id for cell in cells} | {cell.id: cell.id for cell in cells}
    found = []
    for parabola in fit.get("parabolas") or []:
        curve = parabola.get("curve") or []
        chart = {"flops": parabola.get("flops"), "minimum": parabola.get("minimum") or {}}
        chart |= {"x": [point[0] for point in curve], "y": [point[1] for point in curve]}
        found.append(chart | {"cells": [ids[name] for name in parabola.get("cells") or [] if name in ids]})
    return found


def surface(fit: Mapping[str, Any], cells: Sequence[Cell], count: str) -> Chart:
    """L(N, D) over the range of the runs, on a grid even in logarithms; nothing where the fit has no such law."""
    if given := fit.get("surface"):
        return {"x": given["parameters"], "y": given["tokens"], "z": given["loss"]}
    if fit.get("name") != "parametric":
        return {}
    named = {name: value.get("value") for name, value in (fit.get("estimates") or {}).items()}
    law = [named.get(name) for name in ("E", "A", "alpha", "B", "beta")]
    runs = [(cell.number(count), cell.number("tokens_seen")) for cell in cells if cell.measure is not None]
    places = np.array([run for run in runs if run[0] and run[1]], np.float64)
    if not all(map(is_number, law)) or len(places) < 2:
        return {}
    least, constant_n, alpha, constant_d, beta = (float(value) for value in law)  # type: ignore[arg-type]
    low, high = np.log(places.min(axis=0)), np.log(places.max(axis=0))
    margin = np.maximum(0.12 * (high - low), 0.1)
    n, d = (np.exp(np.linspace(a, b, POINTS_OF_SURFACE)) for a, b in zip(low - margin, high + margin, strict=True))
    z = least + constant_n / n[None, :] ** alpha + constant_d / d[:, None] ** beta
    return {"x": curves.plain(n), "y": curves.plain(d), "z": [curves.plain(row) for row in z]}


def frontier(fit: Mapping[str, Any]) -> Chart:
    """Optimal parameters, tokens and loss by compute, each with its band."""
    points = [point for point in fit.get("frontier") or [] if is_number(point.get("flops"))]
    points = sorted(points, key=lambda point: point["flops"])
    chart: Chart = {"flops": [point["flops"] for point in points]}
    for name in ("parameters", "tokens", "loss"):
        values = [point.get(name) for point in points]
        if points and all(isinstance(value, Mapping) for value in values):
            chart[name] = {end: [value.get(end) for value in values] for end in ("value", "low", "high")}
    return chart if len(chart) > 1 else {}


# --- what is drawn ----------------------------------------------------------------------------------------------------


def drawings(
    cells: Sequence[Cell],
    found: Mapping[str, Mapping[str, Any]],
    answers: Mapping[str, Any],
    grouping: Grouping,
) -> list[Chart]:
    """All charts in the order of the page, each with its title, its unit and its words."""
    fits = [fit for fit in answers.get("fits") or [] if isinstance(fit, Mapping)]
    predicted = {str(prediction.get("cell")) for prediction in answers.get("predictions") or []}
    held = [cell.id for cell in cells if cell.row.get("held_out") or {cell.id, cell.name} & predicted]
    drawn: list[Chart] = []
    sorts: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for fit in fits:
        kind, count = _kind_of(fit, cells), str(fit.get("count") or "parameters")
        sorts.setdefault((kind.key, count), []).append(fit)
        of = {"count": count, "kind": kind.key, "unit": kind.unit, "heldout": held}
        if parabolas := isoflop(fit, cells):
            words = describe_isoflop(parabolas)
            head = {"what": "isoflop", "title": f"Equal compute: {title(fit)}", "words": words}
            drawn.append({**of, **head, "parabolas": parabolas})
        if grid := surface(fit, [cell for cell in cells if cell.kind == kind], count):
            words = "Contours of the fitted loss over parameters and tokens, the runs, the optimal frontier."
            head = {"what": "surface", "title": f"Fitted surface: {title(fit)}", "words": words}
            drawn.append({**of, **head, "surface": grid, "frontier": frontier(fit)})
    units = {kind.key: kind.unit for kind in kinds(cells)}
    for (key, count), alike in sorts.items():
        drawn += _frontiers(alike, {"count": count, "kind": key, "unit": units.get(key, ""), "heldout": held})
    return drawn + _curve_charts(cells, found, grouping)


def _frontiers(fits: Sequence[Mapping[str, Any]], of: Mapping[str, Any]) -> list[Chart]:
    """Best parameters, tokens and loss by compute: one chart each, a line for each method."""
    drawn = []
    stars = "; stars: minima of parabolas" if any(fit.get("parabolas") for fit in fits) else ""
    hollow = "; hollow: held out" if of["heldout"] else ""
    for name, heading, unit in (
        ("parameters", "Optimal parameters", f"by compute, with bands{stars}"),
        ("tokens", "Optimal tokens", "by compute, with bands"),
        ("loss", "Best loss", f"by compute, with bands, and the runs{hollow}"),
    ):
        lines = [
            {"name": title(fit), "flops": line["flops"], **line[name]}
            for fit in fits
            if name in (line := frontier(fit))
        ]
        if lines:
            words = f"{heading} by compute. {' '.join(describe_line(line, name) for line in lines)}"
            chart = {"what": "frontier", "of": name, "title": heading, "caption": unit, "words": words}
            drawn.append({**of, **chart, "lines": lines})
    return drawn


def _curve_charts(cells: Sequence[Cell], found: Mapping[str, Mapping[str, Any]], grouping: Grouping) -> list[Chart]:
    drawn = []
    for kind in kinds(cells):
        members = [cell for cell in cells if cell.kind == kind and found.get(cell.id)]
        if members:
            objectives = ", ".join(sorted({cell.objective for cell in members} - {""}))
            own = {"kind": kind.key, "words": describe_curves(cells, kind, grouping)}
            drawn += [
                {
                    "what": "heldout",
                    "title": f"Held-out {kind.label.removeprefix('held-out ')}",
                    "unit": kind.unit,
                    **own,
                },
                {"what": "train", "title": f"Training loss: {objectives}", "unit": "nats a target, smoothed", **own},
            ]
    return drawn


def _kind_of(fit: Mapping[str, Any], cells: Sequence[Cell]) -> Kind:
    found, group = kinds(cells), fit.get("group")
    named = (cell.kind for cell in cells if group and cell.objective == group)
    return next(named, found[0] if found else Kind("", "", "", False))


def default_grouping(ways: Sequence[Grouping], answers: Mapping[str, Any]) -> Grouping:
    """Budgets where isoFLOP parabolas were fitted, else objectives, else what verdicts change, else the first."""
    wanted = ["budget"] if any(fit.get("parabolas") for fit in answers.get("fits") or []) else []
    for key in [*wanted, "objective", "objective.name"]:
        if found := [way for way in ways if way.key == key]:
            return found[0]
    changed = [way for way in ways if way.key not in {"budget", "parameters", "all"} and not way.key.endswith("seed")]
    return changed[0] if answers.get("verdicts") and changed else ways[0]


def title(fit: Mapping[str, Any]) -> str:
    """Of a fit: its method, and what it was fitted to where there are several groups."""
    name = str(fit.get("title") or fit.get("name") or "fit").replace("_", " ")
    return f"{name}, {fit['group']}" if fit.get("group") else name


def figures(drawn: Sequence[Chart], what: set[str]) -> str:
    """The frames that the page's script draws into, each with its words for who does not see it."""
    return "".join(
        f"<figure><figcaption><b>{html.escape(chart['title'])}</b><span>"
        f"{html.escape(chart.get('caption') or chart['unit'])}</span></figcaption>"
        f'<div class="plot" role="img" aria-label="{html.escape(chart["words"])}" data-chart="{number}"></div></figure>'
        for number, chart in enumerate(drawn)
        if chart["what"] in what
    )


# --- charts in words --------------------------------------------------------------------------------------------------


def describe_curves(cells: Sequence[Cell], kind: Kind, grouping: Grouping) -> str:
    """What who does not see the curves must know of them."""
    best = ranked(cells, kind)
    own = [cell for cell in cells if cell.kind == kind]
    ends = (
        f" They end between {figure(best[0])} ({best[0].name}) and {figure(best[-1])} ({best[-1].name})."
        if best
        else ""
    )
    of = "" if grouping.key == "all" else f", coloured by {grouping.label}: {', '.join(grouping.values)}"
    return f"Curves of {cells_said(len(own))}, {kind.label}{of}.{ends}"


def describe_isoflop(parabolas: Sequence[Chart]) -> str:
    """Minima of the parabolas."""
    minima = [
        f"at {scientific(p['flops'])} FLOPs least at {interval(p['minimum'], quantity, 'parameters')} parameters"
        for p in parabolas
        if is_number(p["minimum"].get("parameters"))
    ]
    return f"Loss against parameters at equal compute, with a parabola for each budget: {'; '.join(minima)}."


def describe_line(line: Chart, name: str) -> str:
    """Both ends of a frontier."""
    rows = [{end: line[end][i] for end in ("value", "low", "high")} for i in (0, -1)]
    form = quantity if name != "loss" else _four
    ends = [
        f"{interval(row, form)} at {scientific(line['flops'][i])} FLOPs" for row, i in zip(rows, (0, -1), strict=True)
    ]
    return f"{line['name']}: from {ends[0]} to {ends[1]}."


def figure(cell: Cell) -> str:
    """A cell's measure, as it is written everywhere."""
    return "–" if cell.measure is None else _four(cell.measure)


def interval(found: Mapping[str, Any], form: Any = None, name: str = "value") -> str:
    """`1.23 (1.20 to 1.27)`; the value alone where no interval is known."""
    form, value = form or _four, found.get(name)
    if not is_number(value):
        return "–"
    low, high = found.get("low"), found.get("high")
    between = f" ({form(float(low))} to {form(float(high))})" if is_number(low) and is_number(high) else ""
    return form(float(value)) + between


def scientific(value: float) -> str:
    """`3.2e15`: compute and what else spans many powers of ten."""
    digits, power = f"{value:.2e}".split("e")
    return f"{digits}e{int(power)}"


def _four(value: float) -> str:
    size = abs(value)
    return f"{value:.4g}" if size and (size >= 1000 or size < 0.001) else f"{value:.4f}"

"""Transfer of the learning rate in a sweep's report: charts, a table, and what they say in words."""

import html
import math
from collections.abc import Mapping
from typing import Any

from research.scaling.report_charts import Chart, interval
from research.scaling.transfer import INTERVALS
from research.train.page import is_number

Found = Mapping[str, Any]
_BOUNDS = {"lowest": "≤ ", "highest": "≥ "}
VAGUE = 1.0  # exponents of either sign, as large as that, say nothing
STEEP = 4.0  # losses beyond so many times the median's distance from the least are cut off: they diverged


def answered(found: Found) -> list[Found]:
    """Series whose best rates are known."""
    return [one for one in found.get("series") or [] if one.get("optima")]


def heading(found: Found) -> str:
    """Of the section."""
    return "Transfer of the learning rate" if found.get("size") or found.get("refused") else "Best learning rates"


def sentences(found: Found) -> list[str]:
    """One for each series: how the best rate goes with the size, and what keeping the smallest's costs."""
    return [_sentence(one, str(found.get("called") or "size")) for one in answered(found)]


def _sentence(one: Found, called: str) -> str:
    optima, exponent = one["optima"], one.get("exponent") or {}
    under = f"{one['name']}: " if one.get("name") else ""
    if len(optima) == 1:
        end = f", the {optima[0]['edge']} tried" if optima[0].get("edge") else ""
        return f"{under}the best learning rate is {interval(optima[0]['rate'], _rate)}{end}"
    low, high = exponent.get("low"), exponent.get("high")
    if is_number(low) and is_number(high) and low < -VAGUE and high > VAGUE:
        grows = (
            f"how the best learning rate goes with the {called} these runs do not tell: {interval(exponent, _signed)}"
        )
    elif is_number(exponent.get("value")):
        grows = f"the best learning rate goes as {called}^{interval(exponent, _signed)}"
    else:
        grows = f"how the best learning rate goes with the {called} is not known"
    edges = {end: [_number(o["size"]) for o in optima if o.get("edge") == end] for end in ("lowest", "highest")}
    told = "".join(f", at {called} {' and '.join(at)} it is the {end} tried" for end, at in edges.items() if at)
    last, cost = optima[-1], optima[-1].get("cost")
    kept = f"keeping that of {called} {_number(optima[0]['size'])}"
    known = cost and is_number(cost.get("value"))
    costs = f"costs {interval(cost, _share)} of the loss" if known else "was not tried"
    return f"{under}{grows}{told}; {kept} {costs} at {called} {_number(last['size'])}"


def section(found: Found) -> str:
    """One row a size, with how it was found; what was refused, and why. The sentences stand in the answer."""
    if not found:
        return ""
    if found.get("refused"):
        return f'<p class="nothing">Not answered: {html.escape(str(found["refused"]))}.</p>'
    called, confidence = str(found.get("called") or "size"), found.get("confidence") or 0.95
    several, sizes = len(found.get("series") or []) > 1, bool(found.get("called"))
    rows = "".join(_rows(one, several, sizes) for one in found.get("series") or [])
    how = dict.fromkeys(str(one.get("intervals")) for one in answered(found))
    whence = "; ".join(INTERVALS[name] for name in how if name in INTERVALS)
    shared = [one for one in answered(found) if one.get("shared")]
    both = "".join(
        f" The {one['shared']} cells of {called} {_number(one['optima'][0]['size'])} stand for "
        f"{html.escape(str(one['name']))} as well, which is the same model there."
        for one in shared
    )
    at_each = f" at each {html.escape(called)}" if sizes else ""
    lead = (
        f'<p class="lead">The least loss over the learning rate{at_each}, by a parabola through '
        f"the lowest cell and its neighbours; {confidence:.0%} intervals: {html.escape(whence)}.{both} What is "
        "best at the end of the rates that were tried (≤, ≥) may lie outside and counts in no exponent.</p>"
    )
    heads = [*(["series"] if several else []), *([html.escape(called)] if sizes else [])]
    heads += ["best learning rate", "least loss", *(["cost of the smallest's rate"] if sizes else [])]
    cells = "".join(f"<th{'' if text == 'series' else ' class=number'}>{text}</th>" for text in heads)
    head = f"<thead><tr>{cells}</tr></thead>"
    return f'{lead}<div class="scroll"><table class="transfer">{head}<tbody>{rows}</tbody></table></div>'


def _rows(one: Found, several: bool, sizes: bool) -> str:
    name = f"<td>{html.escape(str(one.get('name') or ''))}</td>" if several else ""
    if one.get("refused"):
        return f'<tr>{name}<td colspan=4 class="refusal">Not answered: {html.escape(str(one["refused"]))}</td></tr>'
    rows = []
    for optimum in one["optima"]:
        cost, bound = optimum.get("cost") or {}, _BOUNDS.get(str(optimum.get("edge")), "")
        rows.append(
            f"<tr data-optimum>{name}"
            + (f"<td class=number>{_number(optimum['size'])}</td>" if sizes else "")
            + f"<td class=number>{bound}{html.escape(interval(optimum['rate'], _rate))}</td>"
            f"<td class=number>{optimum['loss']:.4f}</td>"
            + (f"<td class=number>{html.escape(interval(cost, _share))}</td>" if sizes else "")
            + "</tr>"
        )
    return "".join(rows)


def drawings(found: Found, unit: str) -> list[Chart]:
    """A panel a series, loss over the rate with a curve a size; and the best rates over the size of all series."""
    own = answered(found)
    if not own:
        return []
    called, sizes = str(found.get("called") or "size"), bool(found.get("called"))
    losses = sorted(loss for one in own for optimum in one["optima"] for _, loss in optimum["measured"])
    least, middle = losses[0], losses[len(losses) // 2]
    top = min(losses[-1], least + STEEP * (middle - least))
    room = 0.06 * (top - least) or 0.01
    drawn: list[Chart] = [
        {
            "what": "transfer",
            "title": "Loss over learning rate" + (f": {one['name']}" if one.get("name") else ""),
            "unit": unit,
            "caption": f"a curve for each {called}; stars: least" if sizes else "star: least",
            "words": "Loss over the learning rate"
            + (f", a curve for each {called}" if sizes else "")
            + f". {_sentence(one, called)}.",
            "sizes": sizes,
            "called": called,
            "range": [least - room, top + room],
            "curves": [_curve(optimum) for optimum in one["optima"]],
        }
        for one in own
    ]
    if not sizes:
        return drawn
    words = f"Best learning rate by {called}. {'. '.join(sentences(found))}."
    head = {"what": "rates", "title": f"Best learning rate by {called}", "unit": "learning rate", "words": words}
    shown = "with intervals and the power laws; hollow: at the end of the rates tried"
    return [*drawn, {**head, "called": called, "caption": shown, "series": [_line(one) for one in own]}]


def _curve(optimum: Found) -> Chart:
    rates, losses = zip(*optimum["measured"], strict=True)
    best = {"rate": optimum["rate"]["value"], "loss": optimum["loss"], "edge": bool(optimum.get("edge"))}
    return {"size": optimum["size"], "x": list(rates), "y": list(losses), "best": best}


def _line(one: Found) -> Chart:
    optima, exponent = one["optima"], one.get("exponent") or {}
    columns: Chart = {end: [optimum["rate"].get(end) for optimum in optima] for end in ("value", "low", "high")}
    columns = {end: [v if is_number(v) else None for v in values] for end, values in columns.items()}
    sizes = [optimum["size"] for optimum in optima]
    law = []
    if is_number(exponent.get("value")) and is_number(one.get("level")):
        law = [math.exp(one["level"]) * size ** exponent["value"] for size in sizes]
    name = one.get("name") or "best rate"
    return {"name": name, "sizes": sizes, "edge": [bool(o.get("edge")) for o in optima], "law": law, **columns}


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _share(value: float) -> str:
    return f"{value:.1%}"


def _rate(value: float) -> str:
    return f"{value:.3g}"


def _number(value: float) -> str:
    return f"{value:,.6g}"

"""What the analyses of a sweep found, as HTML: estimates, verdicts, predictions."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from research.scaling.report_cells import Cell, cells_said
from research.scaling.report_charts import interval, title
from research.scaling.report_tables import word_class
from research.train.page import is_number


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
            f'<td><b class="word {word_class(word)}">{html.escape(word)}</b> '
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


def predictions(
    found: Sequence[Mapping[str, Any]],
    cells: Sequence[Cell],
    confidence: float,
    fits: Sequence[Mapping[str, Any]] = (),
    foretold: Mapping[str, Any] | None = None,
) -> str:
    """What was predicted for cells that were not fitted, beside what was then measured.

    Args:
      found: the predictions of the law that was chosen.
      cells: all.
      confidence: of the intervals.
      fits: with the predictions of the other laws.
      foretold: `made` and `predictions`, as they were written down before any of these cells began.
    """
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
        held = sum(bool(cell.row.get("held_out")) for cell in cells)
        told = f"{cells_said(held)} held out, and nothing was predicted: no law could be fitted to the others."
        return f'<p class="lead">{told}</p>' if held and fits else ""
    head = (
        f"<thead><tr><th>held out</th><th class=number>predicted ({confidence:.0%})</th><th class=number>measured</th>"
        "<th>interval, measured as a line</th><th class=number>measured less predicted</th><th></th></tr></thead>"
    )
    lead = f"{inside} of {len(rows)} measured inside the interval that was predicted without them."
    lead += _before(found, foretold) + _by(found, fits)
    table = f'<table class="verdicts">{head}<tbody>{"".join(rows)}</tbody></table>'
    return f'<p class="lead">{lead}</p><div class="scroll">{table}</div>'


def _before(found: Sequence[Mapping[str, Any]], foretold: Mapping[str, Any] | None) -> str:
    """What stood in prediction.json before the cells began: these predictions, or others."""
    if not foretold:
        return ""
    made, ends = html.escape(str(foretold.get("made"))), ("low", "high")
    said = {one.get("cell"): [one.get(end) for end in ends] for one in foretold.get("predictions") or ()}
    known = [
        (said[one["cell"]], one.get("measured"), [one.get(end) for end in ends]) for one in found if one["cell"] in said
    ]
    if all(then == now for then, _, now in known):
        return f" The intervals stood in prediction.json on {made}, before these cells began."
    inside = sum(is_number(measured) and low <= measured <= high for (low, high), measured, _ in known)
    return (
        f" On {made}, before these cells began, prediction.json held other intervals: {inside} of {len(known)} inside "
        "them."
    )


def _by(found: Sequence[Mapping[str, Any]], fits: Sequence[Mapping[str, Any]]) -> str:
    """Which law predicted, and how the others that did would have fared."""
    made = {str(fit.get("name")): fit.get("predictions") or () for fit in fits}
    chosen = str(found[0].get("by", ""))
    others = {name: own for name, own in made.items() if own and name != chosen}
    if chosen not in made or not others:
        return ""
    named = {str(fit.get("name")): title(fit) for fit in fits}
    fared = [
        f"{sum(bool(one.get('inside')) for one in own)} of {len(own)} by {named[name]}" for name, own in others.items()
    ]
    return html.escape(
        f" They are of the law that the fitted cells scatter least about, {named[chosen]}; inside would have been "
        f"{', '.join(fared)}."
    )


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


def signed(value: float) -> str:
    """`+0.0123`, `−0.0123`."""
    return (f"{value:+.4f}" if abs(value) < 1000 else f"{value:+.4g}").replace("-", "−")


def _digits(value: float) -> str:
    return f"{value:#.4g}".rstrip(".") if 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"

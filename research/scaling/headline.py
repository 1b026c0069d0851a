"""The answer of a sweep in words, from what its analyses found."""

from collections.abc import Mapping, Sequence
from typing import Any

from research.scaling import report_charts as charts
from research.scaling import report_comparison, report_transfer
from research.scaling.report_cells import Cell, Kind, arms, cells_said, kinds, ranked
from research.scaling.report_findings import signed
from research.train.page import is_number

# Kaplan's law has no floor, which most runs have: it answers where the others are refused.
HEADLINES, LAST = {"curves", "isoflop", "parametric", "ladder"}, "kaplan"


def answer(cells: Sequence[Cell], answers: Mapping[str, Any]) -> str:
    """The answer in one sentence with its uncertainty, or what can be said without one."""
    if answers.get("answer"):
        return str(answers["answer"])
    laws: dict[Any, str] = {}  # of each group the first method that succeeded; the others stand below
    for fit in headline_fits(answers.get("fits") or []):
        if part := _law(fit):
            laws.setdefault(fit.get("group"), part)
    rates = report_transfer.sentences(answers.get("transfer") or {})
    found = [report_comparison.sentence(cells, answers), _decided(answers.get("verdicts") or []), *rates]
    said = list(dict.fromkeys(part for part in [*found, *laws.values(), _foretold(answers)] if part))
    if said:
        return "; ".join(said) + f" ({answers.get('confidence') or 0.95:.0%} intervals)."
    said = [part for kind in kinds(cells) if (part := _leader(cells, kind))]
    if not said:
        count = len(ranked_all(cells))
        return "No answer yet: " + (
            "one cell is measured." if count == 1 else "no two cells are measured by one yardstick."
        )
    return "; ".join(said) + ". Nothing was fitted or tested, so how sure that is cannot be said."


def tuning(sweep: Mapping[str, Any], answers: Mapping[str, Any]) -> str:
    """How rates and batches were chosen, which any comparison of sizes rests on."""
    if report_transfer.answered(answers.get("transfer") or {}) and sweep.get("tuning") in (None, "", "not stated"):
        return "Learning rates are what was varied."
    told = str(sweep.get("tuning") or "not stated").rstrip(".")
    return f"Learning rates and batch sizes: {told}."


def _leader(cells: Sequence[Cell], kind: Kind) -> str:
    """What measured best, by how much, and how much seeds alone make of that."""
    order = arms(cells, kind)
    if sum(len(values) for _, values in order) < 2:
        return ""
    end, (name, values) = "highest" if kind.higher else "lowest", order[0]
    means = [sum(values) / len(values) for _, values in order]
    of = f" (mean of {len(values)} seeds)" if len(values) > 1 else ""
    next_ = f", {abs(means[1] - means[0]):.4f} from the next" if len(means) > 1 else ""
    spread = max(max(values) - min(values) for _, values in order)
    beside = f", where seeds differ by up to {spread:.4f}" if any(len(values) > 1 for _, values in order) else ""
    return f"{name} has the {end} {kind.label}, {means[0]:.4f}{of}{next_}{beside}"


def _decided(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """What is better, what is worse, what is open."""
    parts = []
    for word in ("better", "worse", "equal", "inconclusive"):
        own = [verdict for verdict in verdicts if verdict.get("verdict") == word]
        named = [f"{verdict.get('name')} by {charts.interval(verdict, signed, 'effect')}" for verdict in own]
        if named:
            parts.append(f"{word}: {', '.join(named)}")
    against = {str(verdict.get("against")) for verdict in verdicts if verdict.get("against")}
    return (f"Against {min(against)}, " if len(against) == 1 and parts else "") + "; ".join(parts)


def headline_fits(fits: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of each group those that state exponents; Kaplan's law where no other does."""
    found = [fit for fit in fits if fit.get("name") in HEADLINES and not fit.get("refused")]
    answered = {fit.get("group") for fit in found if {"a", "gamma"} & set(fit.get("estimates") or {})}
    return [*found, *(fit for fit in fits if fit.get("name") == LAST and fit.get("group") not in answered)]


def _law(fit: Mapping[str, Any]) -> str:
    """How the optimum grows, by the methods that estimate it as such."""
    found = fit.get("estimates") or {}
    if fit.get("refused"):
        return ""
    laws = {"a": "parameters as C^", "b": "tokens as C^", "gamma": "the loss above its floor falls as C^−"}
    parts = [f"{law}{charts.interval(found[name], '{:.3f}'.format)}" for name, law in laws.items() if name in found]
    grows = "the optimum grows: " if "a" in found else ""
    return f"{charts.title(fit)}: {grows}{', '.join(parts)}" if parts else ""


def _foretold(answers: Mapping[str, Any]) -> str:
    """How many held-out cells were predicted: by what was written down before they began, where anything was."""
    said = {one["cell"]: one for one in (answers.get("foretold") or {}).get("predictions") or ()}
    found = [p | said.get(p.get("cell"), {}) for p in answers.get("predictions") or []]
    known = [p for p in found if is_number(p.get("measured")) and is_number(p.get("low"))]
    inside = sum(p["low"] <= p["measured"] <= p["high"] for p in known)
    return (
        f"{inside} of {len(known)} held-out cells were measured inside the interval predicted for them" if known else ""
    )


def ranked_all(cells: Sequence[Cell]) -> list[Cell]:
    """Cells of any kind that are done and measured."""
    return [cell for kind in kinds(cells) for cell in ranked(cells, kind)]


def yardstick(cells: Sequence[Cell]) -> str:
    """What cells are compared by, and what is never compared."""
    found = kinds(cells)
    if not found:
        return ""
    if len(found) == 1:
        return f"Yardstick: {found[0].label}, {'more' if found[0].higher else 'less'} is better."
    named = "; ".join(f"{kind.label} ({cells_said(sum(cell.kind == kind for cell in cells))})" for kind in found)
    return (
        f"Yardsticks: {named}. Losses of different objectives ask different questions of a model: cells are ranked "
        "within a yardstick and never across."
    )

"""How cells of different objectives compare, as `isoflop compare` found; their own losses are never ranked."""

import html
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from research.scaling.report_cells import Cell
from research.scaling.report_charts import interval
from research.scaling.report_findings import signed

Record = Mapping[str, Any]
_SUFFIXES, _PROBES, _BASELINES = "suffixes", "probes", "baselines"


def section(sweep: Mapping[str, Any], cells: Sequence[Cell], answers: Mapping[str, Any]) -> str:
    """What was compared; where objectives differ and nothing was, the command that compares them."""
    found = answers.get("comparison")
    if not found:
        several = len({cell.objective for cell in cells if cell.objective}) > 1
        return f'<p class="nothing">{html.escape(_missing(sweep))}</p>' if several else ""
    called = named(found, cells)
    parts = [f'<p class="lead">{html.escape(_yardsticks(found))}</p>']
    if _SUFFIXES in found:
        parts.append(_suffixes(found[_SUFFIXES], called))
    if _PROBES in found:
        parts.append(_probes(found[_PROBES], called))
    if _BASELINES in found:
        parts.append(_baselines(found[_BASELINES], called))
    return "".join(parts)


def _yardsticks(found: Record) -> str:
    words = {_SUFFIXES: "bits per byte of the same ends of held-out text", _PROBES: "linear probes of frozen features"}
    words[_BASELINES] = "the distance from each one's own baselines, which is no order"
    return f"Yardstick: {' and '.join(words.get(name, name) for name in found['yardsticks'])}; {found['reason']}."


def _missing(sweep: Mapping[str, Any]) -> str:
    lost = sweep.get("keep") == "none"
    needs = ". This sweep kept no checkpoints (keep='none'), which that needs: run it with keep='last'" if lost else ""
    return (
        "Not compared: the objectives of these cells ask different questions, and their losses are not ranked. isoflop "
        f"compare DIR, with DIR the sweep's folder, asks all of them the same question, and isoflop sweep report DIR "
        f"then shows it here{needs}."
    )


def named(found: Record, cells: Sequence[Cell]) -> dict[str, str]:
    """Names of cells by those that the comparison gave its runs."""
    names = {cell.id: cell.name for cell in cells}
    runs = [(str(run["run"]), PurePath(str(run.get("workdir", ""))).name) for run in found.get("runs") or []]
    return {run: names.get(folder, names.get(run, run)) for run, folder in runs}


def sentence(cells: Sequence[Cell], answers: Mapping[str, Any]) -> str:
    """The best by each yardstick that is shared, and which are not told apart from it."""
    found = answers.get("comparison") or {}
    called, parts = named(found, cells), []
    for name, measure, form, said in (
        (_SUFFIXES, "bits_per_byte", "{:.3f}".format, "the fewest bits per byte of the same suffixes"),
        (_PROBES, "accuracy", "{:.1%}".format, "the highest accuracy of linear probes"),
    ):
        if name not in found:
            continue
        best, *others = found[name]["ranked"]
        near = [row for row in others if not _apart(row["from_best"])]
        rest = "all others are told apart from it" if len(others) > 1 else "the other is told apart from it"
        if near:
            shown = ", ".join(called.get(row["run"], row["run"]) for row in near[:4])
            rest = f"not told apart from it: {shown}" + (f" and {len(near) - 4} more" if len(near) > 4 else "")
        if name == _PROBES and best[measure]["low"] <= found[name]["most_frequent"]["value"]:
            parts.append("no run's features tell more by a line than the most frequent class does")
            continue
        parts.append(f"{called.get(best['run'], best['run'])} has {said}, {interval(best[measure], form)}; {rest}")
    return "; ".join(parts)


def _apart(difference: Record | None) -> bool:
    known = difference and difference.get("low") is not None and difference.get("high") is not None
    return bool(known) and not difference["low"] <= 0.0 <= difference["high"]  # type: ignore[index]


def _suffixes(found: Record, called: Mapping[str, str]) -> str:
    rows = [
        (*_who(row, called), interval(row["bits_per_byte"]), interval(row["from_best"] or {}, signed))
        for row in found["ranked"]
    ]
    note = (
        f"The next {found['suffix']} tokens behind {found['given']}, {found['pieces']:,} times in "
        f"{found['documents']:,} held-out documents ({found['bytes']:,} bytes), each in the form it was trained in."
    )
    return _table(("cell", "objective", "bits per byte", "more than the best"), rows, note)


def _probes(found: Record, called: Mapping[str, str]) -> str:
    def share(value: float) -> str:
        return f"{value:.1%}"

    def points(value: float) -> str:
        return f"{value:+.1%}".replace("-", "−")

    rows = [
        (
            *_who(row, called),
            interval(row["accuracy"], share),
            *(interval(row[name] or {}, points) for name in ("from_best", "over_untrained", "over_bag_of_tokens")),
        )
        for row in found["ranked"]
    ]
    rows += [
        (name.replace("_", " "), "–", interval(found[name], share), "–", "–", "–")
        for name in ("bag_of_tokens", "most_frequent")
    ]
    head = ("cell", "objective", "accuracy of probes", "from the best", "over untrained", "over bag of tokens")
    note = f"Linear probes of the {found['label']} ({len(found['classes'])} classes) on frozen features."
    return _table(head, rows, note)


def _baselines(found: Record, called: Mapping[str, str]) -> str:
    def number(value: float | None, form: str) -> str:
        return "–" if value is None else form.format(value)

    rows = [
        (
            *_who(row, called),
            number(row["loss"], "{:.4f}"),
            number(row["unigram_loss"], "{:.4f}"),
            number(row["share_removed"], "{:.1%}"),
        )
        for row in found["rows"]
    ]
    head = ("cell", "objective", "loss, nats a target", "by frequency of its targets", "removed")
    return _table(head, rows, "Each beside its own baseline, in the sweep's order: these losses are no ranking.")


def _who(row: Record, called: Mapping[str, str]) -> tuple[str, str]:
    return called.get(str(row["run"]), str(row["run"])), str(row["objective"])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        classes = ["" if place < 2 else " class=number" for place in range(len(cells))]
        return "".join(f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for cell, kind in zip(cells, classes, strict=True))

    body = "".join(f"<tr data-compared>{line(row, 'td')}</tr>" for row in rows)
    top = f"<thead><tr>{line(head, 'th')}</tr></thead>"
    return (
        f'<p class="lead">{html.escape(note)}</p>'
        f'<div class="scroll"><table class="compared">{top}<tbody>{body}</tbody></table></div>'
    )

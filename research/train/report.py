"""`report.html`: one file that shows a run, made from the files of its run directory alone."""

import html
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from research.config import KEYS, read_json
from research.train import charts, curves, markdown
from research.train.metrics import EVENTS, METRICS, SUMMARY, iterate_metrics, read_events, write_text
from research.train.page import fill, is_number, quantity, section

REPORT = "report.html"
MAX_EVENTS, MAX_SAMPLES = 200, 12
_BASELINES = {"unigram": "unigram", "bigram": "bigram", "trigram": "3-gram"}


@dataclass(frozen=True)
class Run:
    """What a run directory says; every part may be missing.

    Attributes:
      name: of the directory.
      settings: by dotted key.
      columns: metrics by name, `[rows]` or `[rows, layers]`.
      events: in order.
      summary: of the finished run.
      card: the data card, in Markdown.
    """

    name: str
    settings: Mapping[str, Any]
    columns: Mapping[str, np.ndarray]
    events: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]
    card: str

    @property
    def masked(self) -> bool:
        """Whether the run is measured by accuracy on masked tokens."""
        return self.settings.get("objective.name") == "masked"

    @property
    def step(self) -> int:
        """Updates applied."""
        return int(self.columns["step"][-1]) if self.columns else int(self.summary.get("step", 0))

    @property
    def final(self) -> Mapping[str, Any]:
        """The summary, unless the run went on after it was written."""
        return self.summary if self.summary.get("step") == self.step else {}

    def evaluations(self) -> list[Mapping[str, Any]]:
        """Held-out figures by step, of the run as it stands: each step's last, none of steps that were taken back."""
        found = [event for event in self.events if event["event"] == "evaluate" and is_number(event.get("step"))]
        by_step = {event["step"]: event for event in found if event["step"] <= self.step}
        return [{"heldout_perplexity": _exp(by_step[n].get("heldout_loss")), **by_step[n]} for n in sorted(by_step)]

    def heldout(self, name: str) -> int | float | None:
        """The latest held-out figure of a name."""
        found = [e[name] for e in self.evaluations() if is_number(e.get(name))]
        last = self.final.get(name)
        return last if is_number(last) else (found[-1] if found else None)

    def baseline_bits(self) -> dict[str, int | float]:
        """Bits per byte of the n-gram models, by name."""
        named: dict[str, Any] = {"bigram_bits_per_byte": self.final.get("baseline_bits_per_byte")}
        named |= self.final.get("baselines") or {}
        ends = "_bits_per_byte"
        return {
            _BASELINES.get(name.removesuffix(ends), name.removesuffix(ends)): value
            for name, value in named.items()
            if name.endswith(ends) and is_number(value)
        }

    def status(self) -> tuple[str, str]:
        """A word for its colour, and what is to be read."""
        total = self.settings.get("train.num_steps")
        if not self.step:
            return "waiting", "no step recorded"
        if self.step == total:
            return "complete", f"complete, {self.step:,} steps"
        of = f"step {self.step:,}" + (f" of {total:,}" if total else "")
        word = self.last_turn()["event"]
        word = word if word in {"interrupted", "failed"} else "unfinished"
        return word, f"{word} at {of}"

    def last_turn(self) -> Mapping[str, Any]:
        """The last event that says whether the run goes on or how it ended."""
        turns = {"start", "resume", "interrupted", "failed", "finished"}
        return next((event for event in reversed(self.events) if event["event"] in turns), {"event": ""})


def write_report(workdir: str | os.PathLike[str]) -> Path:
    """Writes `report.html` for a finished, interrupted, running or empty run, and returns its path.

    Raises:
      UserError: the report cannot be written, or a file that it is made from is damaged.
    """
    from plotly.offline import get_plotlyjs

    run = read_run(Path(workdir))
    status, status_text = run.status()
    drawn = charts.charts(run.columns, run.evaluations(), run.baseline_bits(), run.final.get("baseline_accuracy"))
    slots = {
        "name": html.escape(run.name),
        "status": status,
        "status_text": html.escape(status_text),
        "subtitle": html.escape(subtitle(run)),
        "reason": html.escape(str(run.last_turn().get("reason", ""))),
        "tiles": tiles(run),
        "comparison": comparison(run),
        "charts": figures(drawn),
        "axes": axis_buttons(charts.axes(run.columns)),
        "samples": samples(run),
        "config": config_table(run.settings),
        "card": data_card(run.card),
        "provenance": provenance(run),
        "events": timeline(run.events),
        "data": json.dumps({"axes": charts.axes(run.columns), "charts": drawn}).replace("<", "\\u003c"),
        "plotly": get_plotlyjs() if drawn else "",
    }
    path = Path(workdir) / REPORT
    write_text(path, fill("research.train", "report_template.html", slots))
    return path


def read_run(workdir: Path) -> Run:
    """Reads what there is of a run directory."""
    config = read_json(workdir / "config.json") if (workdir / "config.json").exists() else {}
    metrics, events, card = workdir / METRICS, workdir / EVENTS, workdir / "data_card.md"
    return Run(
        name=workdir.resolve().name,
        settings=_flat(config.get("settings", config)),
        columns=curves.columns(iterate_metrics(metrics)) if metrics.exists() else {},
        events=[e for e in read_events(events) if isinstance(e.get("event"), str)] if events.exists() else [],
        summary=read_json(workdir / SUMMARY) if (workdir / SUMMARY).exists() else {},
        card=card.read_text(encoding="utf-8", errors="replace") if card.exists() else "",
    )


# --- parts of the page ------------------------------------------------------------------------------------------------


def subtitle(run: Run) -> str:
    """Objective, size and data in one line."""
    parts = [f"{run.settings['objective.name']} pretraining" if "objective.name" in run.settings else ""]
    if is_number(run.summary.get("parameters")):
        parts.append(f"{quantity(run.summary['parameters'])} parameters")
    if "data.source" in run.settings:
        parts.append(str(run.settings["data.path"] or run.settings["data.source"]))
    if "seed" in run.settings:
        parts.append(f"seed {run.settings['seed']}")
    return " · ".join(part for part in parts if part)


def tiles(run: Run) -> str:
    """The headline figures."""
    bits, accuracy, loss = (run.heldout(f"heldout_{name}") for name in ("bits_per_byte", "accuracy", "loss"))
    train = run.final.get("train_loss")
    if not is_number(train) and "loss" in run.columns:
        train = curves.smoothed(run.columns["loss"])[-1]
    speed = run.final.get("tokens_per_second")
    if not is_number(speed) and "tokens_per_second" in run.columns:
        speed = float(np.nanmedian(run.columns["tokens_per_second"]))
    tokens = run.columns["tokens_seen"][-1] if "tokens_seen" in run.columns else run.final.get("tokens_seen")
    hours = curves.elapsed(run.columns["seconds"])[-1] / 3600 if "seconds" in run.columns else None
    flops = run.summary.get("flops_per_token")
    evaluated = run.step if run.final else (run.evaluations() or [{}])[-1].get("step", 0)
    when = "" if evaluated == run.step else f"at step {evaluated:,}"
    shown = [
        ("Held-out bits per byte", bits, "{:.3f}", when),
        ("Held-out accuracy", accuracy, "{:.1%}", when),
        ("Held-out perplexity", _exp(loss), "{:.4g}", f"{loss:.4f} nats a target" if loss is not None else ""),
        ("Training loss", train, "{:.4f}", "nats a target"),
        ("Tokens seen", tokens, "", f"{run.step:,} steps" + (f" in {_time(hours)}" if hours else "")),
        ("Throughput", speed, "", "tokens a second"),
        ("Parameters", run.summary.get("parameters"), "", f"{quantity(flops)} FLOPs a token" if flops else ""),
        ("Gradient noise scale", run.final.get("noise_scale_tokens"), "", _batch(run)),
    ]
    return "".join(
        f'<div class="tile"><div class="label">{label}</div>'
        f'<div class="value">{form.format(value) if form else quantity(value)}</div>'
        f'<div class="note">{note}</div></div>'
        for label, value, form, note in shown
        if is_number(value)
    )


def comparison(run: Run) -> str:
    """The model beside what counting reaches, as bars, with one sentence."""
    base, unigram = run.final.get("baseline_accuracy"), (run.final.get("baselines") or {}).get("unigram_loss")
    measure, baselines = "bits_per_byte", run.baseline_bits()
    if run.masked:
        measure, baselines = "accuracy", {"most frequent token": base} if is_number(base) else {}
    elif not baselines and is_number(unigram):
        measure, baselines = "loss", {"unigram": unigram}
    ours = run.heldout(f"heldout_{measure}")
    if ours is None or not baselines:
        return ""
    named = [*sorted(baselines.items(), key=lambda item: item[1], reverse=not run.masked), ("this model", ours)]
    largest = max(value for _, value in named) or 1.0
    rows = "".join(
        f'<div class="bar{" ours" if name == "this model" else ""}"><span class="name">{html.escape(name)}</span>'
        f'<span class="track"><i style="width:{100 * value / largest:.2f}%"></i></span>'
        f'<span class="amount">{f"{value:.1%}" if run.masked else f"{value:.3f}"}</span></div>'
        for name, value in named
    )
    if run.masked:
        sentence = f"{ours:.1%} of held-out masked tokens restored; naming the most frequent one each time: {base:.1%}."
    else:
        nearest = [(name, ours - value) for name, value in named[-2::-1]]
        parts = [f"{abs(gap):.3f} {'below' if gap < 0 else 'above'} the {name}" for name, gap in nearest]
        of = {"bits_per_byte": "bits per byte", "loss": "nats a target"}[measure]
        sentence = f"Held-out {of}, less is better: {', '.join(parts)}, counted on the same training tokens."
    return section("Against counting", "baselines", f'<p class="lead">{html.escape(sentence)}</p><div>{rows}</div>')


def figures(drawn: Sequence[Mapping[str, Any]]) -> str:
    """The frames that the page's script draws into."""
    return "".join(
        f'<figure class="{"wide" if chart.get("wide") else ""}"><figcaption><b>{html.escape(chart["title"])}</b>'
        f"<span>{html.escape(chart['unit'])}</span></figcaption>"
        f'<div class="plot" data-chart="{number}"></div></figure>'
        for number, chart in enumerate(drawn)
    )


def axis_buttons(axes: Mapping[str, Any]) -> str:
    """One button for each horizontal axis that is known."""
    labels = {"step": "steps", "tokens": "tokens", "minutes": "minutes", "hours": "hours"}
    return "".join(
        f'<button type="button" data-axis="{name}" aria-pressed="{str(name == "step").lower()}">{labels[name]}</button>'
        for name in axes
    )


def samples(run: Run) -> str:
    """What the model wrote at the end of its last process."""
    found = [e for e in run.events if e["event"] == "sample"]
    latest = [e for e in found if e.get("step") == found[-1].get("step")]
    texts = dict.fromkeys((str(sample.get("prompt", "")), str(sample.get("text", ""))) for sample in latest)
    cards = []
    for prompt, text in list(texts)[-MAX_SAMPLES:]:
        gap = "\n" if run.masked else ""
        text = gap + text.removeprefix(prompt)
        cards.append(f"<blockquote><b>{html.escape(prompt)}</b>{html.escape(text)}</blockquote>")
    return section("Samples", "samples", f'<div class="samples">{"".join(cards)}</div>' if cards else "")


def data_card(text: str) -> str:
    """The card under one heading; its own first one says no more."""
    body = re.sub(r"\A\s*# [^\n]*\n", "", text)
    return section("Data card", "data", f'<div class="card">{markdown.to_html(body)}</div>' if body.strip() else "")


def config_table(settings: Mapping[str, Any]) -> str:
    """Every key with its value, its default and its meaning; keys that are not at their default are marked."""
    rows = []
    for name, value in settings.items():
        key = KEYS.get(name)
        changed = key is not None and value != key.default
        meaning = key.metadata["meaning"] if key else ""
        meaning += f" [{key.metadata['unit']}]" if key and key.metadata["unit"] else ""
        cells = (name, _literal(value), _literal(key.default) if changed and key else "", meaning)
        columns = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        rows.append(f"<tr{' class=changed' if changed else ''}>{columns}</tr>")
    search = (
        '<p class="controls"><input id="search" type="search" placeholder="Search the settings" aria-label="Search">'
        '<label><input id="changed" type="checkbox"> only what differs from the defaults</label></p>'
    )
    head = "<thead><tr><th>key</th><th>value</th><th>default</th><th>meaning</th></tr></thead>"
    table = f'{search}<table class="config">{head}<tbody>{"".join(rows)}</tbody></table>'
    return section("Settings", "settings", table if rows else "")


def provenance(run: Run) -> str:
    """Commit, hashes and versions, from the summary or else from the events."""
    rows = []
    for name in ("commit", "config_hash", "data_hash", "devices", "mesh", "versions"):
        found = [source[name] for source in (run.summary, *reversed(run.events)) if source.get(name) is not None]
        if found:
            rows.append(f"<dt>{name.replace('_', ' ')}</dt><dd>{html.escape(_readable(found[0]))}</dd>")
    return section("Provenance", "provenance", f"<dl>{''.join(rows)}</dl>" if rows else "")


def timeline(events: Sequence[Mapping[str, Any]]) -> str:
    """What happened when."""
    told = [event for event in events if event["event"] != "sample"]
    left_out = max(0, len(told) - MAX_EVENTS)
    rows = [_event_row(event) for event in told]
    if left_out:
        gap = f'<tr><td></td><td colspan="2">… {left_out:,} more in {EVENTS}</td></tr>'
        rows = [*rows[:20], gap, *rows[20 + left_out :]]
    return section("Events", "events", f'<table class="events"><tbody>{"".join(rows)}</tbody></table>' if rows else "")


def _event_row(event: Mapping[str, Any]) -> str:
    moment = html.escape(str(event.get("time", "")).replace("T", " ").split(".")[0].removesuffix("Z"))
    details = {name: value for name, value in event.items() if name not in {"time", "event"} and value is not None}
    kind = html.escape(event["event"].replace("_", " "))
    return f"<tr><td>{moment}</td><td>{kind}</td><td>{html.escape(_readable(details))}</td></tr>"


# --- numbers and text -------------------------------------------------------------------------------------------------


def _batch(run: Run) -> str:
    """The interval of the noise scale, and the batch that it is to be compared with."""
    ends = [run.final.get(f"noise_scale_{end}") for end in ("low", "high")]
    if not all(map(is_number, ends)) or "tokens_seen" not in run.columns:
        return "tokens"
    low, high, own = (quantity(value) for value in (*ends, run.columns["tokens_seen"][-1] / run.step))
    return f"tokens, {low} to {high}; a batch has {own}"


def _time(hours: int | float) -> str:
    whole, minutes = divmod(round(hours * 60), 60)
    return f"{whole} h {minutes:02d} min" if whole else (f"{minutes} min" if minutes else f"{hours * 3600:.0f} s")


def _exp(value: Any) -> float | None:
    return math.exp(value) if is_number(value) and value < 700 else None


def _literal(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _readable(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {_readable(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_readable, value))
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat

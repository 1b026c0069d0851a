"""What a race comes to: figures, a table, a plot and the record that is kept."""

import dataclasses
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from rich.table import Table

from benchmarks.race import Race, Record
from research.train import provenance


@dataclasses.dataclass(frozen=True)
class Spread:
    """A median over rounds, and the least and largest round."""

    median: float
    least: float
    largest: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """The spread of one figure a round."""
        return cls(statistics.median(values), min(values), max(values))

    def show(self, form: str) -> str:
        """`median (least-largest)`, each formatted by `form`."""
        return f"{self.median:{form}} ({self.least:{form}}-{self.largest:{form}})"


@dataclasses.dataclass(frozen=True)
class Figures:
    """One contestant's figures.

    Attributes:
      tokens_per_second: by the clock.
      tokens_per_cpu_second: by the time that the process was on a core: what others take does not count.
      isoflop_over: Isoflop's tokens a second over this contestant's in the same round.
      isoflop_over_cpu: the same by CPU seconds.
      share_of_limit: model FLOP/s over the FLOP/s of large products in the same round.
      peak_gigabytes: the most resident memory.
      parameters: of its model; none where it does not say.
      init_seconds: making the initial state; none where it was not timed.
      first_step_seconds: tracing, compiling and running the first step; likewise.
      loss: the last one.
    """

    tokens_per_second: Spread
    tokens_per_cpu_second: Spread
    isoflop_over: Spread
    isoflop_over_cpu: Spread
    share_of_limit: Spread
    peak_gigabytes: float
    parameters: int | None
    init_seconds: float | None
    first_step_seconds: float | None
    loss: float | None


def by_round(record: Record, key: str) -> list[float]:
    """One figure of each round."""
    return [entry[key] for entry in record.rounds]


def ratios(record: Record, other: Record, key: str = "seconds") -> Spread:
    """How many times as fast a contestant is as another, round by round."""
    pairs = zip(by_round(record, key), by_round(other, key), strict=True)
    return Spread.of([theirs / own for own, theirs in pairs])


def figures(race: Race, model_flops: float) -> dict[str, Figures]:
    """The figures of every contestant; `model_flops` a token are Isoflop's, for all alike."""
    isoflop = race.records["isoflop"]
    tokens = race.steps * race.shape.tokens
    found = {}
    for name, record in race.records.items():
        speeds = [tokens / seconds for seconds in by_round(record, "seconds")]
        shares = [speed * model_flops / limit for speed, limit in zip(speeds, race.limits, strict=True)]
        found[name] = Figures(
            tokens_per_second=Spread.of(speeds),
            tokens_per_cpu_second=Spread.of([tokens / seconds for seconds in by_round(record, "cpu_seconds")]),
            isoflop_over=ratios(isoflop, record),
            isoflop_over_cpu=ratios(isoflop, record, "cpu_seconds"),
            share_of_limit=Spread.of(shares),
            peak_gigabytes=max(by_round(record, "peak_bytes")) / 1e9,
            parameters=record.start.get("parameters"),
            init_seconds=record.start.get("init_seconds"),
            first_step_seconds=record.start.get("first_step_seconds"),
            loss=record.rounds[-1].get("loss"),
        )
    return found


def title(label: str, race: Race) -> str:
    """The shape in words."""
    shape = race.shape
    decoder = f", decoder {shape.decoder}" if shape.with_encoder else ""
    return (
        f"Shape {label}: {shape.family}, {shape.asks}, embed {shape.embed}, {shape.layers} layers, "
        f"{shape.heads} heads, MLP {shape.mlp}, vocabulary {shape.vocabulary}, sequence {shape.sequence}{decoder}, "
        f"batch {shape.batch}"
    )


def table(label: str, race: Race, found: dict[str, Figures]) -> Table:
    """The figures for a terminal."""
    limit = Spread.of([flops / 1e9 for flops in race.limits])
    shown = Table(
        title=title(label, race),
        caption=f"median (least-largest) of {len(race.limits)} rounds of {race.steps} steps; "
        f"matrix products {limit.show('.0f')} GFLOP/s",
    )
    shown.add_column("step", no_wrap=True)
    for column in ("tokens/s", "isoflop is x", "by CPU", "of GEMM", "peak GB", "params M", "init s", "first s"):
        shown.add_column(column, justify="right", no_wrap=True)
    for name, own in found.items():
        shown.add_row(
            name,
            own.tokens_per_second.show(".0f"),
            own.isoflop_over.show(".2f"),
            f"{own.isoflop_over_cpu.median:.2f}",
            f"{own.share_of_limit.median:.0%}",
            f"{own.peak_gigabytes:.2f}",
            "" if own.parameters is None else f"{own.parameters / 1e6:.2f}",
            _seconds(own.init_seconds),
            _seconds(own.first_step_seconds),
        )
    if race.cached:
        starts = (_seconds(race.cached[key]) for key in ("init_seconds", "first_step_seconds"))
        shown.add_row("isoflop, cached", *[""] * 6, *starts)
    return shown


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def record(
    label: str, race: Race, found: dict[str, Figures], model_flops: float, load: float, absent: Sequence[str] = ()
) -> dict[str, Any]:
    """All that is kept of a race, as JSON: how it was obtained, the figures, and every round."""
    overhead = {}
    if {"loop", "isoflop"} <= race.records.keys():
        loop, own = race.records["loop"], race.records["isoflop"]
        overhead = {
            "loop_over_own_step": dataclasses.asdict(ratios(own, loop)),
            "loop_over_own_step_cpu": dataclasses.asdict(ratios(own, loop, "cpu_seconds")),
        }
    starts = {name: entry.start for name, entry in race.records.items()}
    return {
        "shape": {"name": label, **dataclasses.asdict(race.shape)},
        "machine": machine() | {"load_before": round(load, 2)},
        "versions": provenance.versions(),
        "versions_of_peers": {name: start["versions"] for name, start in starts.items() if "versions" in start},
        "absent": list(absent),
        "commit": provenance.commit(),
        "model_flops_per_token": model_flops,
        "steps_per_round": race.steps,
        "gemm_gflops": dataclasses.asdict(Spread.of([flops / 1e9 for flops in race.limits])),
        "figures": {name: dataclasses.asdict(own) for name, own in found.items()},
        **overhead,
        "start_from_cached_programs": dict(race.cached),
        "records": {name: dataclasses.asdict(entry) for name, entry in race.records.items()},
        "gemm_flops": race.limits,
    }


def machine() -> dict[str, Any]:
    """The processor and how many of its cores may be used."""
    model = platform.processor() or platform.machine()
    description = Path("/proc/cpuinfo")
    if description.exists():
        lines = (line.partition(":") for line in description.read_text().splitlines())
        model = next((value.strip() for key, _, value in lines if key.strip() == "model name"), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": model, "cores": cores, "system": platform.platform()}


# --- plot -------------------------------------------------------------------------------------------------------------

WIDTH, LEFT, RIGHT, ROW, TOP = 860, 150, 250, 34, 46
OWN = ("isoflop", "loop")


def plot(label: str, race: Race, found: dict[str, Figures]) -> str:
    """Bars of tokens a second (medians) with a dot for each round, as SVG."""
    place, (name, _, details) = machine(), title(label, race).partition(": ")
    height = TOP + ROW * len(found) + 30
    tokens = race.steps * race.shape.tokens
    scale = (WIDTH - LEFT - RIGHT) / max(own.tokens_per_second.largest for own in found.values())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="10" y="18">{escape(name)}</text>',
        f'<text x="10" y="35" font-size="12" fill="#666">{escape(details)}</text>',
        f'<text x="10" y="{height - 10}" fill="#666">tokens/s, median and every round; '
        f"{escape(place['processor'])}, {place['cores']} cores</text>",
    ]
    for row, (name, own) in enumerate(found.items()):
        top = TOP + ROW * row
        length = scale * own.tokens_per_second.median
        colour = "#2f6f9f" if name.split("-")[0] in OWN else "#9aa5b1"
        parts.append(f'<text x="{LEFT - 8}" y="{top + 15}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{LEFT}" y="{top}" width="{length:.1f}" height="22" fill="{colour}"/>')
        for seconds in by_round(race.records[name], "seconds"):
            parts.append(f'<circle cx="{LEFT + scale * tokens / seconds:.1f}" cy="{top + 11}" r="2.5" fill="#d9822b"/>')
        times = "" if name == "isoflop" else f" (isoflop {own.isoflop_over.median:.2f} x)"
        words = f"{own.tokens_per_second.median:.0f}{times}, {own.peak_gigabytes:.2f} GB"
        parts.append(f'<text x="{WIDTH - RIGHT + 10}" y="{top + 15}">{escape(words)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"

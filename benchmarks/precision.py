"""What precision costs in loss: one model on the same batches in several of them (`python -m benchmarks.precision`).

The recipe `configs/causal.py:tiny` on the embedded corpus, shortened. A second float32 run from another seed shows how
far apart two runs are that no precision tells apart.
"""

import argparse
import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from benchmarks import report
from research import config
from research.data import prepare
from research.data.prepare import Prepared
from research.parallel import arrays
from research.settings import Settings
from research.train import loop, provenance
from research.train.assembly import assemble
from research.train.state import born_sharded, state_shapes
from research.train.step import make_step

RESULTS = Path(__file__).parent / "results"
LAST = 50  # updates whose mean loss is compared

RUNS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, another seed": {"seed": 1},
    "bfloat16": {"model.compute_dtype": "bfloat16"},
    "int8": {"model.quantisation": "int8"},
    "int8, bfloat16": {"model.quantisation": "int8", "model.compute_dtype": "bfloat16"},
}
COLOURS = ("#1d232b", "#9aa5b1", "#2f6f9f", "#d9822b", "#b5443c")


def main(arguments: list[str] | None = None) -> int:
    """Trains in each precision, prints and keeps the curves."""
    options = parser().parse_args(arguments)
    if options.steps < 2:
        parser().error(f"--steps {options.steps}: at least 2")
    console = Console(width=None if sys.stdout.isatty() else 120)
    losses: dict[str, list[float]] = {}
    base = settings_of(options.config, options.steps, {})
    prepared = prepare.prepare(base)
    for name, changes in RUNS.items():
        with console.status(f"training in {name}"):
            losses[name] = train(settings_of(options.config, options.steps, changes), prepared)
    found = figures(losses)
    result = {
        "recipe": options.config,
        "steps": options.steps,
        "runs": RUNS,
        "last": min(LAST, options.steps),
        "machine": report.machine(),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "data_hash": prepared.data_hash,
        "figures": found,
        "losses": losses,
    }
    console.print(table(found, result["last"]))
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "precision.json"
    path.write_text(json.dumps(result) + "\n", encoding="utf-8")
    path.with_suffix(".svg").write_text(plot(losses), encoding="utf-8")
    console.print(f"written: {path} and its plot, {path.stem}.svg", soft_wrap=True)
    return 0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    found = argparse.ArgumentParser("python -m benchmarks.precision", description=__doc__)
    found.add_argument("--config", default="configs/causal.py:tiny", help="recipe (default configs/causal.py:tiny)")
    found.add_argument("--steps", type=int, default=400, help="updates of each run (default 400)")
    found.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    return found


def settings_of(recipe: str, steps: int, changes: dict[str, Any]) -> Settings:
    """The recipe over so many updates, with keys changed."""
    made = config.load_recipe(recipe)
    for name, value in {"train.num_steps": steps, **changes}.items():
        config.override(made, name, str(value))
    return config.to_settings(made)


def train(settings: Settings, prepared: Prepared) -> list[float]:
    """The loss of each update; the batches are those of the first seed, whatever the seed of the weights."""
    assembly = assemble(settings, prepared.tokenizer.vocabulary, devices=jax.devices()[:1])
    train, mesh = settings.train, assembly.mesh
    rows = train.batch_size // train.accumulation
    held = arrays.local_rows(rows, mesh)
    loader = loop.loader_of(dataclasses.replace(assembly, settings=dataclasses.replace(settings, seed=0)), prepared)
    losses = []
    with jax.set_mesh(mesh):
        state: Any = born_sharded(
            settings, assembly.model, state_shapes(settings, assembly.model, mesh, settings.parallel.preset)
        )
        update: Any = jax.jit(make_step(settings, assembly.model, assembly.objective), donate_argnums=0)
        for step in range(train.num_steps):
            state, metrics = update(state, arrays.to_global(loader.batch(step), rows, held, mesh))
            losses.append(metrics["loss"])
    return [round(float(loss), 6) for loss in jax.device_get(losses)]


def figures(losses: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Of each run: its mean loss over the last updates, the difference from the first run's there, and the largest
    difference of such a mean anywhere after the first tenth."""
    first = next(iter(losses.values()))
    start = max(1, len(first) // 10)
    window = min(LAST, len(first) - start)
    found = {}
    for name, own in losses.items():
        gaps = [a - b for a, b in zip(own, first, strict=True)]
        means = [statistics.fmean(gaps[end - window : end]) for end in range(start + window, len(gaps) + 1)]
        last = statistics.fmean(own[-window:])
        found[name] = {"loss": last, "difference": means[-1], "largest_difference": max(means, key=abs)}
    return found


def table(found: dict[str, dict[str, float]], last: int) -> Table:
    """The figures for a terminal."""
    shown = Table(title=f"loss (nats), mean of the last {last} updates")
    shown.add_column("precision")
    for column in ("loss", "over float32", "most in the run"):
        shown.add_column(column, justify="right")
    for name, own in found.items():
        shown.add_row(name, f"{own['loss']:.4f}", f"{own['difference']:+.4f}", f"{own['largest_difference']:+.4f}")
    return shown


# --- plot -------------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, TOP, GAP = 760, 460, 60, 30, 40


def plot(losses: dict[str, list[float]]) -> str:
    """Two panels as SVG: the losses, and their differences from the first run, both as running means."""
    first = next(iter(losses.values()))
    window = max(1, min(20, len(first) // 4))
    smooth = {name: running(own, window) for name, own in losses.items()}
    gaps = {name: running([a - b for a, b in zip(own, first, strict=True)], window) for name, own in losses.items()}
    half = (HEIGHT - 2 * TOP - GAP) / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    ]
    panels = (("loss (nats a token)", smooth, TOP), ("difference from float32", gaps, TOP + half + GAP))
    for title, curves, top in panels:
        parts += panel(title, list(curves.values()), top, half)
    for number, name in enumerate(losses):
        place = WIDTH - 190, TOP + 18 * (number + 1)
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<text x="{place[0]}" y="{place[1]}" fill="{colour}">{name}</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 8}" fill="#666">updates 1 to {len(first)}, means of {window}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def panel(title: str, curves: list[list[float]], top: float, height: float) -> list[str]:
    """One diagram with its limits written beside it."""
    low, high = min(map(min, curves)), max(map(max, curves))
    span = high - low or 1.0
    found = [
        f'<text x="{LEFT}" y="{top - 8}">{title}</text>',
        f'<text x="{LEFT - 6}" y="{top + 10}" text-anchor="end" fill="#666">{high:.3g}</text>',
        f'<text x="{LEFT - 6}" y="{top + height}" text-anchor="end" fill="#666">{low:.3g}</text>',
        f'<rect x="{LEFT}" y="{top}" width="{WIDTH - LEFT - 10}" height="{height}" fill="none" stroke="#ddd"/>',
    ]
    for number, curve in enumerate(curves):
        across = (WIDTH - LEFT - 10) / max(1, len(curve) - 1)
        points = " ".join(
            f"{LEFT + across * place:.1f},{top + height * (high - value) / span:.1f}"
            for place, value in enumerate(curve)
        )
        colour = COLOURS[number % len(COLOURS)]
        found.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
    return found


def running(values: list[float], window: int) -> list[float]:
    """Means of so many neighbours."""
    return [statistics.fmean(values[place : place + window]) for place in range(len(values) - window + 1)]


if __name__ == "__main__":
    sys.exit(main())

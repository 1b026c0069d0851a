"""Cells trained together, against the same cells one after the other (`python -m benchmarks.population`).

Small cells of one program that differ in seed and learning rate. Each round starts a process for each way, in turn, and
begins from an empty cache of compiled programs; prepared data are there. Wall-clock time is the whole process's, from
its start to the last report. The losses of both ways are compared, too.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import report
from research import config
from research.settings import Settings
from research.train import provenance
from research.train.metrics import read_metrics

RESULTS = Path(__file__).parent / "results"
WAYS = ("separate", "packed")
RATES = (1e-3, 2e-3)
WARM = 5  # updates that are not counted


def main(arguments: list[str] | None = None) -> int:
    """Takes the measurements, prints and keeps them."""
    options = parser().parse_args(arguments)
    if options.child:
        return child(options)
    console = Console(width=None if sys.stdout.isatty() else 120)
    rounds: list[dict[str, Any]] = []
    load = os.getloadavg()
    for number in range(options.rounds):
        for count in options.cells:
            ways = WAYS if number % 2 == 0 else WAYS[::-1]
            found = {way: measured(options, way, count) for way in ways}
            rounds.append({"cells": count, **{way: found[way]["figures"] for way in WAYS}, **apart(found)})
            console.print(f"round {number + 1}, {count} cells: {json.dumps(rounds[-1])}", soft_wrap=True)
    result = {
        "recipe": options.config,
        "steps": options.steps,
        "machine": report.machine(),
        "load_before": load,
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "rounds": rounds,
        "medians": {count: medians([one for one in rounds if one["cells"] == count]) for count in options.cells},
    }
    console.print(table(result))
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"population-{options.config.rpartition(':')[2]}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    console.print(f"written: {path}", soft_wrap=True)
    return 0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    found = argparse.ArgumentParser("python -m benchmarks.population", description=__doc__)
    found.add_argument("--config", default="configs/causal.py:tiny", help="recipe (default configs/causal.py:tiny)")
    found.add_argument("--cells", type=int, nargs="+", default=[4, 8], help="cells of a pack (default 4 8)")
    found.add_argument("--steps", type=int, default=40, help="updates of each cell (default 40)")
    found.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    found.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    found.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    found.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return found


def settings_of(recipe: str, steps: int, number: int) -> Settings:
    """A cell."""
    made = config.load_recipe(recipe)
    changes = {"train.num_steps": steps, "seed": number // len(RATES), "optimizer.learning_rate": RATES[number % 2]}
    for name, value in changes.items():
        config.override(made, name, str(value))
    return config.to_settings(made)


def child(options: argparse.Namespace) -> int:
    """Trains the cells in this process, as a worker does."""
    from research.cli import train, train_together

    cells = {
        options.folder / str(number): settings_of(options.config, options.steps, number)
        for number in range(options.cells[0])
    }
    shown = Console(quiet=True)
    if options.child == "separate":
        for folder, settings in cells.items():
            train.execute(settings, folder, shown)
        return 0
    asked = [train_together.Asked(folder.name, settings, folder) for folder, settings in cells.items()]
    ends = train_together.execute_together(asked, shown)
    return int(any(isinstance(end, Exception) for end in ends))


def measured(options: argparse.Namespace, way: str, count: int) -> dict[str, Any]:
    """Seconds of the whole process and of an update of all cells, and the losses of every cell."""
    with tempfile.TemporaryDirectory(prefix="isoflop-population-") as name:
        folder = Path(name)
        command = [sys.executable, "-m", "benchmarks.population", f"--child={way}", f"--folder={folder / 'cells'}"]
        command += [f"--cells={count}", f"--config={options.config}", f"--steps={options.steps}"]
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "JAX_PLATFORMS": "cpu"}
        began = time.perf_counter()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - began
        rows = [read_metrics(folder / "cells" / str(number) / "metrics.jsonl") for number in range(count)]
    update = statistics.median(gap for cell in rows for gap in gaps(cell))
    every = update if way == "packed" else count * update
    figures = {"wall_seconds": round(wall, 2), "update_seconds": round(every, 5)}
    return {"figures": figures, "losses": [[row["loss"] for row in cell] for cell in rows]}


def gaps(rows: list[dict[str, Any]]) -> list[float]:
    """Seconds from one row to the next, after the first updates."""
    times = [row["seconds"] for row in rows[WARM:]]
    return [after - before for before, after in itertools.pairwise(times)]


def apart(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The largest difference of a cell's loss between the two ways, over the first ten updates and over all."""
    pairs = zip(*(found[way]["losses"] for way in WAYS), strict=True)
    differences = [[abs(a - b) for a, b in zip(one, other, strict=True)] for one, other in pairs]
    return {
        "difference_10": max(max(cell[:10]) for cell in differences),
        "difference": max(max(cell) for cell in differences),
    }


def medians(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Over rounds; ratios are taken within a round first: how many times as fast packed cells are."""
    found = {
        f"{way}_{name}": statistics.median(one[way][name] for one in rounds)
        for way in WAYS
        for name in ("wall_seconds", "update_seconds")
    }
    for name in ("wall", "update"):
        ratios = [one["separate"][f"{name}_seconds"] / one["packed"][f"{name}_seconds"] for one in rounds]
        found[f"{name}_ratio"] = round(statistics.median(ratios), 3)
    return found


def table(result: dict[str, Any]) -> Table:
    """The medians for a terminal."""
    shown = Table(title=f"{result['recipe']}, {result['steps']} updates a cell, medians")
    for column in ("cells", "wall s, separate", "packed", "times as fast", "update ms of all, separate", "packed", "x"):
        shown.add_column(column, justify="right")
    for count, own in result["medians"].items():
        shown.add_row(
            str(count),
            f"{own['separate_wall_seconds']:.1f}",
            f"{own['packed_wall_seconds']:.1f}",
            f"{own['wall_ratio']:.2f}",
            f"{1e3 * own['separate_update_seconds']:.1f}",
            f"{1e3 * own['packed_update_seconds']:.1f}",
            f"{own['update_ratio']:.2f}",
        )
    return shown


if __name__ == "__main__":
    sys.exit(main())

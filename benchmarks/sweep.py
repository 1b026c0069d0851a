"""What a sweep costs beside its cells' own updates (`python -m benchmarks.sweep`).

A sweep of cells that differ in their seed, run as a user runs it. Of each cell: seconds from its claim to its end, over
those in updates; of the whole command: seconds of its workers over the same.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import report
from research.train import provenance
from research.train.metrics import METRICS, read_metrics

RESULTS = Path(__file__).parent / "results" / "sweep-overhead.json"
SWEEP = '''"""Written by `python -m benchmarks.sweep`."""

from research.sweeps import Sweep, isoflop, only, product, seeds

RECIPE = "configs/causal.py:tiny"
SHARED = {{
    "train.batch_size": 2,
    "tokenizer.vocab_size": 1024,
    "model.num_layers": 2,
    "model.embed_dim": 32,
    "train.evaluate_every": 10**6,
    "train.checkpoint_every": 10**6,
    "evaluate.num_samples": 0,
    "train.tensorboard": False,
}}


def get_sweep() -> Sweep:
    points = product(isoflop(only(SHARED), [{flops}], RECIPE), seeds({cells}))
    return Sweep("What does a sweep cost beside its cells' updates?", RECIPE, points, keep="none", analyses=())
'''


def main(arguments: list[str] | None = None) -> int:
    """Runs the sweep, prints and keeps the figures."""
    options = parser().parse_args(arguments)
    load = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="isoflop-sweep-") as folder:
        file, workdir = Path(folder) / "sweep.py", Path(folder) / "work"
        file.write_text(SWEEP.format(flops=options.flops, cells=options.cells), encoding="utf-8")
        command = [sys.executable, "-m", "research.cli.main", "sweep", "run", str(file), "--on=local"]
        began = time.perf_counter()
        subprocess.run([*command, f"--workdir={workdir}", f"--parallel={options.parallel}"], check=True)
        whole = time.perf_counter() - began
        cells = figures(workdir)
    updates = sum(cell["updates"] for cell in cells)
    result = {
        "machine": report.machine(),
        "load_before": load,
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "parallel": options.parallel,
        "cells": cells,
        "median_cell_over_updates": statistics.median(cell["wall"] / cell["updates"] for cell in cells),
        "command_seconds": round(whole, 2),
        "workers_over_updates": round(whole * options.parallel / updates, 4),
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"a cell takes {result['median_cell_over_updates']:.3f} of its updates, the command {whole:.1f} s")
    print(f"written: {options.output}")
    return 0


def figures(workdir: Path) -> list[dict[str, float]]:
    """Of each cell of a finished sweep: seconds from claim to end, `wall`, and in `updates`."""
    rows = json.loads((workdir / "rows.json").read_text(encoding="utf-8"))["rows"]
    return [
        {
            "wall": row["wall_seconds"],
            "updates": round(float(read_metrics(workdir / "cells" / row["id"] / METRICS)[-1]["seconds"]), 3),
        }
        for row in rows
    ]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__, allow_abbrev=False)
    made.add_argument("--cells", type=int, default=4, help="default: 4")
    made.add_argument("--flops", type=float, default=1.3e12, help="of a cell (default: 1.3e12, a minute)")
    made.add_argument("--parallel", type=int, default=2, help="workers (default: 2)")
    made.add_argument("--output", type=Path, default=RESULTS, help="file that is written")
    return made


if __name__ == "__main__":
    sys.exit(main())

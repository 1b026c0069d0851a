"""Isoflop's training step beside a bare one written by hand: `python -m benchmarks.step --help`."""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import report
from benchmarks.race import Contestant, ContestantError, race
from benchmarks.shapes import SHAPES, Shape

KERNELS = ("auto", "reference")
RESULTS = Path(__file__).parent / "results"
EXAMPLES = """examples:
  python -m benchmarks.step                                shapes S and M, as `make benchmark` does
  python -m benchmarks.step --shape S --rounds 9
  python -m benchmarks.step --shape S --layers 12 --batch 4 --kernels auto,reference --no-loop
"""


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints and keeps the results of each shape."""
    options = parser().parse_args(arguments)
    if options.rounds < 1 or (options.steps is not None and options.steps < 1):
        parser().error("--rounds and --steps are at least 1")
    for name in options.kernels.split(","):
        if name not in KERNELS:
            parser().error(f"--kernels {name}: choose of {', '.join(KERNELS)}")
    if options.cores:
        os.sched_setaffinity(0, options.cores)
    console = Console(stderr=options.json)
    if not console.is_terminal:
        console.width = 120
    results = []
    for label, shape in shapes(options).items():
        try:
            results.append(measure(label, shape, options, console))
        except ContestantError as error:
            console.print(f"benchmark failed: {error}", style="bold red")
            return 1
    if options.json:
        print(json.dumps(results))
    return 0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    found = argparse.ArgumentParser(
        "python -m benchmarks.step", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawTextHelpFormatter
    )
    found.add_argument("--shape", choices=tuple(SHAPES), help="one shape; without it, all of them")
    for field in dataclasses.fields(Shape):
        found.add_argument(f"--{field.name}", type=int, help=f"another {field.name} than the shape's")
    found.add_argument("--rounds", type=int, default=5, help="turns of each contestant (default 5)")
    found.add_argument("--steps", type=int, help="updates a turn; without it, about four seconds' worth")
    found.add_argument("--kernels", default="auto", help="sets of kernels, each a contestant: auto,reference")
    found.add_argument("--no-loop", dest="loop", action="store_false", help="leave out the whole training loop")
    found.add_argument("--cores", type=core_numbers, help="run on these cores alone: 0,1")
    found.add_argument(
        "--output", type=Path, default=RESULTS, help="folder of the results (default benchmarks/results)"
    )
    found.add_argument("--json", action="store_true", help="end with the results as JSON on standard output")
    return found


def core_numbers(text: str) -> set[int]:
    """Numbers of cores: `0,1`."""
    return {int(number) for number in text.split(",")}


def shapes(options: argparse.Namespace) -> dict[str, Shape]:
    """The shapes that the flags ask for; one that differs from a named shape is called by what differs."""
    changes = {field.name: getattr(options, field.name) for field in dataclasses.fields(Shape)}
    changes = {name: value for name, value in changes.items() if value is not None}
    suffix = "".join(f"-{name}{value}" for name, value in changes.items())
    names = [options.shape] if options.shape else (["S"] if changes else list(SHAPES))
    return {name + suffix: dataclasses.replace(SHAPES[name], **changes) for name in names}


def contestants(kernels: list[str], with_loop: bool) -> list[Contestant]:
    """The yardstick, Isoflop's step with each set of kernels, and the loop with the first of them."""
    found = [Contestant("bare", {"name": "bare"})]
    for number, name in enumerate(kernels):
        shown = "isoflop" if number == 0 else f"isoflop-{name}"
        found.append(Contestant(shown, {"name": "isoflop", "kernels": name}))
    if with_loop:
        found.append(Contestant("loop", {"name": "loop", "kernels": kernels[0]}))
    return found


def measure(label: str, shape: Shape, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Runs one shape; returns what was written."""
    load = os.getloadavg()[0]
    with console.status(f"shape {label}") as status:
        run = race(
            shape,
            contestants(options.kernels.split(","), options.loop),
            options.rounds,
            options.steps,
            lambda text: status.update(f"shape {label}: {text}"),
        )
    model_flops = run.records["isoflop"].start["model_flops"]
    found = report.figures(run, model_flops)
    result = report.record(label, run, found, model_flops, load)
    console.print(report.table(label, run, found))
    if "loop_over_own_step" in result:
        overhead = report.Spread(**result["loop_over_own_step"])
        console.print(f"the loop takes {overhead.show('.3f')} times as long as its own jitted step")
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"step-{label}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".svg").write_text(report.plot(label, run, found), encoding="utf-8")
    console.print(f"written: {path} and its plot, {path.stem}.svg\n", soft_wrap=True)
    return result


if __name__ == "__main__":
    sys.exit(main())

"""Training steps side by side, Isoflop's and those of its peers, in alternating rounds: `make benchmark`."""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import peers, report
from benchmarks.race import Contestant, ContestantError, race, start_from_cache
from benchmarks.shapes import DEFAULT, FAMILIES, OBJECTIVES, SHAPES, Shape

KERNELS = ("auto", "reference")
OWN = {"bare", "loop", "cached", "isoflop-reference", "isoflop-auto"}
RESULTS = Path(__file__).parent / "results"
EXAMPLES = """examples:
  python -m benchmarks.step                                what `make benchmark` does
  python -m benchmarks.step --shape S --rounds 9
  python -m benchmarks.step --shape M --family llama --batch 2
  python -m benchmarks.step --shape S --layers 12 --kernels auto,reference --without loop,litgpt
  ISOFLOP_BENCH_NANOGPT=../nanoGPT ISOFLOP_BENCH_NANODO=../nanodo python -m benchmarks.step --shape S --cores 0,1

checkouts and other Pythons for the peers, by environment: ISOFLOP_BENCH_NAME=DIRECTORY, ISOFLOP_BENCH_NAME_PYTHON=FILE
"""
SIZES = tuple(field.name for field in dataclasses.fields(Shape) if field.type in (int, "int"))


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints and keeps the results of each shape."""
    options = parser().parse_args(arguments)
    if options.rounds < 1 or (options.steps is not None and options.steps < 1):
        parser().error("--rounds and --steps are at least 1")
    for name in options.kernels.split(","):
        if name not in KERNELS:
            parser().error(f"--kernels {name}: choose of {', '.join(KERNELS)}")
    if "isoflop" in options.without:
        parser().error("--without isoflop: it is what all others are compared with")
    chosen = shapes(options)
    for shape in chosen.values():
        if shape.asks not in OBJECTIVES[shape.family]:
            allowed = ", ".join(OBJECTIVES[shape.family])
            parser().error(f"--objective {shape.asks} with --family {shape.family}: choose of {allowed}")
        if min(dataclasses.asdict(shape)[name] for name in SIZES) < 1 or shape.embed % shape.heads:
            parser().error("sizes are at least 1, and --heads divides --embed")
    if unknown := set(options.without) - {peer.name for peer in peers.ALL} - OWN:
        parser().error(f"--without {','.join(sorted(unknown))}: choose of those that --help lists")
    if options.cores:
        if not options.cores <= os.sched_getaffinity(0):
            parser().error(f"--cores: choose of {','.join(map(str, sorted(os.sched_getaffinity(0))))}")
        os.sched_setaffinity(0, options.cores)
    console = Console(stderr=options.json)
    if not console.is_terminal:
        console.width = 120
    results = []
    for label, shape in chosen.items():
        try:
            results.append(measure(label, shape, options, console))
        except ContestantError as error:
            console.print(f"benchmark failed: {error}; --without leaves a contestant out", style="bold red")
            return 1
    if options.json:
        print(json.dumps(results))
    return 0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    found = argparse.ArgumentParser(
        "python -m benchmarks.step", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawTextHelpFormatter
    )
    found.add_argument("--shape", choices=tuple(SHAPES), help="sizes; without any flag of a shape, the default set")
    found.add_argument("--family", choices=FAMILIES, help="kind of model")
    objectives = sorted({name for names in OBJECTIVES.values() for name in names})
    found.add_argument("--objective", choices=objectives, help="what it is asked; without it, what its family is")
    for name in SIZES:
        found.add_argument(f"--{name}", type=int, help=f"another {name} than the shape's")
    found.add_argument("--rounds", type=int, default=5, help="turns of each contestant (default 5)")
    found.add_argument("--steps", type=int, help="updates a turn; without it, about four seconds' worth")
    found.add_argument("--kernels", default="auto", help="sets of kernels, each a contestant: auto,reference")
    found.add_argument(
        "--without",
        type=lambda text: tuple(text.split(",")),
        default=(),
        help="contestants to leave out: bare,loop,cached,nanogpt,huggingface,litgpt,nanodo,maxtext",
    )
    found.add_argument("--torch-compile", action="store_true", help="torch's peers compiled, too")
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
    changes = {name: getattr(options, name) for name in SIZES}
    changes = {name: value for name, value in changes.items() if value is not None}
    kinds = {name: getattr(options, name) for name in ("family", "objective") if getattr(options, name)}
    if not options.shape and not changes and not kinds:
        return {
            name if family == "gpt" else f"{name}-{family}": dataclasses.replace(SHAPES[name], family=family)
            for name, family in DEFAULT
        }
    name = options.shape or "S"
    parts = [name, *kinds.values(), *(f"{key}{value}" for key, value in changes.items())]
    return {"-".join(parts): dataclasses.replace(SHAPES[name], **changes, **kinds)}


def contestants(shape: Shape, options: argparse.Namespace) -> tuple[list[Contestant], tuple[str, ...]]:
    """Who takes part, and a line for each peer that is absent: peers, the bare step, Isoflop's step with each set of
    kernels, and its loop with the first of them."""
    found = peers.find(shape, options.torch_compile)
    listed = [Contestant(name, request, guest=True) for name, request in found.requests.items()]
    if (shape.family, shape.asks) == ("gpt", "causal"):
        listed.append(Contestant("bare", {"name": "bare"}))
    kernels = options.kernels.split(",")
    for number, name in enumerate(kernels):
        shown = "isoflop" if number == 0 else f"isoflop-{name}"
        listed.append(Contestant(shown, {"name": "isoflop", "kernels": name}))
    if not shape.with_encoder:  # whose rows come from the objective's own lengths
        listed.append(Contestant("loop", {"name": "loop", "kernels": kernels[0]}))
    return [contestant for contestant in listed if contestant.name not in options.without], found.absent


def measure(label: str, shape: Shape, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Runs one shape; returns what was written."""
    load = os.getloadavg()[0]
    listed, absent = contestants(shape, options)
    for line in absent:
        console.print(line, style="dim", soft_wrap=True)
    with console.status(f"shape {label}") as status:

        def tell(text: str) -> None:
            status.update(f"shape {label}: {text}")

        cached: dict[str, Any] = {}
        if "cached" not in options.without:
            cached = start_from_cache(next(entry for entry in listed if entry.name == "isoflop"), shape, tell)
        run = dataclasses.replace(race(shape, listed, options.rounds, options.steps, tell), cached=cached)
    for line in run.missing:
        console.print(line, style="dim", soft_wrap=True)
    absent = (*absent, *run.missing)
    model_flops = run.records["isoflop"].start["model_flops"]
    found = report.figures(run, model_flops)
    result = report.record(label, run, found, model_flops, load, absent)
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

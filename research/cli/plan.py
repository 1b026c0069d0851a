"""Say whether a run fits devices that are not here, and how long it takes, before anything is launched.

Compiles the real update for the topology with no hardware (TPUs; `pip install 'isoflop[tpu]'`), shows the memory of a
device by kind, the bytes that each collective moves over each mesh axis, and a roofline estimate of time, chip-hours and
cost with its assumptions. GPUs are planned by analysis alone. Neither data nor tokenizer need exist. What was compiled
is kept, so that the same question is answered at once. Exit status 0 if the run fits, 1 if it does not.

examples:
  isoflop plan --config=configs/causal.py:llama-7b --topology=v5p:4x4x4 --config.parallel.preset=fsdp --config.parallel.remat=dots
  isoflop plan --config=configs/causal.py:llama-70b --topology=v5p:8x8x8 --slices=2 --search --price=4.2 --output=plan.html
  isoflop plan --config=configs/causal.py:7b --topology=gpu:h100:8x4 --config.parallel.preset=fsdp --json
  isoflop plan --config=configs/causal.py:7b --topology=v5e:16x16 --no-compile --search
"""  # noqa: E501 - a command is read in one line

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from research.errors import UserError

if TYPE_CHECKING:
    from research.cli.arguments import Result
    from research.plan.planning import Plan
    from research.plan.search import Candidate

SHOWN = 10
GIB = 2**30


def epilog() -> str | None:
    """What `--help` ends with."""
    from research.cli.arguments import keys_table

    return keys_table()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    from research.cli.arguments import absolute, add_config

    add_config(parser)
    parser.add_argument("--topology", required=True, help="v5p:4x4x4, v5e:16x16, gpu:h100:8x4 (8 a node, 4 nodes), ...")
    parser.add_argument("--slices", type=int, default=1, help="TPU slices that a data-centre network joins (default 1)")
    parser.add_argument("--price", type=float, help="of a chip for an hour")
    parser.add_argument("--search", action="store_true", help="try meshes, remat and micro-batches, rank what fits")
    parser.add_argument("--compiles", type=int, default=3, help="layouts of a search to compile (default 3)")
    parser.add_argument("--no-compile", action="store_true", help="analysis alone")
    parser.add_argument("--output", type=absolute, metavar="FILE", help="write a page (plan.html)")


def run(options: argparse.Namespace) -> "Result":
    """Plans, searches where asked, shows and writes."""
    # A plan must not look for the accelerators of this machine: with libtpu installed that is slow and loud.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from research.cli.arguments import console, settings
    from research.plan import page, planning, search, topologies, verdict

    if options.price is not None and not 0 <= options.price < math.inf:
        raise UserError(f"--price={options.price:g}: a price is a number of at least 0")
    if options.output is not None and options.output.is_dir():
        raise UserError(f"--output={options.output} is a directory: name a file in it, as in plan.html")
    if options.compiles < 1:
        raise UserError(f"--compiles={options.compiles}: compile at least one layout, or add --no-compile")
    chosen = settings(options.config, options.overrides)
    topology = topologies.parse(options.topology, options.slices)
    compiles = topology.compiled and not options.no_compile
    shown = console(options)

    def tell(line: str) -> None:
        shown.print(escape(line), style="dim")

    if not topology.compiled and not options.no_compile:
        tell(f"{topology.chip.name} has no compiler that runs without it: all of this is analysis")
    ranked: Sequence[Candidate] = ()
    record: dict[str, Any] = {}
    instead: Candidate | None = None
    if options.search:
        found = search.search(
            chosen, topology, compiles=options.compiles if compiles else 0, price=options.price, tell=tell
        )
        ranked = found.ranked
        record["search"] = search.record(found)
    if ranked:
        made = ranked[0].plan
    else:
        made = planning.plan(chosen, topology, compiles=compiles, price=options.price, tell=tell)
        instead = None if made.fits else search.nearest(made, compiles=compiles, tell=tell)
    refusal = "" if made.fits else verdict.sentence(made, instead)
    show(shown, options.config, made, ranked)
    if refusal:
        shown.print(f"\n{escape(refusal)}", style="bold red")
    record = {**made.record(), **record, "refusal": refusal or None}
    record["instead"] = None if instead is None else instead.changes
    if options.output is not None:
        page.write_page(options.output, Path(options.config).name, made, ranked, refusal)
        shown.print(f"\npage {escape(str(options.output))}")
    return (0 if made.fits else 1), record


def show(shown: Console, name: str, plan: "Plan", ranked: Sequence["Candidate"]) -> None:
    """The plan, for a person."""
    from research.plan import roofline
    from research.train.page import quantity

    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.assembly.mesh.shape.items() if size > 1)
    parallel, train = plan.settings.parallel, plan.settings.train
    shown.print()
    shown.print(
        f"{escape(name)} on {plan.topology.label}: {quantity(plan.assembly.count.parameters)} parameters, "
        f"{mesh or 'one device'}, remat {parallel.remat}, accumulation {train.accumulation}",
        style="bold",
    )
    shown.print(memory_table(plan))
    if plan.flows:
        shown.print(flow_table(plan))
        shown.print("read from the compiled program" if plan.counted else "by analysis", style="dim")
    show_estimate(shown, plan)
    for line in roofline.assumptions(plan.topology):
        shown.print(f"  {escape(line)}", style="dim")
    if ranked:
        shown.print()
        shown.print(ranking_table(ranked))


def memory_table(plan: "Plan") -> Table:
    """Kinds of memory of a device, and the verdict."""
    table = _table("memory of a device", "GiB", "how")
    for kind, size, how in plan.kinds:
        table.add_row(kind, f"{size / GIB:,.3f}", how)
    verdict = "[green]fits[/green]" if plan.fits else "[bold red]does not fit[/bold red]"
    whole = f"of {plan.capacity / GIB:,.2f}: {verdict}"
    table.add_row("[bold]in all[/bold]", f"[bold]{plan.needed / GIB:,.2f}[/bold]", whole)
    return table


def flow_table(plan: "Plan") -> Table:
    """Collectives by kind and mesh axes."""
    table = _table("collective", "a step", "over mesh axes", "GiB sent", numbers={"a step", "GiB sent"})
    for flow in plan.flows[:SHOWN]:
        table.add_row(flow.kind, f"{flow.times:,.0f}", " x ".join(flow.axes), f"{flow.bytes / GIB:,.3f}")
    return table


def show_estimate(shown: Console, plan: "Plan") -> None:
    """Time, utilisation, cost."""
    from research.train.page import duration, quantity

    roof, steps = plan.roofline, plan.settings.train.num_steps
    if not roof.step_seconds:
        return
    parts = {"compute": roof.compute_seconds, "memory": roof.memory_seconds, **roof.communication}
    named = ", ".join(f"{part} {duration(seconds)}" for part, seconds in parts.items())
    shown.print(f"\nestimate: {duration(roof.step_seconds)} a step, bound by {roof.bound} ({named})", style="bold")
    shown.print(
        f"{roof.utilisation:.1%} utilisation, {quantity(roof.tokens_per_second)} tokens/s, "
        f"{quantity(86_400 * roof.tokens_per_second)} tokens/day, {quantity(roof.intensity)} FLOPs a byte"
    )
    hours = roof.chip_hours(steps)
    cost = "" if plan.price is None else f", cost {plan.price * hours:,.0f}"
    shown.print(f"{steps:,} steps: {duration(86_400 * roof.days(steps))}, {quantity(hours)} chip-hours{cost}")


def ranking_table(ranked: Sequence["Candidate"]) -> Table:
    """Layouts that fit, the fastest first."""
    from research.plan.search import describe
    from research.train.page import duration

    table = _table("layouts that fit", "step", "GiB", "by", numbers={"step", "GiB"})
    for found in ranked[:SHOWN]:
        seconds, by = found.plan.roofline.step_seconds, "compiled" if found.plan.counted else "analysis"
        step = duration(seconds) if seconds else "-"
        table.add_row(escape(describe(found.changes) or "as asked"), step, f"{found.plan.needed / GIB:,.2f}", by)
    return table


def _table(*columns: str, numbers: set[str] | None = None) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in columns:
        right = column in (numbers or {"GiB"})
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    return table

"""Record what the updates of a run spend their time on.

Trains a few updates of the real step on the real data, from fresh weights, under JAX's profiler; the run itself is not
touched. Shows the time by part of the model and kind of operation, and the longest operations; writes profile.html and
profile.json beside the trace. The trace opens in Perfetto (the .trace.json.gz) and in XProf
(`pip install xprof`, `xprof DIRECTORY`).

examples:
  isoflop profile --config=configs/causal.py:tiny
  isoflop profile --workdir=runs/first --steps=10 --open
  isoflop profile --config=configs/masked.py:15m --config.parallel.kernels=reference --output=traces/reference --json
"""

import argparse
import datetime
import statistics
import webbrowser
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from research.cli import rundir
from research.cli.arguments import Result, absolute, add_config, changed, console, keys_table, settings
from research.cli.execution import set_up_training
from research.cli.progress import Progress
from research.data import prepare
from research.errors import UserError
from research.parallel import mesh
from research.settings import Settings
from research.train import operations, provenance, tracing
from research.train.assembly import Assembly, assemble
from research.train.metrics import write_json, write_text
from research.train.profile_page import page
from research.train.recorder import Utilisation

FOLDER = "profiles"
NAME_WIDTH, PATH_WIDTH = 20, 22  # characters: a row fits into eighty


def epilog() -> str | None:
    """What `--help` ends with."""
    return keys_table()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_config(parser, required=False)
    parser.add_argument("--workdir", type=absolute, metavar="DIR", help="a run whose settings and data are taken")
    parser.add_argument("--steps", type=int, default=5, help="updates to trace (default 5)")
    parser.add_argument("--warmup", type=int, default=3, help="updates before them (default 3)")
    parser.add_argument("--top", type=int, default=15, help="operations to show (default 15)")
    parser.add_argument(
        "--output",
        type=absolute,
        metavar="DIR",
        help=f"where trace and page go; without it {FOLDER}/TIME in the run directory, or here",
    )
    parser.add_argument("--open", action="store_true", help="show the page in a browser")


def run(options: argparse.Namespace) -> Result:
    """Traces, shows the tables, writes the page."""
    for name, least in (("steps", 1), ("warmup", 1), ("top", 1)):
        if getattr(options, name) < least:
            raise UserError(f"--{name}={getattr(options, name)}: must be at least {least}")
    chosen, facts = _settings(options)
    now = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    output: Path = options.output or (options.workdir or Path.cwd()) / FOLDER / now
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output={output} is not an empty directory: choose a new one")
    mesh.start_processes(chosen.parallel)
    set_up_training()
    shown = console(options)
    with Progress(0, 0, 1, shown) as progress:
        progress.stage("opening the data")
        prepared = (
            rundir.open_recorded_data(chosen, facts, progress.stage)
            if options.workdir
            else prepare.prepare(chosen, progress.stage)
        )
        assembly = assemble(chosen, prepared.tokenizer.vocabulary)
        profile = tracing.trace(assembly, prepared, options.steps, options.warmup, output, progress.stage)
    record = summary(assembly, profile) | {"output": str(output)}
    write_json(output / "profile.json", record | {"operations": [vars(row) for row in profile.rows]})
    write_text(output / "profile.html", page(record, profile.rows))
    show(shown, record, profile, options.top)
    shown.print(f"\npage: {output / 'profile.html'}", soft_wrap=True)
    for trace in sorted(output.glob("plugins/profile/*/*.trace.json.gz")):
        shown.print(f"trace: {trace} opens at https://ui.perfetto.dev; or: xprof {output}", soft_wrap=True)
    if options.open and not webbrowser.open((output / "profile.html").as_uri()):
        raise UserError(f"no browser was found: open {output / 'profile.html'} by hand")
    return 0, record


def _settings(options: argparse.Namespace) -> tuple[Settings, dict[str, Any]]:
    if (options.config is None) == (options.workdir is None):
        given = "neither" if options.config is None else "both"
        raise UserError(f"--config and --workdir: {given} given, say either a recipe or a run directory")
    if options.workdir is None:
        return settings(options.config, options.overrides), {}
    recorded, facts = rundir.open_settings(options.workdir)
    return changed(recorded, options.overrides), facts


def summary(assembly: Assembly, profile: tracing.Profile) -> dict[str, Any]:
    """The profile's figures, as JSON."""
    seconds = statistics.median(profile.step_seconds)
    tokens = assembly.settings.train.batch_size * assembly.raw_length
    share = Utilisation.of(assembly).at(tokens / seconds)
    parts = operations.grouped(profile.rows)
    return {
        "objective": assembly.objective.name,
        "device": assembly.mesh.devices.flat[0].device_kind,
        "devices": assembly.mesh.size,
        "kernels": dict(assembly.kernels.names),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "steps": profile.steps,
        "step_seconds": seconds,
        "step_seconds_each": profile.step_seconds,
        "compile_seconds": profile.compile_seconds,
        "tokens_per_second": tokens / seconds,
        "model_flops_per_second": tokens * assembly.count.model_flops / seconds,
        "utilisation": share if share is not None and share <= 1.0 else None,
        "seconds_by_part": {
            part: {kind: spent / profile.steps for kind, spent in kinds.items()} for part, kinds in parts.items()
        },
    }


def show(shown: Console, record: dict[str, Any], profile: tracing.Profile, top: int) -> None:
    """The tables for a terminal."""
    busy = sum(row.seconds for row in profile.rows) / profile.steps
    shown.print(
        f"\n{record['objective']} on {record['device']}: {1e3 * record['step_seconds']:.1f} ms an update "
        f"(median of {profile.steps}), {record['tokens_per_second']:,.0f} tokens/s, "
        f"{record['model_flops_per_second'] / 1e9:,.1f} model GFLOP/s; operations {1e3 * busy:.1f} ms an update",
        style="bold",
    )
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("ms an update", no_wrap=True)
    parts = record["seconds_by_part"]
    found = [kind for kind in operations.KINDS if any(kinds[kind] for kinds in parts.values())]
    for kind in (*found, "all", "share"):
        table.add_column(kind, justify="right", no_wrap=True)
    total = max(busy, 1e-12)
    for part, kinds in parts.items():
        whole = sum(kinds.values())
        cells = ["" if value == 0 else f"{1e3 * value:.2f}" for value in (*(kinds[kind] for kind in found), whole)]
        table.add_row(part, *cells, f"{whole / total:.1%}")
    shown.print(table)
    shown.print(f"\nthe {min(top, len(profile.rows))} longest operations", style="bold")
    longest = Table(box=None, header_style="dim", pad_edge=False)
    longest.add_column("ms", no_wrap=True, justify="right")
    for name in ("share", "calls"):
        longest.add_column(name, justify="right", no_wrap=True)
    for name in ("operation", "kind", "from"):
        longest.add_column(name, no_wrap=True)
    for row in profile.rows[:top]:
        each = row.seconds / profile.steps
        numbers = (f"{1e3 * each:.2f}", f"{each / total:.1%}", f"{row.calls / profile.steps:g}")
        longest.add_row(*numbers, _last(row.name, NAME_WIDTH), row.kind, escape(_last(row.path, PATH_WIDTH)))
    shown.print(longest)


def _last(text: str, width: int) -> str:
    return text if len(text) <= width else f"…{text[1 - width :]}"

"""Examine the laws that every run rests on, on the actual settings and devices.

No future leak, packed documents isolated on every attention backend, special tokens out of it, loss only where it
should be; accumulation = full batch, cache = full pass, remat = none, scan = unrolled, kernels = reference, sharded =
single. The weights are random and the text is made up: nothing is prepared or trained. A model that is too large for
the device is made smaller, keeping all of its choices, and the table says how. Exit status 0 if all laws hold, 1 if
one fails.

examples:
  isoflop doctor --config=configs/causal.py:tiny
  isoflop doctor --config=configs/masked.py:bert-tiny --config.model.compute_dtype=bfloat16
  isoflop doctor --config=configs/causal.py:7b --json
"""

import argparse

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from research.cli.arguments import Result, add_config, console, keys_table, settings
from research.cli.execution import compilation_cache
from research.cli.progress import Progress
from research.doctor import NAMES, Finding, Report, examine
from research.doctor.findings import DOES_NOT_APPLY, FAILS, HOLDS

STYLES = {HOLDS: "green", FAILS: "bold red"}


def epilog() -> str | None:
    """What `--help` ends with."""
    return keys_table()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_config(parser)


def run(options: argparse.Namespace) -> Result:
    """Examines and shows the table."""
    chosen = settings(options.config, options.overrides)
    compilation_cache()
    shown = console(options)
    with Progress(0, 0, 1, shown) as progress:
        report = examine(chosen, stage=lambda law: progress.stage(f"examining: {law}"))
    show(shown, report)
    return 0 if report.holds else 1, report.record()


def show(shown: Console, report: Report) -> None:
    """The header, a row for each finding, and the sum of them."""
    facts = report.subject
    shown.print()
    shown.print(
        f"{facts['objective']} on {facts['architecture']}, {facts['parameters']:,} parameters, "
        f"{facts['compute_dtype']}, {facts['device']}",
        style="bold",
    )
    if report.reduced:
        changes = ", ".join(f"{key} {was} -> {now}" for key, (was, now) in report.reduced.items())
        shown.print(f"made smaller for this device: {changes}", style="yellow")
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("law", no_wrap=True)
    table.add_column("measured", overflow="fold")
    for name in ("value", "at most"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    last = None
    for finding in report.findings:
        if finding.law != last:
            table.add_row(f"[bold]{finding.law}[/bold]")
            last = finding.law
        verdict, quantity = finding.verdict, escape(finding.quantity)
        if verdict == DOES_NOT_APPLY:
            verdict, quantity = "-", f"[dim]{DOES_NOT_APPLY}: {quantity}[/dim]"
        style = STYLES.get(verdict, "dim")
        row = (f"  {escape(finding.variant)}", quantity, *_numbers(finding), f"[{style}]{verdict}[/{style}]")
        table.add_row(*row)
    shown.print(table)
    shown.print("values: relative to the largest of their kind, or counts where none is allowed", style="dim")
    failed = {finding.law: None for finding in report.findings if finding.verdict == FAILS}
    if failed:
        shown.print(f"\nfails: {', '.join(failed)}", style=STYLES[FAILS])
    else:
        held = len({finding.law for finding in report.findings if finding.verdict == HOLDS})
        shown.print(f"\nevery law that applies holds ({held} of {len(NAMES)})", style=STYLES[HOLDS])


def _numbers(finding: Finding) -> tuple[str, str]:
    if finding.measured is None:
        return "", ""
    return f"{finding.measured:.2g}", f"{finding.tolerance:.0e}" if finding.tolerance else "0"

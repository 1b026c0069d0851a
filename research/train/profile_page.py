"""The page of a profile: one HTML file that needs nothing else."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from research.train.operations import KINDS, Row

COLOURS = dict(zip(KINDS, ("#2f6f9f", "#7a5195", "#d9822b", "#b5443c", "#9aa5b1"), strict=True))
MOST_ROWS = 200
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1d232b }
table { border-collapse: collapse; width: 100% }
th { text-align: left; font-weight: 600; border-bottom: 1px solid #ccc }
td, th { padding: .2rem .6rem .2rem 0; vertical-align: top } td.n, th.n { text-align: right; white-space: nowrap }
td.path { color: #666; font-size: 85%; overflow-wrap: anywhere } .bar { display: flex; height: 1rem; min-width: 12rem }
.bar span { height: 100% } .key span { display: inline-block; width: .8rem; height: .8rem; margin: 0 .3rem 0 1rem }
"""


def page(record: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The whole page.

    Args:
      record: the profile's figures, see `isoflop profile --json`.
      rows: operations, the longest first.
    """
    steps = record["steps"]
    total = sum(row.seconds for row in rows) / steps or 1e-12
    kernels = ", ".join(f"{name} {choice}" for name, choice in record["kernels"].items())
    utilisation = record["utilisation"]
    share = "" if utilisation is None else f", {utilisation:.1%} of the devices' peak"
    facts = (
        f"{1e3 * record['step_seconds']:.2f} ms an update (median of {steps}), {record['tokens_per_second']:,.0f} "
        f"tokens/s, {record['model_flops_per_second'] / 1e9:,.1f} model GFLOP/s{share}; compiled in "
        f"{record['compile_seconds']:.1f} s; {kernels}"
    )
    title = f"Profile: {record['objective']} on {record['devices']} x {record['device']}"
    key = "".join(f'<span style="background:{colour}"></span>{kind}' for kind, colour in COLOURS.items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1><p>{html.escape(facts)}</p>"
        f"<h2>By part of the model</h2><p class=key>{key}</p>{_parts(record['seconds_by_part'], total)}"
        f"<h2>Operations</h2>{_operations(rows[:MOST_ROWS], steps, total)}"
        f"<p>commit {html.escape(str(record['commit']))}</p></html>\n"
    )


def _parts(parts: Mapping[str, Mapping[str, float]], total: float) -> str:
    longest = max((sum(kinds.values()) for kinds in parts.values()), default=0.0) or 1e-12
    lines = []
    for part, kinds in parts.items():
        whole = sum(kinds.values())
        bars = "".join(
            f'<span style="width:{100 * value / longest:.2f}%;background:{COLOURS[kind]}" '
            f'title="{kind}: {1e3 * value:.3f} ms"></span>'
            for kind, value in kinds.items()
        )
        lines.append(
            f"<tr><td>{html.escape(part)}<td class=n>{1e3 * whole:.2f}<td class=n>{whole / total:.1%}"
            f"<td style='width:60%'><div class=bar>{bars}</div>"
        )
    return f"<table><tr><th>part<th class=n>ms an update<th class=n>share<th>{''.join(lines)}</table>"


def _operations(rows: Sequence[Row], steps: int, total: float) -> str:
    lines = [
        f"<tr><td>{html.escape(row.name)}<td class=n>{1e3 * row.seconds / steps:.3f}"
        f"<td class=n>{row.seconds / steps / total:.1%}<td class=n>{row.calls / steps:g}<td>{row.kind}"
        f"<td>{html.escape(row.part)}{', backward' if row.backward else ''}<td class=path>{html.escape(row.path)}"
        for row in rows
    ]
    heads = "<th>operation<th class=n>ms an update<th class=n>share<th class=n>calls<th>kind<th>part<th>from"
    return f"<table><tr>{heads}{''.join(lines)}</table>"

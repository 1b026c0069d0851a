"""Fit scaling laws to runs, yours or anyone's, with intervals; say what size and how much data a budget calls for.

RUNS is a CSV with a header and a row a run, or a sweep's folder (or its rows.json), whose columns are known. Of
parameters, tokens and FLOPs two are enough: the third follows from C = 6 N D. Approaches: the three of Hoffmann et al.
2022 (curves, isoflop, parametric), the laws of Kaplan et al. 2020 (kaplan) and Muennighoff et al. 2023 (data), and a
power law of compute for runs of one number of tokens a parameter (ladder). What the runs cannot tell is refused, with
the reason. --hold-out takes the runs of highest compute, or those named, out of the fit, and predicts them.
Exit status 0 if anything could be fitted, 1 if nothing could.

examples:
  isoflop fit runs.csv --loss=loss --params=n --flops=c
  isoflop fit runs.csv --loss=bpb --params=n --tokens=d --approach=parametric --budget 1e21 1e22 --hold-out largest
  isoflop fit runs.csv --loss=loss --params=n --tokens=d --unique=distinct --approach=data --page
  isoflop fit sweeps/ladder --non-embedding --where point.objective.name=causal --json
"""

import argparse
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from research.errors import UserError

if TYPE_CHECKING:
    from research.cli.arguments import Result
    from research.scaling.answers import Answer
    from research.scaling.bootstrap import Estimate

JSON, PAGE = "fit.json", "fit.html"


def epilog() -> str | None:
    """What `--help` ends with."""
    return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    from research.cli.arguments import absolute
    from research.scaling.bootstrap import CONFIDENCE, DRAWS, SEED
    from research.scaling.fit import HUBER

    parser.add_argument(
        "runs", type=absolute, metavar="RUNS", help="a CSV with a header, a sweep's folder or rows.json"
    )
    parser.add_argument("--loss", metavar="COLUMN", help="what was measured, less is better")
    parser.add_argument("--params", metavar="COLUMN", help="parameters N")
    parser.add_argument("--tokens", metavar="COLUMN", help="tokens seen D")
    parser.add_argument("--flops", metavar="COLUMN", help="training FLOPs C")
    parser.add_argument("--unique", metavar="COLUMN", help="distinct tokens, where runs repeat data")
    parser.add_argument("--curve", metavar="COLUMN", help="tells runs apart where rows are points of training curves")
    parser.add_argument("--non-embedding", action="store_true", help="N counts parameters without embeddings")
    parser.add_argument("--where", action="append", default=[], metavar="COLUMN=TEXT", help="only rows that hold this")
    parser.add_argument("--approach", default="all", help="all, curves, isoflop, parametric, kaplan, data or ladder")
    parser.add_argument(
        "--budget", type=float, nargs="+", default=[], metavar="FLOPS", help="say what is optimal for these"
    )
    parser.add_argument(
        "--hold-out", nargs="+", default=[], metavar="RUN", help="predict these, by name, or largest, or largest:K"
    )
    parser.add_argument("--draws", type=int, default=DRAWS, help=f"bootstrap refits (default {DRAWS})")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the bootstrap (default {SEED})")
    parser.add_argument("--confidence", type=float, default=CONFIDENCE, help=f"of intervals (default {CONFIDENCE})")
    parser.add_argument("--huber", type=float, default=HUBER, help=f"delta on log loss (default {HUBER}; inf: squares)")
    parser.add_argument("--page", action="store_true", help=f"write {JSON} and {PAGE} beside RUNS")


def run(options: argparse.Namespace) -> "Result":
    """Reads, fits, shows and writes."""
    from research.cli.arguments import console
    from research.scaling import answers, approaches, rows
    from research.scaling.bootstrap import Sampling

    if options.overrides:
        raise UserError(f"--config.{options.overrides[0][0]}: a fit reads runs and has no such keys")
    if not options.huber > 0:
        raise UserError(f"--huber={options.huber:g}: a delta is positive")
    columns = {name: getattr(options, name) for name in ("loss", "params", "tokens", "flops", "unique", "curve")}
    count = rows.NON_EMBEDDING if options.non_embedding else rows.TOTAL
    found = rows.read(options.runs, {**columns, "count": count}, conditions(options.where))
    hold_out = options.hold_out or list(found.held_out)
    fitted, held = found.split(hold_out) if hold_out else (found, None)
    sampling = Sampling(options.draws, options.confidence, options.seed)
    told = approaches.analyse(fitted, options.approach, options.budget, held, sampling, options.huber)
    provenance = {
        "runs": str(options.runs),
        "fitted": len(fitted),
        "held_out": list(dict.fromkeys(held.names if held else ())),
    }
    provenance |= {
        "draws": options.draws,
        "seed": options.seed,
        "huber": options.huber if math.isfinite(options.huber) else "inf",
    }
    provenance |= {"columns": {name: value for name, value in columns.items() if value}}
    record = answers.record(told, options.confidence, provenance)
    show(console(options), told, options.confidence)
    if options.page:
        record |= write(options, record, fitted)
        console(options).print(f"\npage {escape(record['page'])}")
    return (0 if any(answer.refused is None for answer in told) else 1), record


def conditions(texts: Sequence[str]) -> dict[str, str]:
    """`--where COLUMN=TEXT` as pairs."""
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--where {text} says not what the column holds: write COLUMN=TEXT")
        pairs[name] = value
    return pairs


def write(options: argparse.Namespace, record: dict[str, Any], fitted: Any) -> dict[str, str]:
    """Writes the record and the page; gives the page's path."""
    from research.scaling.page import page
    from research.train.metrics import write_json, write_text

    folder = options.runs if options.runs.is_dir() else options.runs.parent
    write_json(folder / JSON, record)
    write_text(folder / PAGE, page(options.runs.name, record, fitted))
    return {"page": str(folder / PAGE)}


def show(shown: Console, told: Sequence["Answer"], confidence: float) -> None:
    """Answers, for a person."""
    from research.scaling.answers import TITLES

    notes = list(dict.fromkeys(note for answer in told for note in answer.notes))
    for answer in told:
        shown.print()
        shown.print(escape(TITLES[answer.approach]), style="bold")
        if answer.refused is not None:
            shown.print(f"  not fitted: {escape(answer.refused)}", style="yellow", soft_wrap=True)
            continue
        shown.print(
            f"  {escape(answer.form)}   {answer.runs} runs, residual {answer.residual:.2%} of the loss", style="dim"
        )
        shown.print(estimates(answer, confidence))
        if answer.optima:
            shown.print(optima(answer))
        for prediction in answer.predictions:
            style = "green" if prediction.inside else "red"
            shown.print(f"  {escape(prediction.sentence())}", style=style, soft_wrap=True)
    shown.print()
    for note in notes:
        shown.print(f"  {escape(note)}", style="dim", soft_wrap=True)


def estimates(answer: "Answer", confidence: float) -> Table:
    """A line an estimate."""
    table = _table("estimate", "value", f"{confidence:.0%} interval")
    for name, found in answer.estimates.items():
        table.add_row(name, f"{found.value:.5g}", f"{found.low:.5g} to {found.high:.5g}")
    return table


def optima(answer: "Answer") -> Table:
    """A line a budget."""
    counted = "N (non-embedding)" if answer.count == "non_embedding_parameters" else "N (all parameters)"
    table = _table("budget", f"optimal {counted}", "optimal D", "loss")
    for found in answer.optima:
        loss = "" if found.loss is None else _between(found.loss, "{:.4f}")
        table.add_row(f"{found.flops:.3g} FLOPs", _between(found.parameters), _between(found.tokens), loss)
    return table


def _between(found: "Estimate", form: str = "{:.3g}") -> str:
    return f"{form.format(found.value)} ({form.format(found.low)} to {form.format(found.high)})"


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=True)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table

"""Measure a trained model on its held-out documents.

Loss, perplexity and bits per byte; for a masked model the accuracy at masked tokens. From the run directory alone.

examples:
  isoflop evaluate --workdir=runs/quickstart
  isoflop evaluate --workdir=runs/quickstart --step=500 --json
"""

import argparse

from research.cli import rundir
from research.cli.arguments import Result, add_workdir, changed, console
from research.cli.measures import heldout_batches, show_heldout
from research.cli.progress import Progress
from research.evaluate.heldout import heldout_evaluation
from research.train.assembly import assemble


def epilog() -> str | None:
    """What `--help` ends with."""
    return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_workdir(parser, "run directory")
    parser.add_argument("--step", type=int, default=None, help="checkpoint (default: the newest)")


def run(options: argparse.Namespace) -> Result:
    """Evaluates a checkpoint."""
    saved, provenance = rundir.open_settings(options.workdir)
    settings = changed(saved, options.overrides)
    shown = console(options)

    with Progress(0, 0, 1, shown) as progress:
        progress.stage("opening the data")
        prepared = rundir.open_recorded_data(settings, provenance, progress.stage)
        assembly = assemble(settings, prepared.tokenizer.vocabulary)
        progress.stage("loading the weights")
        params, step = rundir.open_parameters(options.workdir, assembly, options.step)
        progress.stage("evaluating")
        heldout = heldout_batches(assembly, prepared)
        evaluate = heldout_evaluation(
            assembly.model, assembly.objective, heldout, assembly.evaluation_batch, assembly.mesh
        )
        found = evaluate(params)
    show_heldout(shown, found, step)
    facts = {"step": step, "heldout_windows": heldout.num_windows, "heldout_bytes": heldout.num_bytes}
    return 0, {**facts, **found, **provenance}

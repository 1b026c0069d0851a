"""Pretrain a model, or go on with a run: the same command resumes it.

Prepares the data where it is not yet in the cache, trains, evaluates on held-out documents, compares with what counting
reaches, samples, and writes report.html. A run that was interrupted or killed goes on from its last checkpoint with the
same losses as if nothing had happened.

examples:
  isoflop train --config=configs/causal.py:tiny --workdir=runs/first
  isoflop train --config=configs/masked.py:15m --workdir=runs/masked --config.objective.mask_rate=0.3
  isoflop train --config=configs/causal.py:15m --workdir=runs/my --config.data.source=text --config.data.path=books/
  isoflop train --config=runs/first/config.json --workdir=runs/again --config.seed=1
  isoflop train --config=configs/causal.py:125m --workdir=runs/pod --config.parallel.preset=fsdp
"""

import argparse
import contextlib
import dataclasses
import statistics
import sys
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from research import config
from research.checkpoint import RunLock
from research.cli import measures, rundir
from research.cli.arguments import Result, add_config, add_workdir, console, keys_table, settings
from research.cli.execution import log_process_failures, set_up_training
from research.cli.progress import Progress
from research.data.prepare import Prepared
from research.data.windows import make_plan
from research.errors import UserError
from research.evaluate.heldout import Sums, heldout_evaluation
from research.generate import GAP
from research.parallel import flags, mesh
from research.scaling import batch
from research.settings import Settings
from research.train import loop, provenance
from research.train.assembly import Assembly, assemble
from research.train.metrics import METRICS, EventLog, NullLog, read_events, read_metrics, write_summary
from research.train.report import write_report


def epilog() -> str | None:
    """What `--help` ends with."""
    return keys_table()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_config(parser)
    add_workdir(parser, "run directory; one that holds a run of the same settings is resumed")


def run(options: argparse.Namespace) -> Result:
    """Trains from a recipe to a report."""
    chosen, shown = settings(options.config, options.overrides), console(options)
    status, result = execute(chosen, options.workdir, shown)
    if "signal" in result:
        shown.print(f"interrupted after {result['step']:,} updates: the same command goes on from there")
    elif result:
        show(shown, result, Path(result["report"]))
    return status, result


def execute(chosen: Settings, workdir: Path, shown: Console, *, data_hash: str | None = None) -> Result:
    """Trains, or goes on with, the run of a directory; what `isoflop train` and the cells of sweeps have in common.

    Args:
      chosen: of the run.
      workdir: its directory.
      shown: where progress is shown; process 0 alone shows it.
      data_hash: that the data must have; none: that of the run's own record, where there is one.

    Returns:
      Exit status, and the summary with `workdir` and `report`; with `step` and `signal` where it was interrupted;
      nothing on other processes than the first.

    Raises:
      UserError: the directory is of another run, or in use, or the run cannot be.
    """
    checked_record(chosen, workdir)  # a mistake is told before processes wait for one another
    start(chosen)
    first = jax.process_index() == 0
    shown.quiet = not first
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress(chosen.train.num_steps, 0, chosen.train.log_every, shown))
        opened = open_run(stack, chosen, workdir, data_hash, progress)
        try:
            result = pretrain(opened, progress)
        except UserError as error:
            note_failure(opened, error)
            raise
        if first:
            report = write_report(workdir)
    if "signal" in result:
        return 128 + result["signal"], result
    return (0, {**result, "workdir": str(workdir), "report": str(report)}) if first else (0, {})


@dataclasses.dataclass(frozen=True)
class Opened:
    """A run whose directory this process holds, its data and its parts; `facts` are commit and versions."""

    assembly: Assembly
    prepared: Prepared
    workdir: Path
    lock: RunLock
    events: EventLog | NullLog
    facts: dict[str, Any]


def start(chosen: Settings) -> None:
    """Lets the processes of a run find one another, before anything else touches a device."""
    if not jax.distributed.is_initialized():  # as it is from the second cell on that a process of several trains
        mesh.start_processes(chosen.parallel)
    set_up_training()


def open_run(
    stack: contextlib.ExitStack, chosen: Settings, workdir: Path, data_hash: str | None, progress: Progress
) -> Opened:
    """Opens a new or an older run of these settings, until `stack` is closed; arguments and errors as of `execute`."""
    record = checked_record(chosen, workdir)
    expected = (record or {}).get("provenance", {}).get("data_hash", data_hash)
    first = jax.process_index() == 0
    lock = stack.enter_context(RunLock(workdir))
    stack.enter_context(log_process_failures(workdir))
    events: EventLog | NullLog = stack.enter_context(EventLog(workdir)) if first else NullLog()
    progress.stage("opening the data")
    prepared = rundir.open_data(chosen, expected, progress.stage)
    facts: dict[str, Any] = {"commit": provenance.commit(), "versions": provenance.versions()}
    mesh.agree(
        {
            "settings": config.scientific_hash(chosen),
            "settings of execution": config.execution_hash(chosen),
            "commit": facts["commit"],
            "data": prepared.data_hash,
        }
    )
    # A mistake leaves no record to be held to.
    assembly = assemble(chosen, prepared.tokenizer.vocabulary)
    make_plan(prepared.train, chosen.data.packing, assembly.raw_length, chosen.data.num_tokens)
    if first:
        rundir.write_record(workdir, chosen, prepared, facts | rundir.origin(record))
    events.write("start", config_hash=config.scientific_hash(chosen), data_hash=prepared.data_hash, **facts)
    return Opened(assembly, prepared, workdir, lock, events, facts)


def note_failure(opened: Opened, error: UserError) -> None:
    """Writes down why a run failed."""
    with contextlib.suppress(UserError):  # a full disk must not hide it
        opened.events.write("failed", reason=str(error))
        if jax.process_index() == 0:
            write_report(opened.workdir)


def checked_record(chosen: Settings, workdir: Path) -> dict[str, Any] | None:
    """The record of the run that a directory holds; none in a new one.

    Raises:
      UserError: these settings may not go on there.
    """
    record = rundir.saved_record(workdir)
    if record is not None:
        if "imported_from" in record.get("provenance", {}):
            raise UserError(
                f"--workdir={workdir} holds an imported model, which has no optimizer's state to go on from: "
                "evaluate, generate and export take it; train in a new --workdir"
            )
        config.check_resume(config.from_record(record), chosen, rundir.reached(workdir))
    elif (workdir / "checkpoints").exists() or (workdir / METRICS).exists():
        raise UserError(f"{workdir} holds a run without its {rundir.CONFIG}: restore the file, or use a new --workdir")
    return record


def pretrain(opened: Opened, progress: Progress) -> dict[str, Any]:
    """Trains, evaluates, samples; writes and returns the summary."""
    outcome = loop.run(
        opened.assembly,
        opened.prepared,
        opened.workdir,
        evaluation(opened),
        opened.lock,
        opened.events,
        progress,
    )
    return conclude(opened, outcome, progress)


def evaluation(opened: Opened, sums: Sums | None = None) -> loop.Evaluate:
    """What measures the run's weights on held-out text, with a compiled part that others may share."""
    assembly = opened.assembly
    heldout, rows = measures.heldout_batches(assembly, opened.prepared), assembly.evaluation_batch
    return heldout_evaluation(assembly.model, assembly.objective, heldout, rows, assembly.mesh, sums)


def conclude(opened: Opened, outcome: loop.Outcome, progress: Progress) -> dict[str, Any]:
    """What follows training: baselines, samples, the summary; of an interrupted run only its step and signal."""
    assembly, prepared, workdir, events = opened.assembly, opened.prepared, opened.workdir, opened.events
    chosen = assembly.settings
    if outcome.signal is not None:
        events.write("interrupted", step=outcome.step, signal=outcome.signal)
        return {"step": outcome.step, "signal": outcome.signal}

    progress.stage("counting for the baselines")
    counted = measures.run_baselines(assembly, prepared, outcome.step)
    if jax.process_count() == 1:
        progress.stage("sampling")
        with jax.set_mesh(assembly.mesh):
            for sample in measures.samples(assembly, prepared, outcome.state.evaluated(chosen.optimizer)):
                events.write("sample", step=outcome.step, **sample)
    count, rows = assembly.count, read_metrics(workdir / METRICS) if jax.process_index() == 0 else []
    seen = outcome.step * chosen.train.batch_size * assembly.raw_length
    summary = {
        "step": outcome.step,
        "objective": assembly.objective.name,
        "train_loss": rows[-1]["loss"] if rows else None,
        **outcome.heldout,
        "baseline_bits_per_byte": counted.get("bigram_bits_per_byte"),
        "baseline_accuracy": counted.get("unigram_accuracy"),
        "baselines": counted,
        "tokens_seen": seen,
        "tokens_predicted": rows[-1].get("tokens_predicted") if rows else None,
        "model_flops": seen * count.model_flops,
        "required_flops": seen * count.required_flops,
        "tokens_per_second": statistics.median(row["tokens_per_second"] for row in rows) if rows else None,
        **(batch.summary(rows) if chosen.train.noise_scale and rows else {}),
        "parameters": count.parameters,
        "non_embedding_parameters": count.non_embedding_parameters,
        "flops_per_token": count.model_flops,
        "required_flops_per_token": count.required_flops,
        "config_hash": config.scientific_hash(chosen),
        "data_hash": prepared.data_hash,
        "seed": chosen.seed,
        "kernels": dict(assembly.kernels.names),
        **flags.record(assembly.mesh, chosen.parallel.kernels),
        **opened.facts,
    }
    if jax.process_index() == 0:
        write_summary(workdir, summary)
    events.write("finished", step=outcome.step)
    return summary


def show(shown: Console, summary: dict[str, Any], report: Path) -> None:
    """The end of a run, for a person."""
    for sample in [event for event in read_events(report.parent / "events.jsonl") if event["event"] == "sample"][-3:]:
        shown.print("\nsample", style="bold")
        shown.print(sample["prompt"], style="dim", end="", markup=False, soft_wrap=True)
        gap = "\n" if GAP in sample["prompt"] and not sample["text"].startswith("\n") else ""
        shown.print(gap + sample["text"], markup=False, soft_wrap=True)
    shown.print()
    measures.show_heldout(shown, summary, summary["step"])
    measures.show_baselines(shown, summary["baselines"])
    if told := batch.sentence(summary):
        shown.print(told, soft_wrap=True)
    shown.print(f"\nreport: {report}", soft_wrap=True)
    sys.stdout.flush()

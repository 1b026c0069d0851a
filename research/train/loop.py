"""The loop: batch, update, metrics one step late, evaluation, checkpoint. Read it from top to bottom."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from research.checkpoint import Checkpoints, RunLock
from research.data.loader import Loader
from research.data.prepare import Prepared
from research.parallel import arrays, flags
from research.settings import TrainSettings
from research.train import allocation
from research.train.assembly import Assembly
from research.train.interruption import Interruption
from research.train.metrics import EventLog, MetricsLog, NullLog, set_aside
from research.train.recorder import Display, Recorder, predicted_before, sentence
from research.train.state import TrainState, born_sharded, state_shapes
from research.train.step import make_step

Evaluate = Callable[[Any], dict[str, float | None]]
Note = Callable[[str, Mapping[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
      state: the last state.
      step: updates applied.
      heldout: figures of the last evaluation.
      signal: the signal that interrupted the run; none where it is complete.
    """

    state: TrainState
    step: int
    heldout: Mapping[str, float | None]
    signal: int | None


def run(
    assembly: Assembly,
    prepared: Prepared,
    workdir: Path,
    evaluate: Evaluate,
    lock: RunLock,
    events: EventLog | NullLog,
    display: Display,
) -> Outcome:
    """Trains to `train.num_steps` from the last good checkpoint of `workdir`, or from the beginning."""
    settings, mesh, train = assembly.settings, assembly.mesh, assembly.settings.train
    first_process = jax.process_index() == 0
    note = noting(events, display)

    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        interruption = stack.enter_context(Interruption())
        checkpoints = stack.enter_context(checkpoints_of(train, workdir, note))

        display.stage("making the initial state")
        shapes = state_shapes(settings, assembly.model, mesh, settings.parallel.preset)
        state = born_sharded(settings, assembly.model, shapes)
        if checkpoints.latest() is not None:
            display.stage("restoring the last checkpoint")
            kept, start = checkpoints.restore(shapes.kept())
            state = state.with_kept(kept)
            note("resume", {"step": start})
        start = int(state.step)
        if first_process and (aside := set_aside(workdir, start, train.num_steps, train.checkpoint_every)):
            note("set_aside", {"files": aside, "reason": f"the run goes on at update {start}"})
        rows = train.batch_size // train.accumulation
        held = arrays.local_rows(rows, mesh)
        loader = loader_of(assembly, prepared)
        ahead = settings.data.prefetch
        batches = stack.enter_context(contextlib.closing(loader.prefetch(start, train.num_steps, ahead)))
        log: MetricsLog | NullLog = NullLog()
        if first_process:
            log = stack.enter_context(MetricsLog(workdir, tensorboard=train.tensorboard, start_step=start))
        predicted = predicted_before(workdir, start) if first_process else 0
        recorder = Recorder(assembly, log, display, train.log_every, predicted)

        update: Any = jax.jit(make_step(settings, assembly.model, assembly.objective), donate_argnums=0)
        if start < train.num_steps:
            display.stage("compiling the update")
            example = arrays.to_global(loader.batch(start), rows, held, mesh)
            update, seconds = compiled(update, assembly, state, example)
            note("compiled", {"seconds": seconds, **dict(assembly.kernels.names)})
            events.write("chosen", **chosen(assembly))

        step, heldout = start, {}
        recorder.restart_clock()
        for done, batch in batches:
            with jax.transfer_guard("disallow"):  # nothing that waits for the device may slip into an update
                state, metrics = update(state, arrays.to_global(batch, rows, held, mesh))
                step = done + 1
                recorder.write_previous()
                recorder.keep(step, metrics)
            leaving = interruption.requested(step)
            last = step == train.num_steps
            evaluated = last or step % train.evaluate_every == 0
            saved = last or leaving or step % train.checkpoint_every == 0
            if evaluated or saved:
                recorder.write_previous()
            if evaluated:
                display.stage("evaluating")
                heldout = evaluate(state.evaluated(settings.optimizer))
                log.write_tensorboard(step, heldout)
                note("evaluate", {"step": step, **heldout})
            if saved:
                lock.check()
                checkpoints.save(step, state.kept(), heldout_loss=heldout["heldout_loss"] if evaluated else None)
            if evaluated or saved:
                recorder.restart_clock()
            if leaving:
                break
        checkpoints.wait()
        if not heldout and interruption.signal is None:
            heldout = evaluate(state.evaluated(settings.optimizer))
        complete = step == train.num_steps
        signal = None if complete else interruption.signal
        return Outcome(state, step, heldout, signal)


# --- what it is opened with; a population (`research/train/population.py`) is opened with the same --------------------


def noting(events: EventLog | NullLog, display: Display) -> Note:
    """What writes an event down and shows it."""

    def note(event: str, fields: Mapping[str, Any]) -> None:
        events.write(event, **fields)
        if event != "checkpoint":
            display.event(sentence(event, fields))

    return note


def checkpoints_of(train: TrainSettings, workdir: Path, note: Note) -> Checkpoints:
    """The checkpoints of a run directory."""
    return Checkpoints(
        workdir / "checkpoints",
        keep_last=train.keep_last,
        keep_every=train.keep_every,
        keep_best=train.keep_best,
        on_event=note,
    )


def loader_of(assembly: Assembly, prepared: Prepared) -> Loader:
    """The batches of a run, this host's rows."""
    settings, train = assembly.settings, assembly.settings.train
    return Loader(
        prepared.train,
        prepared.tokenizer.vocabulary,
        seed=settings.seed,
        batch_size=train.batch_size,
        accumulation=train.accumulation,
        raw_length=assembly.raw_length,
        packing=settings.data.packing,
        num_tokens=settings.data.num_tokens,
        corrupt=assembly.objective.corrupt,
        num_steps=train.num_steps,
        partners=assembly.objective.partners,
        rows=arrays.local_rows(train.batch_size // train.accumulation, assembly.mesh),
    )


def compiled(update: Any, assembly: Assembly, state: Any, example: Any) -> tuple[Any, float]:
    """A jitted update compiled for its arguments, as the platform is best served, and the seconds that it took."""
    mesh, kernels = assembly.mesh, assembly.settings.parallel.kernels
    began = time.perf_counter()
    options = flags.compiler_options(mesh, kernels)
    program = update.lower(state, example).compile(compiler_options=options or None)
    seconds = round(time.perf_counter() - began, 2)
    allocation.keep(mesh, kernels)
    return program, seconds


def chosen(assembly: Assembly) -> dict[str, Any]:
    """Why each kernel was chosen, and what the compiler was told."""
    kernels = assembly.settings.parallel.kernels
    return {"kernels": dict(assembly.kernels.reasons), **flags.record(assembly.mesh, kernels)}

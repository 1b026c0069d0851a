"""A few updates of a run under the profiler, after a warm-up."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from research.data.prepare import Prepared
from research.parallel import arrays
from research.train import loop, operations
from research.train.assembly import Assembly
from research.train.state import born_sharded, state_shapes
from research.train.step import make_step


@dataclasses.dataclass(frozen=True)
class Profile:
    """What was traced.

    Attributes:
      steps: traced updates.
      step_seconds: wall time of each, from the end of the one before.
      compile_seconds: tracing and compiling the update.
      rows: operations, the longest first.
    """

    steps: int
    step_seconds: list[float]
    compile_seconds: float
    rows: list[operations.Row]


def trace(
    assembly: Assembly, prepared: Prepared, steps: int, warmup: int, directory: Path, stage: Callable[[str], None]
) -> Profile:
    """Trains from fresh weights as a run does, its metrics read one step late, and traces the last `steps` updates.

    Nothing is kept but the trace, which is written below `directory`.
    """
    settings, mesh, train = assembly.settings, assembly.mesh, assembly.settings.train
    rows = train.batch_size // train.accumulation
    held = arrays.local_rows(rows, mesh)
    short = dataclasses.replace(settings, train=dataclasses.replace(train, num_steps=warmup + steps))
    loader = loop.loader_of(dataclasses.replace(assembly, settings=short), prepared)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # Python's own calls would be most of the trace
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        stage("making the initial state")
        shapes = state_shapes(settings, assembly.model, mesh, settings.parallel.preset)
        state: Any = born_sharded(settings, assembly.model, shapes)
        stage("compiling the update")
        update: Any = jax.jit(make_step(settings, assembly.model, assembly.objective), donate_argnums=0)
        example = arrays.to_global(loader.batch(0), rows, held, mesh)
        update, compile_seconds = loop.compiled(update, assembly, state, example)
        batches = stack.enter_context(
            contextlib.closing(loader.prefetch(0, warmup + steps, max(1, settings.data.prefetch)))
        )
        times: list[float] = []
        previous: Any = None
        tracing = contextlib.ExitStack()
        stage("warming up")
        with tracing:
            for done, batch in batches:
                if done == warmup:
                    jax.block_until_ready(state)
                    stage("tracing")
                    tracing.enter_context(jax.profiler.trace(directory, profiler_options=options))
                    times.append(time.perf_counter())
                with jax.profiler.StepTraceAnnotation("update", step_num=done):
                    state, metrics = update(state, arrays.to_global(batch, rows, held, mesh))
                    jax.device_get(previous)
                    previous = metrics
                if done > warmup:
                    times.append(time.perf_counter())
            jax.block_until_ready((state, jax.device_get(previous)))
            times.append(time.perf_counter())
    text = update.as_text()
    program = text.partition("HloModule ")[2].split(",", 1)[0].split()[0]
    found = operations.events(operations.read_trace(directory), program)
    step_seconds = [end - start for start, end in itertools.pairwise(times)]
    return Profile(steps, step_seconds, compile_seconds, operations.table(found, operations.instructions(text)))

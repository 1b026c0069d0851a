"""The loop over a population: runs of one program that differ in numbers and seeds, trained by one `vmap` over them.

Read `research/train/loop.py` first: this is the same loop with a leading dimension `member` on state, batch and
metrics. Each member has its own files, as if it ran alone, and ends alone: by a mistake in it, or because it is
withdrawn. Its place in the program is then computed on and thrown away.
"""

import contextlib
import dataclasses
import functools
import signal
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from research.checkpoint import RunLock
from research.data.loader import prefetched, stacked
from research.data.prepare import Prepared
from research.errors import UserError
from research.parallel import arrays
from research.train import loop
from research.train.assembly import Assembly
from research.train.interruption import Interruption
from research.train.loop import Evaluate, Outcome
from research.train.metrics import EventLog, MetricsLog, set_aside
from research.train.recorder import Display, Recorder, predicted_before
from research.train.state import TrainState, initial_state, numbers_of, state_shapes
from research.train.step import make_step


@dataclasses.dataclass(frozen=True)
class Member:
    """A run of a population, opened as a run alone is.

    Attributes:
      name: for people.
      assembly: of its settings; differs from the others' in traced numbers, seed and corruption alone.
      prepared: its data.
      workdir: its run directory.
      evaluate: its held-out evaluation.
      lock: of its directory.
      events: its log.
      withdrawn: asked after each update; once true, the member is saved and leaves the others.
    """

    name: str
    assembly: Assembly
    prepared: Prepared
    workdir: Path
    evaluate: Evaluate
    lock: RunLock
    events: EventLog
    withdrawn: Callable[[], bool] = lambda: False


def run(members: Sequence[Member], display: Display) -> list[Outcome | UserError]:
    """Trains all members to `train.num_steps` from the newest checkpoint that all of them have, or the beginning.

    Returns:
      How each member ended; the mistake that ended it, where one did.

    Raises:
      UserError: there is no such checkpoint, or it is damaged; each member can go on alone, nothing of it is changed.
    """
    assembly = members[0].assembly
    settings, mesh, train = assembly.settings, assembly.mesh, assembly.settings.train
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        interruption = stack.enter_context(Interruption())
        lanes = [_Lane(number, member, stack, display) for number, member in enumerate(members)]
        start = common_step([lane.checkpoints.steps() for lane in lanes])

        display.stage(f"making {len(lanes)} initial states")
        shapes = state_shapes(settings, assembly.model, mesh, settings.parallel.preset)
        state = born_together([member.assembly for member in members], shapes)
        take = member_of(shapes)
        if start:
            display.stage("restoring the last checkpoints")
            state = state.with_kept(together([lane.restored(shapes, start) for lane in lanes], shapes.kept()))
        for lane in lanes:
            lane.open(start)
        batch_of = stacked([loop.loader_of(member.assembly, member.prepared) for member in members])
        ahead = prefetched(batch_of, start, train.num_steps, settings.data.prefetch)
        batches = stack.enter_context(contextlib.closing(ahead))

        step_of = make_step(settings, assembly.model, assembly.objective)
        update: Any = jax.jit(jax.vmap(step_of), donate_argnums=0)
        if start < train.num_steps:
            display.stage(f"compiling the update of {len(lanes)} members")
            update, seconds = loop.compiled(update, assembly, state, placed(batch_of(start), mesh))
            for lane in lanes:
                lane.compiled(seconds, [other.member.name for other in lanes if other is not lane])

        step, previous = start, None
        for done, batch in batches:
            with jax.transfer_guard("disallow"):  # nothing that waits for the device may slip into an update
                state, metrics = update(state, placed(batch, mesh))
                step = done + 1
                _write(lanes, previous, display)
                previous = (step, metrics)
            leaving = interruption.requested(step)
            last = step == train.num_steps
            evaluated = last or step % train.evaluate_every == 0
            saved = last or leaving or step % train.checkpoint_every == 0
            withdrawn = [lane for lane in _running(lanes) if lane.member.withdrawn()]
            if evaluated or saved or withdrawn:
                _write(lanes, previous, display)
                previous = None
            if evaluated:
                display.stage("evaluating")
            for lane in _running(lanes if evaluated or saved else withdrawn):
                lane.measure(step, take(state, lane.number), evaluated=evaluated, saved=saved or lane in withdrawn)
            for lane in _running(withdrawn):
                lane.leave(step, take(state, lane.number), None if last else signal.SIGTERM)
            if evaluated or saved or withdrawn:
                for lane in _running(lanes):
                    lane.recorder.restart_clock()
            if leaving or not _running(lanes):
                break
        complete = step == train.num_steps
        for lane in _running(lanes):
            lane.leave(step, take(state, lane.number), None if complete else interruption.signal)
        return [lane.end for lane in lanes if lane.end is not None]


def common_step(steps: Sequence[Sequence[int]]) -> int:
    """The newest step that is among all members' checkpoints; 0 where nobody has any.

    Raises:
      UserError: some have checkpoints, and none of one step.
    """
    shared = set(steps[0]).intersection(*steps[1:])
    if not shared and any(steps):
        newest = ", ".join(str(max(own, default=0)) for own in steps)
        raise UserError(f"checkpoints of {newest} updates have none in common: let each run go on alone")
    return max(shared, default=0)


# --- stacked states ---------------------------------------------------------------------------------------------------


def born_together(assemblies: Sequence[Assembly], shapes: TrainState) -> TrainState:
    """The initial states of the members, `[member, ...]`: to the last bit what each has alone."""
    first = assemblies[0]
    numbers = [jax.device_get(numbers_of(assembly.settings)) for assembly in assemblies]
    born = jax.jit(
        jax.vmap(lambda own: initial_state(first.settings, first.model, own)), out_shardings=_stacked_places(shapes)
    )
    found: TrainState = born(jax.tree.map(lambda *own: np.stack(own), *numbers))
    return found


def together(trees: Sequence[Any], shapes: Any) -> Any:
    """Equal trees as one, `[member, ...]`, each device keeping the shards that it has."""
    stack = jax.jit(
        lambda *own: jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *own), out_shardings=_stacked_places(shapes)
    )
    return stack(*trees)


def member_of(shapes: TrainState) -> Callable[[TrainState, int], TrainState]:
    """A function that copies one member's state out of the stacked ones; compiled once for all members."""
    places = jax.tree.map(lambda shape: shape.sharding, shapes)

    def take(state: Any, number: Array) -> Any:
        return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, number, keepdims=False), state)

    jitted = jax.jit(take, out_shardings=places)
    return lambda state, number: jitted(state, np.int32(number))


def placed(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Array]:
    """Stacked batches `[member, accumulation, rows, ...]` on the mesh, rows over the axes that carry data."""
    if mesh.size == 1:
        return jax.device_put(dict(batch), mesh.devices.flat[0])
    spec = arrays.batch_sharding(mesh).spec
    return jax.device_put(dict(batch), NamedSharding(mesh, PartitionSpec(None, *spec)))


def _stacked_places(shapes: Any) -> Any:
    """The shardings of stacked leaves: no axis cuts the members."""

    def place(shape: jax.ShapeDtypeStruct) -> NamedSharding:
        assert isinstance(shape.sharding, NamedSharding), shape
        return NamedSharding(shape.sharding.mesh, PartitionSpec(None, *shape.sharding.spec))

    return jax.tree.map(place, shapes)


# --- one member -------------------------------------------------------------------------------------------------------


def _alone(action: Callable[..., None]) -> Callable[..., None]:
    """A step of a lane: a mistake in it ends the lane, and one that has ended takes no further step."""

    @functools.wraps(action)
    def guarded(lane: "_Lane", *args: Any, **options: Any) -> None:
        if not lane.running:
            return
        try:
            action(lane, *args, **options)
        except UserError as error:
            lane.end = error
            with contextlib.suppress(UserError):  # a save that is under way; why it fails is an event
                lane.checkpoints.wait()

    return guarded


class _Lane:
    """One member's files, and how it ended."""

    recorder: Recorder

    def __init__(self, number: int, member: Member, stack: contextlib.ExitStack, display: Display) -> None:
        self.number, self.member, self._stack = number, member, stack
        self.end: Outcome | UserError | None = None
        self.voice = _Voice(display, member.name)
        self._note = loop.noting(member.events, self.voice)
        self._heldout: Mapping[str, float | None] = {}
        self._settings = member.assembly.settings
        self.checkpoints = stack.enter_context(loop.checkpoints_of(self._settings.train, member.workdir, self._note))

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.end is None

    def restored(self, shapes: TrainState, step: int) -> Any:
        """What its checkpoint of a step holds."""
        return self.checkpoints.restore(shapes.kept(), step)[0]

    @_alone
    def open(self, start: int) -> None:
        """Goes on at a step: nothing stays of later ones."""
        workdir, assembly, train = self.member.workdir, self.member.assembly, self._settings.train
        if start:
            self._note("resume", {"step": start})
        if aside := set_aside(workdir, start, train.num_steps, train.checkpoint_every):
            self._note("set_aside", {"files": aside, "reason": f"the run goes on at update {start}"})
        self.checkpoints.go_back(start)
        self._log = self._stack.enter_context(MetricsLog(workdir, tensorboard=train.tensorboard, start_step=start))
        predicted = predicted_before(workdir, start)
        self.recorder = Recorder(assembly, self._log, self.voice, train.log_every, predicted)

    @_alone
    def compiled(self, seconds: float, others: Sequence[str]) -> None:
        """Writes down what was compiled, and with whom it trains."""
        assembly, events = self.member.assembly, self.member.events
        events.write("packed", members=len(others) + 1, others=list(others))
        events.write("compiled", seconds=seconds, **dict(assembly.kernels.names))
        events.write("chosen", **loop.chosen(assembly))

    @_alone
    def write(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
        """The row of an update."""
        self.recorder.keep(step, metrics)
        self.recorder.write_previous()

    @_alone
    def measure(self, step: int, state: TrainState, *, evaluated: bool, saved: bool) -> None:
        """Evaluation and checkpoint, where they are due."""
        if evaluated:
            self._heldout = self.member.evaluate(state.evaluated(self._settings.optimizer))
            self._log.write_tensorboard(step, self._heldout)
            self._note("evaluate", {"step": step, **self._heldout})
        if saved:
            self.member.lock.check()
            loss = self._heldout["heldout_loss"] if evaluated else None
            self.checkpoints.save(step, state.kept(), heldout_loss=loss)

    @_alone
    def leave(self, step: int, state: TrainState, number: int | None) -> None:
        """Ends it in good order: complete, or by the signal of a number."""
        self.checkpoints.wait()
        if not self._heldout and number is None:
            self._heldout = self.member.evaluate(state.evaluated(self._settings.optimizer))
        self.end = Outcome(state, step, self._heldout, number)


def _running(lanes: Sequence[_Lane]) -> list[_Lane]:
    return [lane for lane in lanes if lane.running]


class _Voice:
    """What a member says on the display of all: its events under its name."""

    def __init__(self, display: Display, name: str) -> None:
        self._display, self._name = display, name
        self.last: tuple[float, float, float | None] | None = None

    def stage(self, text: str) -> None:
        """Is said once for all."""

    def event(self, text: str) -> None:
        """Shows a line."""
        self._display.event(f"{self._name}: {text}")

    def update(self, step: int, loss: float, tokens_per_second: float, utilisation: float | None) -> None:
        """Is shown with the others'."""
        del step
        self.last = (loss, tokens_per_second, utilisation)


def _write(lanes: Sequence[_Lane], previous: tuple[int, Mapping[str, Array]] | None, display: Display) -> None:
    """Waits for an update and writes each member's row; shows the mean of their losses and the sum of their speeds."""
    if previous is None:
        return
    step, metrics = previous
    values = jax.device_get(metrics)
    for lane in lanes:
        lane.write(step, {name: value[lane.number, ...] for name, value in values.items()})
    said = [lane.voice.last for lane in _running(lanes) if lane.voice.last is not None]
    if said:
        losses, speeds, shares = zip(*said, strict=True)
        known = [share for share in shares if share is not None]
        display.update(step, statistics.fmean(losses), sum(speeds), sum(known) if known else None)

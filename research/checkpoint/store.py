"""The checkpoints of a run: saved asynchronously, committed atomically, verified, pruned."""

import contextlib
import shutil
import threading
from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from research import trees
from research.checkpoint.agreement import first_reason, from_first_process
from research.checkpoint.record import (
    COMMIT_FILE,
    RECORD,
    STATE,
    DamagedError,
    Record,
    committed_steps,
    make_record,
    read_record,
    step_directory,
    write_file_sizes,
)
from research.checkpoint.restore import absolute, candidates, damaged_step, log_event, rebuild, restore_verified
from research.errors import UserError

_MISSES = 3
# What a save that cannot write raises, from the file system, from TensorStore and from Orbax.
_SAVE_ERRORS = (OSError, ValueError, RuntimeError)


class Checkpoints:
    """The checkpoints of one run, for the one process (or one set of JAX processes) that writes them.

    Hold the `RunLock` of the run while this is open: opening removes what an interrupted save left. Whoever only reads
    takes `restore_parameters`. In a run of several processes every method is called by all of them, in the same order.

    A state is a tree of `jax.Array` with an integer scalar `step`; what is on disk does not depend on the types of its
    nodes or on the mesh. A step lies in `directory/00000500`; a damaged one is renamed to `directory/damaged-00000500`.

    Events (a kind and its fields) are given to `on_event`, `checkpoint` and `checkpoint_failed` from another thread:
      checkpoint: a step is complete on disk. `step, heldout_loss, bytes`
      checkpoint_failed: a step was not saved; the earlier ones are kept. `step, reason`
      checkpoint_damaged: a step was not what was saved. `step, reason, renamed`
      checkpoint_cleaned: remains of interrupted saves were removed. `names`
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        keep_last: int = 2,
        keep_every: int | None = None,
        keep_best: bool = True,
        on_event: Callable[[str, dict[str, Any]], None] = log_event,
    ) -> None:
        """Opens the directory, creates it where it is absent, and removes what interrupted saves left in it.

        Args:
          directory: local, or a bucket that `etils.epath` knows.
          keep_last: number of newest steps that are kept.
          keep_every: multiples of this are kept for ever.
          keep_best: whether the step with the lowest held-out loss is kept.
          on_event: receiver of events.

        Raises:
          UserError: the directory cannot be created or read.
        """
        self.directory = absolute(directory)
        self._keep_last, self._keep_every, self._keep_best = keep_last, keep_every, keep_best
        self._event = on_event
        self._guard = threading.Lock()
        self._pending: threading.Thread | None = None
        self._failure: str | None = None
        self._misses = 0
        problem = None
        if jax.process_index() == 0:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                self._clean()
            except OSError as error:
                problem = f"checkpoints cannot be kept in {self.directory} ({error.strerror or error})"
        problem = from_first_process(problem)
        if problem is not None:
            raise UserError(f"{problem}: choose another --workdir")
        listed = {step: self._heldout_loss(step) for step in committed_steps(self.directory)}
        self._committed = {int(step): loss for step, loss in from_first_process(list(listed.items()))}

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finishes the save that is under way; while an error is passing through, its failure is only an event."""
        if kind is None:
            self.wait()
        elif self._pending is not None:
            self._pending.join()

    # --- what there is ------------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """The committed steps, ascending."""
        with self._guard:
            return sorted(self._committed)

    def latest(self) -> int | None:
        """The newest committed step."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The committed step with the lowest held-out loss, the earlier of equals."""
        with self._guard:
            losses = [(loss, step) for step, loss in self._committed.items() if loss is not None]
        return min(losses)[1] if losses else None

    # --- saving -------------------------------------------------------------------------------------------------------

    def save(self, step: int, state: Any, *, heldout_loss: float | None = None) -> None:
        """Starts saving a state; when it returns, the state is copied to the host and may be donated.

        It waits for three things: the previous save, the computation of the state, and its copy to the host, which
        Orbax makes before it goes on in the background. The digests are computed on the devices, before that copy.

        A state with NaN or infinity is not saved. A step that is there already with the same values is left alone.

        Args:
          step: number of updates applied; equal to `state["step"]`.
          state: tree of `jax.Array`.
          heldout_loss: decides which step is the best.

        Raises:
          UserError: three saves in a row could not be written.
        """
        self.wait()
        leaves = trees.flatten(state)
        assert int(leaves["step"]) == step, f"state of step {int(leaves['step'])} saved as {step}"
        record, not_finite = make_record(step, leaves, heldout_loss)
        if not_finite:
            more = f" and {len(not_finite) - 1} more" if len(not_finite) > 1 else ""
            self._event("checkpoint_failed", {"step": step, "reason": f"{not_finite[0]}{more} holds NaN or infinity"})
            return
        if from_first_process(self._is_saved(record)):
            return
        if self._misses and jax.process_index() == 0:
            with contextlib.suppress(OSError):  # what a failed save went on writing while it was removed
                self._clean()
        size = sum(leaf.nbytes for leaf in leaves.values())
        problem = from_first_process(self._no_space(size))
        committed = None
        if problem is None:
            try:
                committed = self._start(record, leaves)
            except _SAVE_ERRORS as error:
                problem = _sentence(error)
            problem = first_reason(problem)
        if problem is not None or committed is None:
            self._missed(step, problem or "not started")
            self._give_up()
            return
        self._pending = threading.Thread(target=self._finish, args=(committed, record, size), name=f"checkpoint-{step}")
        self._pending.start()

    def wait(self) -> None:
        """Waits until the save that is under way is committed or has failed.

        Raises:
          UserError: three saves in a row could not be written.
        """
        if self._pending is None:
            return
        self._pending.join()
        self._pending = None
        failed = first_reason(self._failure)
        self._failure = None
        self._misses = self._misses + 1 if failed else 0
        self._give_up()

    def _start(self, record: Record, leaves: dict[str, jax.Array]) -> Callable[[], None]:
        """Starts the writing; what it returns waits for the commit, or raises why there is none."""
        context = ocp.Context()
        context.atomicity.mode = ocp.options.AtomicityMode.COMMIT_FILE
        registry = ocp.handlers.local_registry()
        context.checkpointables.registry = registry.add(ocp.handlers.JsonHandler, checkpointable_name=RECORD)
        path = step_directory(self.directory, record.step)
        with self._guard:
            self._committed.pop(record.step, None)
        with context:
            response = ocp.save_checkpointables_async(
                path, {STATE: trees.unflatten(leaves), RECORD: record.to_json()}, overwrite=True
            )
        return response.result

    def _finish(self, committed: Callable[[], None], record: Record, size: int) -> None:
        """In its own thread: waits for the commit, publishes, and removes what need not be kept."""
        self._failure = "the thread that writes it has ended"  # until it is known better, so that nothing passes unseen
        try:
            committed()
        except _SAVE_ERRORS as error:
            self._failure = _sentence(error)
            self._event("checkpoint_failed", {"step": record.step, "reason": self._failure})
            if jax.process_index() == 0:
                self._remove(record.step)
            return
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):  # without the note the digests still decide
                write_file_sizes(step_directory(self.directory, record.step))
        with self._guard:
            self._committed[record.step] = record.heldout_loss
        self._failure = None
        self._event("checkpoint", {"step": record.step, "heldout_loss": record.heldout_loss, "bytes": size})
        self._prune()

    def _missed(self, step: int, reason: str) -> None:
        self._misses += 1
        self._event("checkpoint_failed", {"step": step, "reason": reason})

    def _give_up(self) -> None:
        if self._misses >= _MISSES:
            raise UserError(
                f"{self._misses} checkpoints in a row could not be written to {self.directory}: make room there "
                f"or mend it, then run the same command again; it goes on from step {self.latest() or 0}"
            )

    def _is_saved(self, record: Record) -> bool:
        if record.step not in self.steps():
            return False
        with contextlib.suppress(DamagedError):
            saved = read_record(self.directory, record.step)
            return saved.leaves == record.leaves and record.heldout_loss in (None, saved.heldout_loss)
        return False

    def _no_space(self, size: int) -> str | None:
        """Why a state of this many bytes does not fit, where that can be known."""
        if "://" in str(self.directory):
            return None
        free = shutil.disk_usage(self.directory).free
        if free >= size:
            return None
        return f"{self.directory} has {free / 1e6:.0f} MB free, the checkpoint needs {size / 1e6:.0f} MB"

    # --- restoring ----------------------------------------------------------------------------------------------------

    def restore(self, target: Any, step: int | None = None) -> tuple[Any, int]:
        """A verified state with the shardings of `target`, and its step.

        Args:
          target: the state as `jax.ShapeDtypeStruct`, with the shardings that it shall have.
          step: by default the newest; a damaged one is renamed, reported, and the next older one is taken.

        Raises:
          UserError: no such checkpoint, a damaged one was asked for, none is undamaged, or it is of another model.
        """
        self.wait()
        targets = trees.flatten(target)
        for candidate in candidates(self.directory, step):
            try:
                leaves = restore_verified(self.directory, candidate, targets)
            except DamagedError as damage:
                if step is not None:
                    self._event("checkpoint_damaged", {"step": candidate, "reason": str(damage), "renamed": None})
                    raise damaged_step(self.directory, step, damage) from damage
                self._quarantine(candidate, damage)
            else:
                return rebuild(target, leaves.values()), candidate
        raise UserError(
            f"every checkpoint in {self.directory} was damaged and is now called damaged-*: "
            "copy an undamaged one there, or run the same command again to start anew"
        )

    def _quarantine(self, step: int, damage: DamagedError) -> None:
        name = None
        if jax.process_index() == 0:
            source = step_directory(self.directory, step)
            name, number = f"damaged-{source.name}", 1
            while (self.directory / name).exists():
                number += 1
                name = f"damaged-{source.name}-{number}"
            source.rename(self.directory / name)
        name = from_first_process(name)
        with self._guard:
            self._committed.pop(step, None)
        self._event("checkpoint_damaged", {"step": step, "reason": str(damage), "renamed": name})

    def go_back(self, step: int) -> None:
        """Removes the steps after one that the run goes on from: it will come to them again."""
        self.wait()
        for later in self.steps():
            if later > step:
                self._drop(later)

    # --- keeping ------------------------------------------------------------------------------------------------------

    def _heldout_loss(self, step: int) -> float | None:
        try:
            return read_record(self.directory, step).heldout_loss
        except DamagedError:  # said when it is restored
            return None

    def _kept(self) -> set[int]:
        steps = self.steps()
        kept = set(steps[-max(self._keep_last, 1) :])
        if self._keep_every:
            kept |= {step for step in steps if step % self._keep_every == 0}
        best = self.best()
        if self._keep_best and best is not None:
            kept.add(best)
        return kept

    def _prune(self) -> None:
        for step in set(self.steps()) - self._kept():
            self._drop(step)

    def _drop(self, step: int) -> None:
        with self._guard:
            del self._committed[step]
        if jax.process_index() == 0:
            self._remove(step)

    def _remove(self, step: int) -> None:
        """Removes a step, its commit mark first: an interrupted removal leaves nothing that counts as complete."""
        path = step_directory(self.directory, step)
        try:
            (path / COMMIT_FILE).unlink(missing_ok=True)
            if path.exists():
                path.rmtree()
        except OSError as error:
            reason = f"{path} could not be removed ({error.strerror or error})"
            self._event("checkpoint_failed", {"step": step, "reason": reason})

    def _clean(self) -> None:
        names = []
        for path in sorted(self.directory.iterdir(), key=lambda path: path.name):
            unfinished = path.name.isdigit() and not (path / COMMIT_FILE).exists()
            if path.is_dir() and (unfinished or ".orbax-checkpoint-tmp" in path.name):
                path.rmtree()
                names.append(path.name)
        if names:
            self._event("checkpoint_cleaned", {"names": names})


def _sentence(error: BaseException) -> str:
    """The first line of an error, short."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]

"""A worker: one process that takes free cells one after the other, and shares imports, data and compiled programs."""

import contextlib
import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import jax

from research.checkpoint.agreement import from_first_process
from research.config import scientific_hash
from research.errors import UserError
from research.sweeps import branching, foretelling, population, retention
from research.sweeps.folder import Folder
from research.sweeps.ledger import CANCELLED, DONE, FAILED, PENDING, RUNNING, Ledger
from research.sweeps.sweep import Cell
from research.train.metrics import METRICS, SUMMARY, read_metrics

# Trains a cell in a directory from data of a hash; gives exit status and summary, or the signal that interrupted it.
Train = Callable[[Cell, Path, str], tuple[int, dict[str, Any]]]
# Trains cells together, each in a directory from data of a hash until it is withdrawn; gives the same, or its mistake.
Together = Callable[
    [Sequence[tuple[Cell, Path, str, Callable[[], bool]]]], list[tuple[int, dict[str, Any]] | UserError]
]
Tell = Callable[[str], None]
Begun = tuple[Cell, int]  # a claimed cell and its updates so far
WATCHED_EVERY = 1.0  # seconds
RETRIES = 1


class StoppedError(BaseException):
    """SIGTERM or Ctrl-C outside of the training loop, which notes them by itself."""


class Worker:
    """Runs cells until none is free.

    In a run of several processes, all of them are one worker: the first chooses, and a cell that fails ends it.
    """

    def __init__(
        self,
        folder: Folder,
        train: Train,
        *,
        cells: Sequence[Cell] | None = None,
        retries: int = RETRIES,
        job: str = "",
        tell: Tell = lambda line: None,
        pack: int = 1,
        together: Together | None = None,
    ) -> None:
        """Takes cells of a folder.

        Args:
          folder: of the sweep.
          train: trains one cell.
          cells: that may be taken; none: all.
          retries: how often a cell is tried again that failed for another reason than a mistake in it.
          job: its name, for the record.
          tell: gets a line for people.
          pack: most cells that `together` trains at a time, where they can and where it pays.
          together: trains several.
        """
        self._folder, self._train, self._tell = folder, train, tell
        self._cells = list(folder.cells if cells is None else cells)
        self._retries, self._job = retries, job
        self._pack, self._together = (pack if together is not None else 1), together
        self._ledger = Ledger(folder.directory)
        self._trained: set[str] = set()
        self._verdicts: dict[Any, population.Verdict] = {}
        self._stopped: int | None = None
        self._cancelled = False
        self._heard = -1  # where the numbers of signals can be read

    def run(self) -> int:
        """Takes cells until none is free or a signal asks it to leave; the exit status: 0, or 128 + the signal."""
        with self._listening():
            try:
                while self._stopped is None and self._next():
                    pass
            except StoppedError:
                pass
        return 0 if self._stopped is None else 128 + self._stopped

    # --- choosing -----------------------------------------------------------------------------------------------------

    def _next(self) -> bool:
        """Runs a cell, or waits for what one depends on; false where there is nothing to wait for."""
        with contextlib.ExitStack() as claim:
            chosen = from_first_process(self._choose(claim) if jax.process_index() == 0 else None)
            if chosen:
                begun = [(self._folder.cell(name), reached) for name, reached in chosen]
                for cell, reached in begun if len(begun) == 1 else self._run_together(begun):
                    self._run(cell, reached)
                return True
        if not from_first_process(self._waits()):
            return False
        time.sleep(WATCHED_EVERY)
        return True

    def _choose(self, claim: contextlib.ExitStack) -> list[tuple[str, int]]:
        """Claims a cell, or a pack of them, and opens an attempt at each; their ids, and their updates so far."""
        for cell in self._order():
            alone = self._pack == 1 or not self._free(cell) or self._dies(cell)
            if (reached := self._begin(claim, cell)) is not None:
                return [(cell.id, reached), *([] if alone else self._company(claim, cell))]
        return []

    def _begin(self, claim: contextlib.ExitStack, cell: Cell) -> int | None:
        """Claims a cell that is free and opens an attempt at it; its updates so far, none where another was faster."""
        with contextlib.ExitStack() as own:
            if not self._free(cell) or not own.enter_context(self._ledger.claimed(cell.id)):
                return None
            reached = updates(self._folder.run(cell.id))
            if not self._ledger.begin(cell.id, reached, self._job):
                return None
            claim.enter_context(own.pop_all())
            return reached

    def _company(self, claim: contextlib.ExitStack, first: Cell) -> list[tuple[str, int]]:
        """Claims the cells that are to train with a claimed one: as many as pay and are free; it waits for none."""
        if not population.packable(self._folder, first):
            return []
        free = [cell for cell in self._order() if self._free(cell) and not self._dies(cell)]
        like = population.partners(self._folder, first, free)
        most = min(self._pack, 1 + len(like))
        if most == 1:
            return []
        key = population.program_of(first.settings), most
        if key not in self._verdicts:
            plan = self._folder.fact(first.id)["plan"]
            self._verdicts[key] = population.verdict(first.settings, plan, most)
            self._tell(f"packs of {self._verdicts[key].count}: {self._verdicts[key].reason}")
        verdict = self._verdicts[key]
        taken: list[tuple[str, int]] = []
        for cell in like:
            if len(taken) + 1 < verdict.count and (reached := self._begin(claim, cell)) is not None:
                taken.append((cell.id, reached))
        return taken

    def _dies(self, cell: Cell) -> bool:
        """Its process died before its first update: with others, memory may not have sufficed."""
        return self._ledger.died_at_once(cell.id, updates(self._folder.run(cell.id)))

    def _order(self) -> list[Cell]:
        """Those whose programs are compiled in this process first, then in the order of the sweep."""
        return sorted(self._cells, key=lambda cell: shape_of(cell) not in self._trained)

    def _free(self, cell: Cell) -> bool:
        state = self._ledger.seen(cell.id)["state"]
        if state != PENDING or not foretelling.may_begin(self._folder, self._ledger, cell):
            return False
        if cell.after is None:
            return True
        trunk = self._ledger.seen(cell.after)["state"]
        if trunk in (FAILED, CANCELLED):
            self._ledger.block(cell.id, f"its trunk, the cell {cell.after}, is {trunk}")
        return bool(trunk == DONE)

    def _waits(self) -> bool:
        """Whether a cell that is still to be run will be free once another has run."""
        states = {cell.id: self._ledger.seen(cell.id)["state"] for cell in self._folder.cells}
        pending = [cell for cell in self._cells if states[cell.id] == PENDING]
        fitted = [states[cell.id] for cell in self._folder.cells if not cell.held_out]
        return any(cell.after is not None and states[cell.after] in (PENDING, RUNNING) for cell in pending) or (
            any(cell.held_out for cell in pending) and RUNNING in fitted
        )

    # --- running ------------------------------------------------------------------------------------------------------

    def _run(self, cell: Cell, reached: int) -> None:
        self._tell(f"cell {cell.id} ({cell.name})" + (f" goes on from update {reached}" if reached else ""))
        run, first = self._folder.run(cell.id), jax.process_index() == 0
        end: dict[str, Any] = {}
        try:
            if self._stopped is not None:  # while others of its pack ran
                raise StoppedError
            if first:
                branching.prepare(self._folder, cell)
            if not finished(run, cell):
                with self._watching(cell):
                    _, result = self._train(cell, run, self._folder.fact(cell.id)["data_hash"])
                if "signal" in result:
                    end = {"status": "interrupted", "reason": f"signal {result['signal']}"}
                    self._leave(result["signal"])
            end = end or self._complete(cell)
        except UserError as error:
            end = {"status": "failed", "reason": str(error)}
        except StoppedError:
            end = {"status": "interrupted", "reason": f"signal {self._stopped}"}
            self._leave(self._stopped or signal.SIGTERM)
        except Exception as error:  # noqa: BLE001 - a defect that one cell meets must not cost the others; it is recorded
            traceback.print_exc()
            again = self._ledger.failures(cell.id) < self._retries
            end = {"status": "failed", "reason": one_line(error), "again": again}
        if end["status"] == "failed" and jax.process_count() > 1:  # the processes may be out of step
            self._stopped = signal.SIGABRT
        self._end(cell, end)
        for number in self._signals():  # one that came when the loop was at its end already
            self._stopped = number

    def _run_together(self, begun: Sequence[Begun]) -> list[Begun]:
        """Trains claimed cells in one program; those that have to run alone, all or none of them."""
        assert self._together is not None
        names = ", ".join(f"{cell.id} ({cell.name})" for cell, _ in begun)
        self._tell(f"{len(begun)} cells train together: {names}")
        open_ = [cell for cell, _ in begun if not finished(self._folder.run(cell.id), cell)]
        for cell, _ in begun:
            self._ledger.pack(cell.id, len(begun))
        ends: list[Any] = []
        withdrawn: set[str] = set()
        try:
            with self._withdrawing(open_) as withdrawn:
                ends = self._together([self._asked(cell, withdrawn) for cell in open_]) if open_ else []
        except StoppedError:
            ends = [(0, {"signal": self._stopped})] * len(open_)
        except Exception as error:  # noqa: BLE001 - what they cannot do together, each may do alone
            if not isinstance(error, UserError):
                traceback.print_exc()
            self._tell(f"each trains alone: {error if isinstance(error, UserError) else one_line(error)}")
            for cell, _ in begun:
                self._ledger.pack(cell.id, 1)
            return list(begun)
        found = dict(zip((cell.id for cell in open_), ends, strict=True))
        for cell, _ in begun:
            self._end(cell, self._judged(cell, found.get(cell.id), withdrawn))
        for number in self._signals():
            self._stopped = number
        return []

    def _asked(self, cell: Cell, withdrawn: set[str]) -> tuple[Cell, Path, str, Callable[[], bool]]:
        data_hash = self._folder.fact(cell.id)["data_hash"]
        return cell, self._folder.run(cell.id), data_hash, lambda: cell.id in withdrawn

    def _judged(self, cell: Cell, end: Any, withdrawn: set[str]) -> dict[str, Any]:
        """What became of a cell of a pack."""
        if isinstance(end, UserError):
            return {"status": "failed", "reason": str(end)}
        if end is None or "signal" not in end[1]:
            return self._complete(cell)
        if cell.id not in withdrawn:
            self._stopped = end[1]["signal"]
        return {"status": "interrupted", "reason": f"signal {end[1]['signal']}"}

    def _complete(self, cell: Cell) -> dict[str, Any]:
        self._trained.add(shape_of(cell))
        if jax.process_index() == 0:
            trunk = branching.is_trunk(self._folder, cell)
            retention.prune(self._folder.run(cell.id), self._folder.content["keep"], trunk=trunk)
        return {"status": "done", "reason": None}

    def _end(self, cell: Cell, end: dict[str, Any]) -> None:
        if end["status"] == "failed":
            self._tell(f"cell {cell.id} failed: {end['reason']}")
        if jax.process_index() == 0:
            self._ledger.end(cell.id, reached=updates(self._folder.run(cell.id)), **end)

    def _leave(self, number: int) -> None:
        """Notes that the worker is to leave, unless it was the cell alone that was cancelled."""
        self._stopped = None if from_first_process(self._cancelled) else number

    # --- signals ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
            yield  # JAX listens by itself
            return
        self._heard, told = os.pipe()
        for end in (self._heard, told):
            os.set_blocking(end, False)
        before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        woken = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(woken)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(self._heard)
            os.close(told)

    def _signals(self) -> list[int]:
        """What has asked this process to leave during the cell, but for the cell's own cancellation."""
        try:
            numbers = list(os.read(self._heard, 4096)) if self._heard >= 0 else []
        except BlockingIOError:
            numbers = []
        asked = [number for number in numbers if number in (signal.SIGTERM, signal.SIGINT)]
        if self._cancelled and signal.SIGTERM in asked:
            asked.remove(signal.SIGTERM)
        self._cancelled = False
        return asked

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._stopped = number
        raise StoppedError

    @contextlib.contextmanager
    def _watching(self, cell: Cell) -> Iterator[None]:
        """Leaves the cell, as after SIGTERM, once it is cancelled."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(WATCHED_EVERY):
                with contextlib.suppress(UserError, OSError):
                    if self._ledger.read(cell.id)["state"] == CANCELLED:
                        self._cancelled = True
                        os.kill(os.getpid(), signal.SIGTERM)
                        return

        thread = threading.Thread(target=watch, name=f"watch-{cell.id}", daemon=True)
        if jax.process_index() == 0:
            thread.start()
        try:
            yield
        finally:
            ended.set()

    @contextlib.contextmanager
    def _withdrawing(self, cells: Sequence[Cell]) -> Iterator[set[str]]:
        """The ids of the cells that are cancelled while it is open: each leaves its pack, and the others go on."""
        ended, withdrawn = threading.Event(), set[str]()

        def watch() -> None:
            while not ended.wait(WATCHED_EVERY):
                for cell in cells:
                    with contextlib.suppress(UserError, OSError):
                        if self._ledger.read(cell.id)["state"] == CANCELLED:
                            withdrawn.add(cell.id)

        threading.Thread(target=watch, name="watch-pack", daemon=True).start()
        try:
            yield withdrawn
        finally:
            ended.set()


def updates(run: Path) -> int:
    """Updates that a run has written down."""
    path = run / METRICS
    with contextlib.suppress(UserError):
        return max((int(row["step"]) for row in read_metrics(path)), default=0) if path.exists() else 0
    return 0


def finished(run: Path, cell: Cell) -> bool:
    """Whether the run of a cell is complete: it was killed before that was noted."""
    try:
        summary = json.loads((run / SUMMARY).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    same = summary.get("config_hash") == scientific_hash(cell.settings)
    return bool(same and summary.get("step") == cell.settings.train.num_steps)


def shape_of(cell: Cell) -> str:
    """What decides the programs of a cell, as far as it is worth keeping cells of one shape together."""
    settings = cell.settings
    return repr((settings.model, settings.objective, settings.data.sequence_length, settings.train.batch_size))


def one_line(error: BaseException) -> str:
    """Type and message of an error, short."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]

"""Contestants in processes of their own that take turns: who is measured has the machine to itself."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.shapes import Shape

ROOT = Path(__file__).parents[1]
SECONDS_PER_ROUND = 4.0
GEMM_REPETITIONS = 4

Tell = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Contestant:
    """Who takes part.

    Attributes:
      name: that is shown.
      request: what `benchmarks.contestants` is asked for, `python` by whom.
      guest: the race goes on without it where it cannot start.
    """

    name: str
    request: Mapping[str, Any]
    guest: bool = False


@dataclasses.dataclass
class Record:
    """What was measured of one contestant.

    Attributes:
      start: seconds of initial state, first step and one further step, and what the contestant says of itself.
      rounds: one dictionary a round: `seconds`, `cpu_seconds`, `peak_bytes`, `loss` (or `flops` of the products).
    """

    start: dict[str, Any]
    rounds: list[dict[str, Any]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Race:
    """One shape's measurements.

    Attributes:
      shape: what was trained.
      steps: updates a round.
      limits: FLOP/s of large products in each round.
      records: of the contestants, by name.
      cached: what Isoflop says of its start where its programs come from a cache that an earlier start filled.
      missing: a line for each guest that could not start.
    """

    shape: Shape
    steps: int
    limits: list[float]
    records: MappingProxyType[str, Record]
    cached: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    missing: tuple[str, ...] = ()


class ContestantError(Exception):
    """A contestant ended early; its own message stands on standard error."""


class Process:
    """A contestant's process and the pipes to it."""

    def __init__(self, name: str, request: Mapping[str, Any], cache: Path | None = None) -> None:
        """`cache` holds compiled programs; without one none comes from a cache, so that first steps can be compared."""
        self.name = name
        command = [request.get("python", sys.executable), "-m", "benchmarks.contestants", json.dumps(request)]
        own = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
        if cache is not None:
            own = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | own
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )

    def answer(self) -> dict[str, Any]:
        """The next line of the contestant."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ContestantError(f"the contestant {self.name} ended with status {self._process.wait()}")
        return json.loads(line)

    def round(self, steps: int) -> dict[str, Any]:
        """Lets the contestant make some steps."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `answer` says it better
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """Ends the contestant by ending its input."""
        self._process.communicate()


@contextlib.contextmanager
def _started(
    contestant: Contestant, shape: Shape, cache: Path | None = None, **more: Any
) -> Iterator[tuple[Process, dict[str, Any]]]:
    request = {**contestant.request, "shape": dataclasses.asdict(shape), **more}
    process = Process(contestant.name, request, cache)
    try:
        yield process, process.answer()
    finally:
        process.close()


def start_from_cache(contestant: Contestant, shape: Shape, tell: Tell) -> dict[str, Any]:
    """Starts a contestant twice with one cache of compiled programs; gives what the second start says of itself."""
    with tempfile.TemporaryDirectory(prefix="isoflop-benchmark-") as name:
        for text in ("filling the cache of compiled programs", "starting from the cache"):
            tell(text)
            with _started(contestant, shape, cache=Path(name)) as (_, start):
                pass
    return start


def race(shape: Shape, contestants: list[Contestant], rounds: int, steps: int | None, tell: Tell) -> Race:
    """Starts the contestants one after the other, then lets them take turns, every other round in reverse order.

    Args:
      shape: what all of them train.
      contestants: who takes part.
      rounds: turns of each.
      steps: updates a turn; none: as many as the first contestant makes in about four seconds.
      tell: is told in a few words what is being done.
    """
    records: dict[str, Record] = {}
    limits: list[float] = []
    missing: list[str] = []
    with contextlib.ExitStack() as stack:
        tell("starting the matrix products")
        gemm, _ = stack.enter_context(_started(Contestant("gemm", {"name": "gemm"}), shape))
        processes: dict[str, Process] = {}
        for contestant in contestants:
            tell(f"compiling {contestant.name}")
            try:
                process, start = stack.enter_context(_started(contestant, shape, steps=steps))
            except ContestantError as error:
                if not contestant.guest:
                    raise
                missing.append(f"{contestant.name} is left out: {error}, as it says above")
                continue
            steps = steps or max(1, round(SECONDS_PER_ROUND / start["step_seconds"]))
            processes[contestant.name], records[contestant.name] = process, Record(start)
        assert steps is not None
        for number in range(rounds):
            tell(f"round {number + 1} of {rounds}")
            limits.append(gemm.round(GEMM_REPETITIONS)["flops"])
            for name in list(processes)[:: -1 if number % 2 else 1]:
                records[name].rounds.append(processes[name].round(steps))
        tell("ending")
    return Race(shape, steps, limits, MappingProxyType(records), missing=tuple(missing))

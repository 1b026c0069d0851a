"""A contestant's end of the pipes: it makes ready, and then takes its turns."""

import itertools
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.shapes import Shape

NUM_BATCHES = 8


class Gate:
    """The contestant's end of the pipes; whatever else is printed goes to standard error."""

    def __init__(self) -> None:
        self._replies = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.facts: dict[str, Any] = {}

    def tell(self, **facts: Any) -> None:
        """One line for the other end."""
        print(json.dumps(facts), file=self._replies, flush=True)

    def rounds(self) -> Iterator[int]:
        """The number of steps of each round; a round ends where the next is asked for."""
        for line in iter(sys.stdin.readline, ""):
            wall, cpu = time.perf_counter(), time.process_time()
            yield int(line)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            self.tell(seconds=wall, cpu_seconds=cpu, peak_bytes=peak_bytes(), **self.facts)

    def take_turns(
        self, update: Callable[[int], None], finish: Callable[[], float], init_seconds: float, **facts: Any
    ) -> None:
        """Makes the first step, then one more that shows how long a step takes, then the rounds.

        Args:
          update: starts the update of a number.
          finish: waits for the last update and gives its loss.
          init_seconds: how long the initial state took.
          facts: told with the times.
        """
        times = [time.perf_counter()]
        for number in range(2):
            update(number)
            finish()
            times.append(time.perf_counter())
        first, second = (end - start for start, end in itertools.pairwise(times))
        self.tell(init_seconds=init_seconds, first_step_seconds=first, step_seconds=second, **facts)
        done = 2
        for steps in self.rounds():
            for number in range(done, done + steps):
                update(number)
            done += steps
            self.facts["loss"] = finish()


def peak_bytes() -> int:
    """The most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def random_batches(shape: Shape) -> list[np.ndarray]:
    """Tokens int32 `[batch, sequence + 1]`; special ids are left out."""
    draw = np.random.default_rng(0)
    size = (shape.batch, shape.sequence + 1)
    return [draw.integers(5, shape.vocabulary, size, dtype=np.int32) for _ in range(NUM_BATCHES)]

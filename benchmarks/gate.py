"""A contestant's end of the pipes: it makes ready, and then takes its turns."""

import itertools
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from benchmarks.shapes import Shape

NUM_BATCHES = 8
MASK, FIRST_ORDINARY = 4, 5  # ids
MASK_RATE = 0.15


class Batch(NamedTuple):
    """One update's rows, the same for every contestant.

    Attributes:
      tokens: what is read at each place, int32 `[batch, seq]` (of the decoder, where there is an encoder).
      targets: what is to be predicted there.
      weights: 1 where it is asked for, float32.
      encoder: what the encoder reads, int32 `[batch, sequence]`.
    """

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    encoder: np.ndarray | None = None


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
        times, first_loss = [time.perf_counter()], 0.0
        for number in range(2):
            update(number)
            loss = finish()
            first_loss = loss if number == 0 else first_loss
            times.append(time.perf_counter())
        first, second = (end - start for start, end in itertools.pairwise(times))
        self.tell(
            init_seconds=init_seconds, first_step_seconds=first, step_seconds=second, first_loss=first_loss, **facts
        )
        done = 2
        for steps in self.rounds():
            for number in range(done, done + steps):
                update(number)
            done += steps
            self.facts["loss"] = finish()


def peak_bytes() -> int:
    """The most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def random_batches(shape: Shape) -> list[Batch]:
    """Random ordinary tokens as the shape's objective asks for them; nothing is packed or padded."""
    draw = np.random.default_rng(0)

    def tokens(length: int) -> np.ndarray:
        return draw.integers(FIRST_ORDINARY, shape.vocabulary, (shape.batch, length), dtype=np.int32)

    def one() -> Batch:
        if shape.with_encoder:
            encoder, whole = tokens(shape.sequence), tokens(shape.decoder + 1)
            return Batch(whole[:, :-1], whole[:, 1:], np.ones((shape.batch, shape.decoder), np.float32), encoder)
        if shape.asks == "causal":
            whole = tokens(shape.sequence + 1)
            return Batch(whole[:, :-1], whole[:, 1:], np.ones((shape.batch, shape.sequence), np.float32))
        whole, chosen = tokens(shape.sequence), draw.random((shape.batch, shape.sequence)).argsort(axis=1)
        hidden = chosen < round(MASK_RATE * shape.sequence)
        return Batch(np.where(hidden, np.int32(MASK), whole), whole, hidden.astype(np.float32))

    return [one() for _ in range(NUM_BATCHES)]

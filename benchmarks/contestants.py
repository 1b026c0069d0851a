"""What takes part, each in a process of its own: `python -m benchmarks.contestants '{"name": ..., "shape": {...}}'`.

A contestant makes ready (initial state, first step), says so, and then answers every line with a number of steps on its
standard input by that many steps and a line of JSON: wall and CPU seconds, peak memory, loss. Between two lines it does
nothing, so that contestants can take turns on the same cores. Each imports what it needs itself and no more.
"""

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
GEMM_SIZE = 2048


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


def run_bare(gate: Gate, shape: Shape) -> None:
    """The hand-written step; its loss stays on the device until the round ends."""
    import jax
    import jax.numpy as jnp

    from benchmarks import bare

    batches, began = random_batches(shape), time.perf_counter()
    rule = bare.optimizer()
    params = jax.jit(bare.init, static_argnums=1)(jax.random.key(0), shape)
    moments, step = jax.jit(rule.init)(params), bare.make_step(shape, rule)
    state = jax.block_until_ready((params, moments, jnp.zeros(())))

    def update(number: int) -> None:
        nonlocal state
        tokens = batches[number % NUM_BATCHES]
        state = step(state[0], state[1], tokens[:, :-1], tokens[:, 1:])

    gate.take_turns(update, lambda: float(jax.block_until_ready(state)[2]), time.perf_counter() - began)


def run_gemm(gate: Gate) -> None:
    """The machine's limit: the fastest of a few large float32 products, by XLA and by NumPy's BLAS."""
    import jax
    import jax.numpy as jnp

    draw = np.random.default_rng(0)
    left, right = (draw.standard_normal((GEMM_SIZE, GEMM_SIZE), dtype=np.float32) for _ in range(2))
    placed, product = (jnp.asarray(left), jnp.asarray(right)), jax.jit(jnp.matmul)
    ways: list[Callable[[], Any]] = [lambda: product(*placed).block_until_ready(), lambda: left @ right]
    for way in ways:
        way()
    gate.tell()
    for repetitions in gate.rounds():
        times = []
        for way in ways * repetitions:
            began = time.perf_counter()
            way()
            times.append(time.perf_counter() - began)
        gate.facts["flops"] = 2 * GEMM_SIZE**3 / min(times)


def main() -> None:
    """Runs the contestant that the argument describes."""
    asked = json.loads(sys.argv[1])
    gate, shape = Gate(), Shape(**asked["shape"])
    if asked["name"] == "gemm":
        run_gemm(gate)
    elif asked["name"] == "bare":
        run_bare(gate, shape)
    elif asked["name"] == "isoflop":
        from benchmarks.isoflop import run_step

        run_step(gate, shape, asked["kernels"])
    else:
        assert asked["name"] == "loop", asked
        from benchmarks.training_loop import run_loop

        run_loop(gate, shape, asked["kernels"], asked["steps"])


if __name__ == "__main__":
    main()

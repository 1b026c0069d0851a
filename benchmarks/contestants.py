"""What takes part, each in a process of its own: `python -m benchmarks.contestants '{"name": ..., "shape": {...}}'`.

A contestant makes ready (initial state, first step), says so, and then answers every line with a number of steps on its
standard input by that many steps and a line of JSON: wall and CPU seconds, peak memory, loss. Between two lines it does
nothing, so that contestants can take turns on the same cores. Each imports what it needs itself and no more.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gate import NUM_BATCHES, Gate, random_batches
from benchmarks.shapes import Shape

GEMM_SIZE = 2048


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
        batch = batches[number % NUM_BATCHES]
        state = step(state[0], state[1], batch.tokens, batch.targets)

    gate.take_turns(
        update,
        lambda: float(jax.block_until_ready(state)[2]),
        time.perf_counter() - began,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state[0])),
    )


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
    elif asked["name"] == "loop":
        from benchmarks.training_loop import run_loop

        run_loop(gate, shape, asked["kernels"], asked["steps"])
    else:
        peer = importlib.import_module(f"benchmarks.peers.{asked['name']}")
        peer.run(gate, shape, asked["checkout"], compiled=asked.get("compiled", False))


if __name__ == "__main__":
    main()

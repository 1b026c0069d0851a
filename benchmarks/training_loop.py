"""The whole training loop as a contestant: loader, prefetch, metrics.jsonl, TensorBoard."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from benchmarks.gate import Gate
from benchmarks.isoflop import assembly_of, vocabulary_of
from benchmarks.shapes import Shape
from research.checkpoint import RunLock
from research.data.prepare import Prepared
from research.data.shards import ShardReader, ShardWriter, token_dtype
from research.data.tokenizer import Tokenizer
from research.train import allocation, loop
from research.train.metrics import NullLog
from research.vocabulary import Vocabulary

CORPUS_BATCHES = 100


class EnoughError(Exception):
    """Leaves the training loop."""


class Silence:
    """A display that shows nothing."""

    def stage(self, text: str) -> None:
        """Shows nothing."""

    def event(self, text: str) -> None:
        """Shows nothing."""

    def update(self, step: int, loss: float, tokens_per_second: float, utilisation: float | None) -> None:
        """Shows nothing."""


@dataclasses.dataclass(frozen=True)
class RandomTokenizer:
    """Stands for the tokenizer of random tokens, of which the loop asks for the vocabulary alone."""

    vocabulary: Vocabulary


def run_loop(gate: Gate, shape: Shape, kernels: str, steps: int) -> None:
    """Trains on random tokens.

    The loop evaluates every `steps` updates, having waited for them: that is where it is stopped and let go on.
    """
    allocation.one_step_at_a_time()
    assembly = assembly_of(shape, kernels, steps)
    turns: Iterator[int] | None = None

    def evaluate(params: Any) -> dict[str, float | None]:
        nonlocal turns
        jax.block_until_ready(params)
        if turns is None:
            gate.tell(kernels=dict(assembly.kernels.names))
            turns = gate.rounds()
        if next(turns, None) is None:
            raise EnoughError
        return {"heldout_loss": 0.0}

    with tempfile.TemporaryDirectory(prefix="isoflop-benchmark-") as name:
        prepared, run = random_corpus(Path(name), shape), Path(name) / "run"
        with contextlib.suppress(EnoughError), RunLock(run) as lock:
            loop.run(assembly, prepared, run, evaluate, lock, NullLog(), Silence())


def random_corpus(directory: Path, shape: Shape) -> Prepared:
    """A prepared corpus of random tokens; its documents are as long as a sequence."""
    draw, entries = np.random.default_rng(0), {}
    for split, number in (("train", CORPUS_BATCHES * shape.batch), ("heldout", 1)):
        documents = draw.integers(5, shape.vocabulary, (number, shape.sequence), dtype=np.int32)
        documents[:, -1] = vocabulary_of(shape).eos
        writer = ShardWriter(directory, split, token_dtype(shape.vocabulary))
        writer.write(list(documents), np.full(number, 4 * shape.sequence))
        entries[split] = writer.close()
    readers = [ShardReader(directory, split, entry) for split, entry in entries.items()]
    tokenizer = cast(Tokenizer, RandomTokenizer(vocabulary_of(shape)))
    return Prepared(directory, {}, tokenizer, "random", *readers)

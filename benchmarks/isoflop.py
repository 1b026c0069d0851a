"""Isoflop's training step as a contestant."""

import time
from typing import Any

import jax
import numpy as np

from benchmarks import bare
from benchmarks.gate import NUM_BATCHES, Gate, random_batches
from benchmarks.shapes import Shape
from research.parallel import arrays
from research.settings import (
    DataSettings,
    ModelSettings,
    OptimizerSettings,
    ParallelSettings,
    Settings,
    TokenizerSettings,
    TrainSettings,
)
from research.train.assembly import Assembly, assemble
from research.train.state import born_sharded, state_shapes
from research.train.step import make_step
from research.vocabulary import Vocabulary

FOREVER = 1_000_000  # updates that no benchmark reaches


def settings_of(shape: Shape, kernels: str = "auto", evaluate_every: int = FOREVER) -> Settings:
    """The architecture and the update of the bare step in Isoflop's words."""
    return Settings(
        data=DataSettings(sequence_length=shape.sequence),
        tokenizer=TokenizerSettings(vocab_size=shape.vocabulary),
        model=ModelSettings(
            num_layers=shape.layers,
            embed_dim=shape.embed,
            num_heads=shape.heads,
            mlp_dim=shape.mlp,
            activation="gelu",
            norm="layernorm",
            norm_position="pre",
            norm_epsilon=bare.EPSILON,
            position="learned",
            use_bias=False,
            tied_embeddings=True,
        ),
        optimizer=OptimizerSettings(
            learning_rate=1e-3, schedule="constant", warmup_steps=0, beta1=0.9, beta2=0.95, weight_decay=0.1
        ),
        parallel=ParallelSettings(kernels=kernels),
        train=TrainSettings(
            num_steps=FOREVER, batch_size=shape.batch, checkpoint_every=FOREVER, evaluate_every=evaluate_every
        ),
    )


def assembly_of(shape: Shape, kernels: str = "auto", evaluate_every: int = FOREVER) -> Assembly:
    """The parts of Isoflop's run on one device."""
    return assemble(settings_of(shape, kernels, evaluate_every), vocabulary_of(shape), devices=jax.devices()[:1])


def vocabulary_of(shape: Shape) -> Vocabulary:
    """The ids of a vocabulary of the shape's size."""
    return Vocabulary(size=shape.vocabulary, pad=0, unknown=1, bos=2, eos=3, mask=4)


def batch_of(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """The causal batch of tokens `[batch, sequence + 1]`, one document a row, as one micro-batch."""
    places = np.broadcast_to(np.arange(tokens.shape[1] - 1, dtype=np.int32), tokens[:, 1:].shape)
    batch = {
        "tokens": tokens[:, :-1],
        "segment_ids": np.ones_like(places),
        "positions": places,
        "targets": tokens[:, 1:],
        "weights": np.ones(places.shape, np.float32),
    }
    return {name: np.ascontiguousarray(array)[None] for name, array in batch.items()}


def run_step(gate: Gate, shape: Shape, kernels: str) -> None:
    """The jitted update with clipping and all metrics, each step's read when the next one has been started."""
    batches, began = [batch_of(tokens) for tokens in random_batches(shape)], time.perf_counter()
    assembly = assembly_of(shape, kernels)
    settings, model, mesh = assembly.settings, assembly.model, assembly.mesh
    with jax.set_mesh(mesh):
        state = born_sharded(settings, model, state_shapes(settings, model, mesh, settings.parallel.preset))
        jax.block_until_ready(state)
        step = jax.jit(make_step(settings, model, assembly.objective), donate_argnums=0)
        rows = np.arange(shape.batch)
        previous: Any = None

        def update(number: int) -> None:
            nonlocal state, previous
            batch = arrays.to_global(batches[number % NUM_BATCHES], shape.batch, rows, mesh)
            state, metrics = step(state, batch)
            if previous is not None:
                jax.device_get(previous)
            previous = metrics

        def finish() -> float:
            nonlocal previous
            values, previous = jax.device_get(previous), None
            jax.block_until_ready(state)
            return float(values["loss"])

        count = assembly.count
        gate.take_turns(
            update,
            finish,
            time.perf_counter() - began,
            model_flops=count.model_flops,
            parameters=count.parameters,
            kernels=dict(assembly.kernels.names),
        )

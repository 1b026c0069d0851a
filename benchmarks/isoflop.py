"""Isoflop's training step as a contestant."""

import time
from typing import Any

import jax
import numpy as np

from benchmarks import bare
from benchmarks.gate import MASK, MASK_RATE, NUM_BATCHES, Batch, Gate, random_batches
from benchmarks.shapes import Shape
from research.models import flops
from research.parallel import arrays
from research.settings import (
    DataSettings,
    ModelSettings,
    ObjectiveSettings,
    OptimizerSettings,
    ParallelSettings,
    Settings,
    TokenizerSettings,
    TrainSettings,
)
from research.settings.families import FAMILIES
from research.train import allocation
from research.train.assembly import Assembly, assemble
from research.train.state import born_sharded, state_shapes
from research.train.step import make_step
from research.vocabulary import Vocabulary

FOREVER = 1_000_000  # updates that no benchmark reaches

# The bare step's architecture, which is nanoGPT's; the others are the published families.
GPT = {
    "activation": "gelu",
    "norm": "layernorm",
    "norm_epsilon": bare.EPSILON,
    "position": "learned",
    "use_bias": False,
    "tied_embeddings": True,
}
PRESETS: dict[str, dict[str, Any]] = {
    "gpt": GPT,
    "llama": FAMILIES["llama"],
    "bert": FAMILIES["bert"],
    "t5": FAMILIES["t5_v1_1"],
}


def settings_of(shape: Shape, kernels: str = "auto", evaluate_every: int = FOREVER) -> Settings:
    """The architecture and the update of the race in Isoflop's words."""
    return Settings(
        data=DataSettings(sequence_length=shape.sequence),
        tokenizer=TokenizerSettings(vocab_size=shape.vocabulary),
        model=ModelSettings(
            num_layers=shape.layers,
            embed_dim=shape.embed,
            num_heads=shape.heads,
            mlp_dim=shape.mlp,
            **PRESETS[shape.family],
        ),
        objective=ObjectiveSettings(name=shape.asks, mask_rate=MASK_RATE),
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
    return Vocabulary(size=shape.vocabulary, pad=0, unknown=1, bos=2, eos=3, mask=MASK)


def count_of(shape: Shape, assembly: Assembly) -> flops.Count:
    """Parameters, and operations a token of the race: attention and head in full."""
    positions, memory = (shape.decoder, shape.sequence) if shape.with_encoder else (shape.sequence, 0)
    work = flops.Work(positions, assembly.objective.pattern, encoder_positions=memory)
    return flops.count(assembly.model, work).per(shape.tokens // shape.batch)


def batch_of(batch: Batch) -> dict[str, np.ndarray]:
    """The same rows in Isoflop's schema, one document a row, as one micro-batch."""

    def read(tokens: np.ndarray, prefix: str) -> dict[str, np.ndarray]:
        places = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
        names = {"tokens": tokens, "segment_ids": np.ones_like(tokens), "positions": places}
        return {prefix + name: array for name, array in names.items()}

    made = read(batch.tokens, "") | {"targets": batch.targets, "weights": batch.weights}
    if batch.encoder is not None:
        made |= read(batch.encoder, "encoder_")
    return {name: np.ascontiguousarray(array)[None] for name, array in made.items()}


def run_step(gate: Gate, shape: Shape, kernels: str) -> None:
    """The jitted update with clipping and all metrics, each step's read when the next one has been started."""
    batches, began = [batch_of(batch) for batch in random_batches(shape)], time.perf_counter()
    allocation.one_step_at_a_time()
    assembly = assembly_of(shape, kernels)
    settings, model, mesh = assembly.settings, assembly.model, assembly.mesh
    with jax.set_mesh(mesh):
        state = born_sharded(settings, model, state_shapes(settings, model, mesh, settings.parallel.preset))
        jax.block_until_ready(state)
        step = jax.jit(make_step(settings, model, assembly.objective), donate_argnums=0)
        rows = np.arange(shape.batch)
        compiled: Any = None
        previous: Any = None

        def update(number: int) -> None:
            nonlocal compiled, state, previous
            batch = arrays.to_global(batches[number % NUM_BATCHES], shape.batch, rows, mesh)
            if compiled is None:
                compiled = step.lower(state, batch).compile()
                allocation.keep(mesh, kernels)
            state, metrics = compiled(state, batch)
            if previous is not None:
                jax.device_get(previous)
            previous = metrics

        def finish() -> float:
            nonlocal previous
            values, previous = jax.device_get(previous), None
            jax.block_until_ready(state)
            return float(values["loss"])

        count = count_of(shape, assembly)
        gate.take_turns(
            update,
            finish,
            time.perf_counter() - began,
            model_flops=count.model_flops,
            parameters=count.parameters,
            kernels=dict(assembly.kernels.names),
        )

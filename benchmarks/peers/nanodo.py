"""nanodo: its model, its optimizer and its Trainer's step with the metrics that it takes in every step.

What only its data pipeline and its writers need (TensorFlow Datasets, clu) may be absent: empty modules stand there.
"""

import importlib.util
import sys
import time
import types
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from benchmarks.gate import NUM_BATCHES, Gate, random_batches
from benchmarks.shapes import Shape

UNUSED = {"tensorflow_datasets": (), "clu": ("metric_writers", "periodic_actions")}


def settings(shape: Shape) -> ml_collections.ConfigDict:
    """Its config: what its default says, at the race's shape, in float32, with the race's AdamW."""
    model = {
        "D": shape.embed,
        "H": shape.heads,
        "L": shape.sequence,
        "N": shape.layers,
        "F": shape.mlp,
        "dtype": "float32",
        "fsdp_enabled": False,
        "remat": False,
    }
    optimizer = {
        "num_train_steps": 1_000_000,
        "peak_learning_rate": 1e-3,
        "init_learning_rate": 1e-3,
        "final_learning_rate": 1e-3,
        "warmup_steps": 0,
        "decay_type": "constant_without_warmup",
        "b1": 0.9,
        "b2": 0.95,
        "weight_decay": 0.1,
        "optimizer": "adamw",
    }
    return ml_collections.ConfigDict({"model": model, "opt": optimizer, "log_internal_metrics": False})


def run(gate: Gate, shape: Shape, checkout: str, compiled: bool = False) -> None:
    """Takes the turns."""
    del compiled  # it always is
    sys.path.insert(0, checkout)
    for name, attributes in UNUSED.items():
        if importlib.util.find_spec(name) is None:
            empty = types.ModuleType(name)
            for attribute in attributes:
                setattr(empty, attribute, types.ModuleType(f"{name}.{attribute}"))
            sys.modules[name] = empty
    from nanodo import model_factory
    from nanodo import train as nanodo_train

    began = time.perf_counter()
    config = settings(shape)
    mesh = Mesh(np.asarray(jax.devices()[:1]), ("data",))
    model, loss = model_factory.get_model_and_loss(config, shape.vocabulary)
    shardings, state = nanodo_train._init_train_state(config, model, rng=jax.random.PRNGKey(0), mesh=mesh)
    trainer = nanodo_train.Trainer(c=config, state=state, mesh=mesh, shardings=shardings, get_loss_fn=loss)
    jax.block_until_ready(trainer.state)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(trainer.state.params))
    batches = random_batches(shape)
    metrics: Any = {}

    def update(number: int) -> None:
        nonlocal metrics
        previous, metrics = metrics, trainer.do_step(number, batches[number % NUM_BATCHES].tokens)
        jax.device_get(previous)  # one step late, as its loop reads them

    gate.take_turns(
        update,
        lambda: float(jax.device_get(metrics)["train_loss"]),
        time.perf_counter() - began,
        parameters=parameters,
        versions={name: importlib.import_module(name).__version__ for name in ("jax", "flax")},
    )

"""MaxText: its model, optimizer and jitted train step as its `train_loop` sets them up, on one device in float32.

As a GPT it is its GPT-3 block (LayerNorm with biases, learned positions, one product for queries, keys and values, a
tied head), else its Llama-2 block; layers scanned, as by default, and nothing rematerialised, which is fastest.
"""

import importlib.metadata
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gate import NUM_BATCHES, Batch, Gate, random_batches
from benchmarks.shapes import Shape

GPT = {
    "decoder_block": "gpt3",
    "mlp_activations": "['gelu']",
    "logits_via_embedding": True,
    "normalize_embedding_logits": False,
    "fused_qkv": True,
    "normalization_layer_epsilon": 1e-5,
}
LLAMA = {"decoder_block": "llama2", "mlp_activations": "['silu','linear']", "logits_via_embedding": False}


def settings(shape: Shape) -> dict[str, Any]:
    """Its keys that differ from its base.yml."""
    own = LLAMA if shape.family == "llama" else GPT | {"trainable_position_size": shape.sequence}
    return own | {
        "run_name": "benchmark",
        "base_output_directory": "/tmp",
        "enable_checkpointing": False,
        "log_config": False,
        "dataset_type": "synthetic",
        "hardware": "cpu",
        "skip_jax_distributed_system": True,
        "attention": "dot_product",
        "base_emb_dim": shape.embed,
        "base_num_query_heads": shape.heads,
        "base_num_kv_heads": shape.heads,
        "head_dim": shape.embed // shape.heads,
        "base_mlp_dim": shape.mlp,
        "base_num_decoder_layers": shape.layers,
        "vocab_size": shape.vocabulary,
        "max_target_length": shape.sequence,
        "per_device_batch_size": shape.batch,
        "dtype": "float32",
        "weight_dtype": "float32",
        "enable_dropout": False,
        "remat_policy": "none",
        "opt_type": "adamw",
        "learning_rate": 1e-3,
        "adam_b1": 0.9,
        "adam_b2": 0.95,
        "adam_weight_decay": 0.1,
        "gradient_clipping_threshold": 1.0,
        "steps": 1_000_000,
        "warmup_steps_fraction": 0.0,
    }


def rows(batch: Batch) -> dict[str, np.ndarray]:
    """The batch by its names."""
    places = np.ascontiguousarray(np.broadcast_to(np.arange(batch.tokens.shape[1], dtype=np.int32), batch.tokens.shape))
    found: dict[str, np.ndarray] = {}
    for name, tokens in (("inputs", batch.tokens), ("targets", batch.targets)):
        found |= {name: tokens, f"{name}_position": places, f"{name}_segmentation": np.ones_like(tokens)}
    return found


def run(gate: Gate, shape: Shape, checkout: str, compiled: bool = False) -> None:
    """Takes the turns."""
    del compiled  # it always is
    sys.path[:0] = [checkout, f"{checkout}/src"]
    import jax
    import maxtext
    from flax import nnx
    from flax.core.spmd import logical_axis_rules
    from maxtext.trainers.pre_train import train
    from maxtext.utils import sharding, train_utils

    began = time.perf_counter()
    base = Path(maxtext.__path__[0]) / "configs" / "base.yml"
    config, recorder = train.initialize(["", str(base), *(f"{key}={value}" for key, value in settings(shape).items())])
    parts = train_utils.setup_train_loop(config, recorder)
    shardings, mesh, state = parts[2], parts[4], parts[-1]
    graph, state = nnx.split(state)
    weights, shardings = sharding.maybe_update_params_sharding_with_opt(config, shardings)
    step, _ = train_utils.jit_train_and_eval_step(
        config, graph, mesh, state, shardings, train.train_step, train.eval_step, None, weights
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.split(state.model, nnx.Param, ...)[1]))
    batches = [rows(batch) for batch in random_batches(shape)]
    metrics: Any = {}

    def update(number: int) -> None:
        nonlocal state, metrics
        previous = metrics
        with jax.set_mesh(mesh), logical_axis_rules(config.logical_axis_rules):
            state, metrics = step(state, batches[number % NUM_BATCHES])
        jax.device_get(previous)

    gate.take_turns(
        update,
        lambda: float(jax.device_get(metrics)["scalar"]["learning/loss"]),
        time.perf_counter() - began,
        parameters=parameters,
        versions={name: importlib.metadata.version(name) for name in ("maxtext", "jax", "flax")},
    )

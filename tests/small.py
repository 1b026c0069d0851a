"""Small settings, models and batches that laws are tested on, and what several suites ask of values."""

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research import config
from research.kernels import Kernels
from research.kernels.choice import CPU
from research.models import Transformer
from research.settings import ModelSettings, Settings
from research.vocabulary import Vocabulary

VOCABULARY = Vocabulary(size=320, pad=0, unknown=1, bos=2, eos=3, mask=4)

SETTINGS: dict[str, Any] = {
    "tokenizer.vocab_size": VOCABULARY.size,
    "data.sequence_length": 16,
    "model.num_layers": 2,
    "model.embed_dim": 32,
    "model.num_heads": 8,
    "model.mlp_dim": 64,
    "train.batch_size": 16,
    "train.num_steps": 20,
    "optimizer.learning_rate": 3e-3,
}

# Every value of every choice, each beside several others.
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {"num_kv_heads": 2, "tied_embeddings": False},
    "gpt": {"norm": "layernorm", "position": "learned", "activation": "gelu", "use_bias": True},
    "bert": {
        "norm": "layernorm",
        "norm_position": "post",
        "position": "learned",
        "activation": "gelu",
        "use_bias": True,
        "tied_embeddings": False,
    },
    "post-rms": {"norm_position": "post", "activation": "gelu", "num_kv_heads": 1},
    "no-positions": {"position": "none", "use_bias": True, "head_dim": 6},
    "post-gated": {"norm": "layernorm", "norm_position": "post", "position": "none", "num_kv_heads": 2},
}

VOCAB, LENGTH = 40, 12


def settings(changes: Mapping[str, Any] | None = None) -> Settings:
    """The small settings with dotted keys changed."""
    return config.from_nested({**SETTINGS, **(changes or {})})


def model(variant: str = "llama", kernels: Kernels = CPU, **changes: Any) -> Transformer:
    """A model of two layers; what is not a field of the model's settings is one of `Transformer`."""
    own = {field.name for field in dataclasses.fields(ModelSettings)}
    shape: dict[str, Any] = {"num_layers": 2, "embed_dim": 16, "num_heads": 4, "mlp_dim": 24, **VARIANTS[variant]}
    shape |= {name: value for name, value in changes.items() if name in own}
    fields = {name: value for name, value in changes.items() if name not in own}
    return Transformer(ModelSettings(**shape), vocab_size=VOCAB, max_positions=LENGTH, kernels=kernels, **fields)


@cache
def weights(made: Transformer, seed: int = 0) -> Any:
    """Initial weights plus noise, so that no bias is zero and no scale is one."""
    params = jax.jit(made.init)(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [leaf + 0.2 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


def inputs(tokens: Any, segment_ids: Any = None, positions: Any = None) -> dict[str, jax.Array]:
    """Model inputs; by default one document a row."""
    tokens = jnp.asarray(tokens, jnp.int32)
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    return {
        "tokens": tokens,
        "segment_ids": jnp.ones_like(tokens) if segment_ids is None else jnp.asarray(segment_ids, jnp.int32),
        "positions": places if positions is None else jnp.asarray(positions, jnp.int32),
    }


def random_batch(of: Settings, step: int, *, drop: float = 0.3) -> dict[str, np.ndarray]:
    """Random tokens `[accumulation, rows, seq]`: two documents and padding in each row, and a share without a target."""
    rng = np.random.default_rng(step)
    parts = of.train.accumulation
    rows, length = of.train.batch_size, of.data.sequence_length
    cut, end = rng.integers(1, length // 2, (rows, 1)), rng.integers(length // 2, length + 1, (rows, 1))
    places = np.arange(length)[None]
    segment_ids = np.where(places < end, 1 + (places >= cut), 0).astype(np.int32)
    positions = np.where(segment_ids == 2, places - cut, np.where(segment_ids == 1, places, 0)).astype(np.int32)
    kept = (segment_ids > 0) & (rng.random((rows, length)) >= drop)
    batch = {
        "tokens": rng.integers(5, of.tokenizer.vocab_size, (rows, length), dtype=np.int32),
        "segment_ids": segment_ids,
        "positions": positions,
        "targets": rng.integers(5, of.tokenizer.vocab_size, (rows, length), dtype=np.int32),
        "weights": kept.astype(np.float32),
    }
    return {name: array.reshape(parts, rows // parts, length) for name, array in batch.items()}


def assert_close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Every leaf within `tolerance`, relative to the leaf's largest value or to one, whichever is larger."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for path, (a, b) in zip_leaves(found, expected):
        assert a.shape == b.shape, path
        scale = max(1.0, float(np.max(np.abs(b), initial=0.0)))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=path)


def assert_same_bits(found: Any, expected: Any) -> None:
    """Every leaf equal to the last bit."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for path, (a, b) in zip_leaves(found, expected):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        assert a.tobytes() == b.tobytes(), path


def zip_leaves(left: Any, right: Any) -> list[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """`(path, (left leaf, right leaf))` as NumPy arrays; bfloat16 keeps its bits."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True)
    return [(jax.tree_util.keystr(path), (np.asarray(a), np.asarray(b))) for (path, a), b in pairs]


def assert_one_sentence(message: str, *mentioned: str) -> None:
    """What a user is told: one line that names the keys."""
    assert "\n" not in message and len(message) < 400, message
    for name in mentioned:
        assert name in message, message

"""Small settings, models and batches that laws are tested on, and what several suites ask of values."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research import config, trees
from research.doctor.subject import quick_options
from research.kernels import Kernels
from research.kernels.choice import CPU
from research.models import Model, build
from research.models.build import ARCHITECTURES
from research.parallel import arrays
from research.settings import ModelSettings, Settings
from research.settings.families import FAMILIES
from research.train.assembly import Assembly, assemble
from research.train.state import TrainState, initial_state, state_shapes
from research.train.step import make_step
from research.vocabulary import Vocabulary

# `jax.jit` for programs that run once on small arrays: compiling takes nearly all of their time, and most of it goes
# into making them fast.
jit = functools.partial(jax.jit, compiler_options=quick_options("cpu"))

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
    "post-rms": {"norm_position": "post", "activation": "gelu", "num_kv_heads": 1, "qk_norm": True},
    "no-positions": {"position": "none", "use_bias": True, "head_dim": 6, "qk_norm": True},
    "post-gated": {"norm": "layernorm", "norm_position": "post", "position": "none", "num_kv_heads": 2},
}

VOCAB, LENGTH = 160, 12


def settings(changes: Mapping[str, Any] | None = None) -> Settings:
    """The small settings with dotted keys changed."""
    return config.from_nested({**SETTINGS, **(changes or {})})


def model(variant: str = "llama", kernels: Kernels = CPU, **changes: Any) -> Model:
    """A model of two layers, of a variant or a family; what is no field of the model's settings is one of `Model`."""
    own = {field.name for field in dataclasses.fields(ModelSettings)}
    shape: dict[str, Any] = {"num_layers": 2, "embed_dim": 16, "num_heads": 4, "mlp_dim": 24}
    shape |= VARIANTS[variant] if variant in VARIANTS else family(variant)
    shape |= {name: value for name, value in changes.items() if name in own}
    fields = {"max_positions": changes.get("max_positions", LENGTH)}
    fields |= {name: value for name, value in changes.items() if name not in own}
    of = ModelSettings(**shape)
    return ARCHITECTURES[of.architecture](of, vocab_size=VOCAB, kernels=kernels, **fields)


def family(name: str) -> dict[str, Any]:
    """The preset of a family, its window small and its layers two periods and a half."""
    preset = dict(FAMILIES[name])
    if "attention_window" in preset:
        preset["attention_window"] = 3
    period = len(preset.get("attention_period", "g"))
    return preset | ({"num_layers": 2 * period + 1} if period > 1 else {})


@functools.cache
def weights(made: Model, seed: int = 0) -> Any:
    """Random weights: no bias is zero, no scale is one, no residual branch is small."""
    rng = np.random.default_rng(seed)
    leaves = {
        path: jnp.asarray(parameter.mean + max(parameter.std, 0.2) * rng.normal(size=parameter.shape), jnp.float32)
        for path, parameter in made.parameters().items()
    }
    return trees.unflatten(leaves)


def inputs(tokens: Any, segment_ids: Any = None, positions: Any = None) -> dict[str, jax.Array]:
    """Model inputs; by default one document a row."""
    tokens = jnp.asarray(tokens, jnp.int32)
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    return {
        "tokens": tokens,
        "segment_ids": jnp.ones_like(tokens) if segment_ids is None else jnp.asarray(segment_ids, jnp.int32),
        "positions": places if positions is None else jnp.asarray(positions, jnp.int32),
    }


def random_batch(of: Settings, step: int, *, drop: float = 0.3, most: int = 10**9) -> dict[str, np.ndarray]:
    """Random tokens `[accumulation, rows, seq]`: two documents and padding in each row, `most` targets at most."""
    rng = np.random.default_rng(step)
    parts = of.train.accumulation
    rows, length = of.train.batch_size, of.data.sequence_length
    cut, end = rng.integers(1, length // 2, (rows, 1)), rng.integers(length // 2, length + 1, (rows, 1))
    places = np.arange(length)[None]
    segment_ids = np.where(places < end, 1 + (places >= cut), 0).astype(np.int32)
    positions = np.where(segment_ids == 2, places - cut, np.where(segment_ids == 1, places, 0)).astype(np.int32)
    kept = (segment_ids > 0) & (rng.random((rows, length)) >= drop)
    kept &= np.cumsum(kept, axis=1) <= most
    batch = {
        "tokens": rng.integers(5, of.tokenizer.vocab_size, (rows, length), dtype=np.int32),
        "segment_ids": segment_ids,
        "positions": positions,
        "targets": rng.integers(5, of.tokenizer.vocab_size, (rows, length), dtype=np.int32),
        "weights": kept.astype(np.float32),
    }
    return {name: array.reshape(parts, rows // parts, length) for name, array in batch.items()}


@functools.cache
def _trainer(changes: tuple[tuple[str, Any], ...], devices: int) -> tuple[Assembly, Any]:
    of = settings(dict(changes))
    assembly = assemble(of, VOCABULARY, devices=jax.devices()[:devices])
    return assembly, jit(make_step(of, assembly.model, assembly.objective), donate_argnums=0)


@functools.cache
def _initial(changes: tuple[tuple[str, Any], ...]) -> Any:
    of = settings(dict(changes))
    return jax.device_get(jit(lambda: initial_state(of, build(of, CPU)))())


def trainer(changes: Mapping[str, Any], devices: int = 1) -> tuple[Assembly, Any]:
    """What is assembled from the small settings with changes, and its compiled update, which takes its state away."""
    return _trainer(tuple(changes.items()), devices)


def state(assembly: Assembly, **fields: Any) -> TrainState:
    """The initial state on the assembly's mesh, with fields of `hyper`, and `seed`, changed."""
    shaping = {f"optimizer.{name}" for name in ("name", "schedule", "momentum", "state_dtype", "groups", "ema_decay")}
    rooms = ("model.", "objective.")
    scientific = (name for name in config.KEYS if name.startswith(rooms) or name == "seed" or name in shaping)
    made: TrainState = _initial(tuple((name, assembly.settings[name]) for name in scientific))
    places = state_shapes(assembly.settings, assembly.model, assembly.mesh, assembly.settings.parallel.preset)
    seed = np.asarray(fields.pop("seed", made.seed), np.uint32)
    typed = {name: np.asarray(value, getattr(made.hyper, name).dtype) for name, value in fields.items()}
    made = made._replace(hyper=made.hyper._replace(**typed), seed=seed)
    return jax.device_put(made, jax.tree.map(lambda shape: shape.sharding, places))


def train(
    changes: Mapping[str, Any], *, devices: int = 1, steps: int = 20, batches: Any = random_batch, **fields: Any
) -> tuple[Any, list[dict[str, np.ndarray]]]:
    """The state after updates from batches of random tokens, and the metrics of each update, on the host."""
    assembly, update = trainer(changes, devices)
    now, found = state(assembly, **fields), []
    with jax.set_mesh(assembly.mesh):
        for step in range(steps):
            now, metrics = update(now, placed(assembly, batches(assembly.settings, step)))
            found.append(jax.device_get(metrics))
    return jax.device_get(now), found


def placed(assembly: Assembly, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """A batch on the assembly's mesh."""
    rows = assembly.settings.train.batch_size // assembly.settings.train.accumulation
    return arrays.to_global(batch, rows, arrays.local_rows(rows, assembly.mesh), assembly.mesh)


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

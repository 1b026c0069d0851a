"""What is examined: a model with random weights, a batch of made-up documents, and the programs that run them."""

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from research import trees
from research.data.draws import Draws
from research.data.loader import Loader
from research.data.windows import Windows, make_plan
from research.doctor import synthetic
from research.doctor.findings import SAME
from research.doctor.reduction import changed
from research.kernels import Kernels
from research.models import Model
from research.objectives import Objective, raw_length
from research.parallel import arrays
from research.settings import AXES, OptimizerSettings, Settings
from research.train.assembly import Assembly, assemble
from research.train.state import TrainState, state_of, state_shapes
from research.train.step import make_step

NUM_WINDOWS = 32
NO_CLIPPING = 1e30
INPUTS = ("segment_ids", "positions", "types", "prefix", "encoder_segment_ids", "encoder_positions")

Batch = Mapping[str, np.ndarray]


class Traces(NamedTuple):
    """What one pass tells of who sees whom.

    Attributes:
      hidden: hidden states, float32.
      norms: for each seed, the largest gradient at the embedding of each place; those of an encoder follow the others.
      gradient: of the first seed, in full.
    """

    hidden: Float[np.ndarray, "batch seq embed"]
    norms: Float[np.ndarray, "seeds places"]
    gradient: Float[np.ndarray, "places embed"]


class Update(NamedTuple):
    """One update: its losses by name, and the gradients by path."""

    losses: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]


class Subject:
    """Settings on one device.

    Attributes:
      settings: as examined: already small enough.
      vocabulary: of the tokenizer.
      assembly: mesh of one device, kernels, model, objective.
      tolerance: largest difference between two programs that compute the same.
    """

    def __init__(self, settings: Settings):
        free: dict[str, Any] = {f"parallel.mesh.{axis}": None for axis in AXES}
        # No law is about the rule, and gradients are read from AdamW's first moment.
        settings = dataclasses.replace(settings, optimizer=OptimizerSettings())
        self.settings = settings
        self.single = changed(settings, free | {"parallel.preset": "dp"})
        self.vocabulary = synthetic.vocabulary_of(settings)
        self.assembly = assemble(self.single, self.vocabulary, devices=jax.devices()[:1])
        self.tolerance = SAME[settings.model.compute_dtype]
        self._folder = tempfile.TemporaryDirectory(prefix="isoflop-doctor-")
        directory = Path(self._folder.name) / "corpus"
        self._reader = synthetic.corpus(directory, self.vocabulary, self.raw_length, NUM_WINDOWS)
        self._updates: dict[Any, Callable[..., Any]] = {}
        self._traces: dict[str, Callable[..., Any]] = {}

    def close(self) -> None:
        """Removes the made-up corpus."""
        self._folder.cleanup()

    @property
    def model(self) -> Model:
        """The model, with the configured kernels."""
        return self.assembly.model

    @property
    def objective(self) -> Objective:
        """The objective."""
        return self.assembly.objective

    @property
    def raw_length(self) -> int:
        """Tokens of a window before corruption."""
        return raw_length(self.objective, self.single)

    @property
    def attends(self) -> bool:
        """The model has attention."""
        return self.settings.model.architecture in {"transformer", "encoder_decoder"}

    @property
    def drops_tokens(self) -> bool:
        """Experts have so few places that a token can lose its place to a later one."""
        return self.settings.model.num_experts > 0 and self.settings.model.expert_capacity is not None

    # --- data -------------------------------------------------------------------------------------------------------

    def loader(self, accumulation: int = 1, rows: np.ndarray | None = None) -> Loader:
        """The training batches of the made-up corpus."""
        train, data = self.settings.train, self.settings.data
        return Loader(
            self._reader,
            self.vocabulary,
            seed=self.settings.seed,
            batch_size=train.batch_size,
            accumulation=accumulation,
            raw_length=self.raw_length,
            packing=data.packing,
            num_tokens=None,
            corrupt=self.objective.corrupt,
            num_steps=train.num_steps,
            partners=self.objective.partners,
            rows=rows,
        )

    @cached_property
    def batch(self) -> dict[str, np.ndarray]:
        """The first training batch, `[1, rows, ...]`."""
        return self.loader().batch(0)

    def windows(self, count: int) -> tuple[Windows, Draws]:
        """Raw windows and their draws."""
        plan = make_plan(self._reader, self.settings.data.packing, self.raw_length)
        ids = np.arange(count, dtype=np.int64) % plan.num_windows
        # The same window in another epoch is another draw.
        epochs = np.arange(count, dtype=np.int64) // plan.num_windows
        windows = plan.windows(self._reader, self.vocabulary, ids, epochs)
        if self.objective.partners:
            windows = dataclasses.replace(windows, partners=windows.rows(np.roll(np.arange(count), 1)))
        return windows, Draws(self.settings.seed, epochs, ids)

    # --- programs ---------------------------------------------------------------------------------------------------

    @cached_property
    def params(self) -> dict[str, Any]:
        """Random weights."""
        return synthetic.random_weights(self.model, seed=0)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`jax.jit` for programs that run a few times."""
        return jax.jit(function, compiler_options=quick_options(self.assembly.mesh.devices.flat[0].platform))

    def trace(
        self, name: str, kernels: Kernels, table: np.ndarray, batch: Batch, seeds: Bool[np.ndarray, "..."]
    ) -> Traces:
        """One pass over a batch whose embedding at each place is a row of `table`, and the pull of each seed.

        Args:
          name: of the kernels; a name is compiled once.
          kernels: what the model runs on.
          table: `[places, embed]`, the decoder's places row by row, then the encoder's.
          batch: rows `[batch, seq]` of all inputs but the tokens.
          seeds: `[seeds, batch, seq]`, the hidden states whose (random) sum is differentiated.
        """
        if name not in self._traces:
            model = dataclasses.replace(self.model, kernels=kernels)
            self._traces[name] = self.compiled(lambda *given: _traced(model, self.objective.pattern, *given))
        inputs = {key: jnp.asarray(batch[key]) for key in INPUTS if key in batch}
        found = self._traces[name](self.params, jnp.asarray(table, jnp.float32), inputs, jnp.asarray(seeds))
        return Traces(*jax.device_get(found))

    def update(
        self, changes: Mapping[str, Any] | None = None, num_devices: int = 1, meshed: Settings | None = None
    ) -> Update:
        """Losses and gradients of one update without dropout and clipping, with keys of the settings changed."""
        state, metrics = self.updated(changes, num_devices, meshed)
        rate = 1.0 - self.settings.optimizer.beta1
        moments = {path: leaf for path, leaf in trees.flatten(state.optimizer).items() if "/mu/" in f"/{path}"}
        assert moments, "the optimizer keeps no first moments to read the gradients from"
        return Update(
            {name: value for name, value in metrics.items() if name.startswith("loss")},
            {path.split("mu/", 1)[1]: np.asarray(leaf, np.float64) / rate for path, leaf in moments.items()},
        )

    def updated(
        self, changes: Mapping[str, Any] | None = None, num_devices: int = 1, meshed: Settings | None = None
    ) -> tuple[TrainState, dict[str, np.ndarray]]:
        """State and metrics after the first update, on the host."""
        settings = changed(meshed or self.single, dict(changes or {}))
        assembly = assemble(settings, self.vocabulary, devices=jax.devices()[:num_devices])
        key = (settings, num_devices)
        if key not in self._updates:
            self._updates[key] = self.compiled(make_step(settings, assembly.model, assembly.objective))
        parts = settings.train.accumulation
        rows = settings.train.batch_size // parts
        batch = self.batch if parts == 1 else self.loader(parts).batch(0)
        with jax.set_mesh(assembly.mesh):
            held = arrays.local_rows(rows, assembly.mesh)
            placed = arrays.to_global(batch, rows, held, assembly.mesh)
            return jax.device_get(self._updates[key](self._state(assembly), placed))

    def _state(self, assembly: Assembly) -> TrainState:
        settings = assembly.settings
        zero = jnp.zeros((), jnp.float32)
        state = state_of(settings, assembly.model, self.params)
        state = state._replace(hyper=state.hyper._replace(dropout=zero, clip_norm=zero + NO_CLIPPING))
        shapes = state_shapes(settings, assembly.model, assembly.mesh, settings.parallel.preset)
        return jax.device_put(state, jax.tree.map(lambda shape: shape.sharding, shapes))


@functools.cache
def quick_options(platform: str) -> dict[str, Any]:
    """Options with which a CPU's compiler takes a quarter of its time; the programs become slower, not other ones.

    They are no part of XLA's stable interface: a version that does not know them does without.
    """
    if platform != "cpu":
        return {}
    options = {
        "xla_backend_optimization_level": 0,
        "xla_cpu_use_fusion_emitters": False,
        "xla_cpu_parallel_codegen_split_count": 1,
    }
    try:
        jax.jit(jnp.negative, compiler_options=options)(jnp.zeros(()))
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def _traced(
    model: Model, pattern: Any, params: Mapping[str, Any], table: Array, inputs: dict[str, Array], seeds: Array
) -> tuple[Array, Array, Array]:
    places = jnp.arange(table.shape[0], dtype=jnp.int32)
    batch, length = inputs["segment_ids"].shape
    inputs = {**inputs, "tokens": places[: batch * length].reshape(batch, length)}
    if "encoder_segment_ids" in inputs:
        inputs["encoder_tokens"] = places[batch * length :].reshape(inputs["encoder_segment_ids"].shape)

    def hidden(table: Array) -> Array:
        swapped = {**params, "embedding": {**params["embedding"], "tokens": table}}
        return model.apply(swapped, inputs, pattern=pattern).hidden.astype(jnp.float32)

    out, pull = jax.vjp(hidden, table)
    direction = jax.random.normal(jax.random.key(0), out.shape, jnp.float32)

    def gradient(seed: Array) -> Array:
        return pull(direction * seed[:, :, None].astype(jnp.float32))[0]

    norms = jax.lax.map(lambda seed: jnp.max(jnp.abs(gradient(seed)), axis=-1), seeds)
    return out, norms, gradient(seeds[0])

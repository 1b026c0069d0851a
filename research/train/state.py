"""The training state: weights, optimizer moments, and the numbers that travel with them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int, UInt32

from research.models import Model
from research.optim import Hyper, optimizer
from research.parallel import rules
from research.settings import Settings


class TrainState(NamedTuple):
    """All that an update reads and writes.

    Attributes:
      step: number of updates applied.
      params: float32 weights.
      optimizer: state of the optax chain.
      hyper: traced numbers; from the settings at every start, never from a checkpoint.
      seed: keys of dropout are `fold_in(seed, step, layer)`.
    """

    step: Int[Array, ""]
    params: Any
    optimizer: Any
    hyper: Hyper
    seed: UInt32[Array, ""]

    def kept(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"step": self.step, "params": self.params, "optimizer": self.optimizer}

    def with_kept(self, kept: Mapping[str, Any]) -> "TrainState":
        """This state with what a checkpoint held."""
        return self._replace(**kept)


def initial_state(settings: Settings, model: Model) -> TrainState:
    """The state before the first update; traceable, so that it can be born sharded."""
    seed = jnp.asarray(settings.seed, jnp.uint32)
    hyper = Hyper.of(settings)
    params = model.init(jax.random.key(seed))
    moments = optimizer(settings.optimizer, hyper, model.parameters()).init(params)
    return TrainState(jnp.zeros((), jnp.int32), params, moments, hyper, seed)


def state_shapes(settings: Settings, model: Model, mesh: Mesh, preset: str) -> TrainState:
    """Shapes, types and shardings of the state; nothing is allocated."""
    shapes = jax.eval_shape(lambda: initial_state(settings, model))
    weights = rules.parameter_shardings(model.parameters(), mesh, preset)
    return rules.with_shardings(shapes, rules.state_shardings(shapes, weights, mesh))


def born_sharded(settings: Settings, model: Model, shapes: TrainState) -> TrainState:
    """The initial state, each device making its own shards only."""
    shardings = jax.tree.map(lambda shape: shape.sharding, shapes)
    return jax.jit(lambda: initial_state(settings, model), out_shardings=shardings)()

"""The training state: weights, optimizer moments, and the numbers that travel with them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int, UInt32

from research import trees
from research.models import Model
from research.optim import Hyper, evaluated, evaluated_from, next_ema, optimizer
from research.parallel import rules
from research.settings import OptimizerSettings, Settings

Numbers = tuple[UInt32[Array, ""], Hyper]


class TrainState(NamedTuple):
    """All that an update reads and writes.

    Attributes:
      step: number of updates applied.
      params: float32 weights, those that gradients are taken at.
      optimizer: state of the optax chain.
      hyper: traced numbers; from the settings at every start, never from a checkpoint.
      seed: keys of dropout are `fold_in(seed, step, layer)`.
      ema: float32 average of the weights over updates; none where `optimizer.ema_decay` is.
    """

    step: Int[Array, ""]
    params: Any
    optimizer: Any
    hyper: Hyper
    seed: UInt32[Array, ""]
    ema: Any = None

    def after(self, params: Any, moments: Any) -> "TrainState":
        """The state after one more update, whose weights and optimizer state are given."""
        ema = None if self.ema is None else next_ema(self.ema, params, self.hyper, self.step)
        return self._replace(step=self.step + 1, params=params, optimizer=moments, ema=ema)

    def kept(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        average = {} if self.ema is None else {"ema": self.ema}
        return {"step": self.step, "params": self.params, "optimizer": self.optimizer, **average}

    def with_kept(self, kept: Mapping[str, Any]) -> "TrainState":
        """This state with what a checkpoint held."""
        return self._replace(**kept)

    def evaluated(self, settings: OptimizerSettings) -> Any:
        """The weights that are measured, sampled from and exported: an average of them where the settings keep one."""
        leaves = trees.flatten(self.kept())
        below = {f"{part}/": part for part in evaluated_from(settings, jax.eval_shape(lambda: self.params))}
        parts = {
            part: trees.unflatten(
                {path.removeprefix(prefix): leaf for path, leaf in leaves.items() if path.startswith(prefix)}
            )
            for prefix, part in below.items()
        }
        return evaluated(parts, self.params, self.hyper.beta1)


def initial_state(settings: Settings, model: Model, numbers: Numbers | None = None) -> TrainState:
    """The state before the first update; traceable, so that it can be born sharded.

    Runs that differ in nothing but their numbers are born by one program where these are its arguments.
    """
    seed, hyper = numbers or numbers_of(settings)
    return state_of(settings, model, model.init(jax.random.key(seed)), (seed, hyper))


def numbers_of(settings: Settings) -> Numbers:
    """The seed and the traced numbers of the settings."""
    return jnp.asarray(settings.seed, jnp.uint32), Hyper.of(settings)


def state_of(settings: Settings, model: Model, params: Any, numbers: Numbers | None = None) -> TrainState:
    """The state before the first update of given weights; traceable."""
    seed, hyper = numbers or numbers_of(settings)
    moments = optimizer(settings.optimizer, hyper, model.parameters()).init(params)
    average = None
    if settings.optimizer.ema_decay is not None:
        # A copy, because the state is donated, and an array cannot be given away twice.
        average = jax.tree.map(lambda weight: jnp.array(weight, jnp.float32), params)
    return TrainState(jnp.zeros((), jnp.int32), params, moments, hyper, seed, average)


def state_shapes(settings: Settings, model: Model, mesh: Mesh, preset: str) -> TrainState:
    """Shapes, types and shardings of the state; nothing is allocated."""
    shapes = jax.eval_shape(lambda: initial_state(settings, model))
    weights = rules.parameter_shardings(model.parameters(), mesh, preset)
    return rules.with_shardings(shapes, rules.state_shardings(shapes, weights, mesh))


def born_sharded(settings: Settings, model: Model, shapes: TrainState) -> TrainState:
    """The initial state, each device making its own shards only."""
    shardings = jax.tree.map(lambda shape: shape.sharding, shapes)
    born = jax.jit(lambda numbers: initial_state(settings, model, numbers), out_shardings=shardings)
    return born(jax.device_get(numbers_of(settings)))

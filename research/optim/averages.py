"""The weights that are evaluated, sampled from and exported: those of the last update, or an average over updates."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research import trees
from research.optim.groups import rate_factors, trained
from research.optim.hyper import Hyper
from research.settings import OptimizerSettings

# Where a saved state holds the weights that gradients are taken at, their moving average, and schedule-free's `z`.
PARAMETERS, EMA, LAST = "params", "ema", "optimizer/1/z"


def next_ema(ema: Any, params: Any, hyper: Hyper, step: Int[Array, ""]) -> Any:
    """The exponential moving average of weights after one more update, in float32.

    Args:
      ema: of the weights before.
      params: the new weights.
      hyper: holds the decay, which begins as `(1 + step) / (10 + step)` where that is less, so that the initial
        weights are soon forgotten (the rule of TensorFlow's `ExponentialMovingAverage`).
      step: updates done before this one.
    """
    done = step.astype(jnp.float32)
    decay = jnp.minimum(hyper.ema_decay, (1.0 + done) / (10.0 + done))
    return jax.tree.map(lambda mean, new: decay * mean + (1.0 - decay) * new.astype(jnp.float32), ema, params)


def evaluated_from(settings: OptimizerSettings, weights: Any) -> dict[str, Any]:
    """`{path: shapes}` of the parts of a saved state that `evaluated` wants.

    Args:
      settings: of the run.
      weights: shapes, types and shardings of the weights.
    """
    if settings.ema_decay is not None:
        return {EMA: jax.tree.map(lambda leaf: leaf.update(dtype=jnp.float32), weights)}
    if settings.name == "schedule_free":
        moving = trained(weights, rate_factors(settings, trees.flatten(weights)))
        return {PARAMETERS: weights, LAST: jax.tree.map(lambda leaf: leaf.update(dtype=jnp.float32), moving)}
    return {PARAMETERS: weights}


def evaluated(parts: Mapping[str, Any], like: Any, beta1: Float[Array, ""] | float) -> Any:
    """The weights to evaluate, of the types of `like`, from the parts of a state.

    The exponential moving average where one is kept; for schedule-free training `x = (y - (1 - beta1) z) / beta1`, of
    the weights `y` that gradients are taken at and the last ones `z` (Defazio et al. 2024, eq. 2-4); else the weights.
    """
    if EMA in parts:
        return jax.tree.map(lambda mean, of: mean.astype(of.dtype), parts[EMA], like)
    if LAST not in parts:
        return parts[PARAMETERS]
    last = trees.flatten(parts[LAST])
    beta1 = jnp.asarray(beta1, jnp.float32)  # as it is in the state: 1 - 0.9 is another number in each type

    def mean(path: str, weight: Array) -> Array:
        if path not in last:  # frozen
            return weight
        found = (weight.astype(jnp.float32) - (1.0 - beta1) * last[path]) / beta1
        return found.astype(weight.dtype)

    return trees.map_with_path(mean, parts[PARAMETERS])

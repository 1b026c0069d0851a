"""The numbers of a run that decide no shape, as one pytree of scalars that travels in the state."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.settings import Settings


class Hyper(NamedTuple):
    """Traced hyper-parameters; see `research/settings` for their meaning and units. What is not in use is 0."""

    learning_rate: Float[Array, ""]
    final_fraction: Float[Array, ""]
    weight_decay: Float[Array, ""]
    beta1: Float[Array, ""]
    beta2: Float[Array, ""]
    epsilon: Float[Array, ""]
    clip_norm: Float[Array, ""]
    momentum: Float[Array, ""]
    muon_scale: Float[Array, ""]
    ema_decay: Float[Array, ""]
    dropout: Float[Array, ""]
    num_steps: Int[Array, ""]
    warmup_steps: Int[Array, ""]
    decay_steps: Int[Array, ""]

    @classmethod
    def of(cls, settings: Settings) -> "Hyper":
        """The numbers of the settings, as scalars."""
        rule, steps = settings.optimizer, settings.train.num_steps
        same = ("learning_rate", "final_fraction", "weight_decay", "beta1", "beta2", "epsilon", "clip_norm")
        real = {name: getattr(rule, name) for name in same}
        real |= {"momentum": rule.momentum_or_default or 0.0, "muon_scale": rule.muon_scale}
        real |= {"ema_decay": rule.ema_decay or 0.0, "dropout": settings.model.dropout}
        whole = {"num_steps": steps, "warmup_steps": rule.warmup(steps), "decay_steps": rule.decay(steps)}
        values: dict[str, Any] = {name: jnp.asarray(value, jnp.float32) for name, value in real.items()}
        return cls(**values | {name: jnp.asarray(value, jnp.int32) for name, value in whole.items()})

"""Learning rate as a function of the number of updates done."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.optim.hyper import Hyper


def learning_rate(name: str, hyper: Hyper, step: Int[Array, ""]) -> Float[Array, ""]:
    """The rate of update number `step`, counted from 0.

    Warm-up is linear and reaches the peak at update `warmup_steps`. Then `constant`; `linear` or `cosine` (Loshchilov &
    Hutter 2017, eq. 5) to `final_fraction` of the peak at the end of the run; or `wsd`: constant until the last
    `decay_steps`, then linear (Hu et al. 2024, section 4.1).
    """
    done = step.astype(jnp.float32)
    steps, warmup, decay = (
        value.astype(jnp.float32) for value in (hyper.num_steps, hyper.warmup_steps, hyper.decay_steps)
    )
    rise = jnp.minimum(1.0, (done + 1.0) / jnp.maximum(1.0, warmup + 1.0))
    begin, length = (steps - decay, decay) if name == "wsd" else (warmup, jnp.maximum(1.0, steps - warmup))
    progress = jnp.clip((done - begin) / length, 0.0, 1.0)
    if name == "constant":
        fall = jnp.ones_like(progress)
    elif name == "cosine":
        fall = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    else:
        assert name in {"linear", "wsd"}, name
        fall = 1.0 - progress
    return hyper.learning_rate * rise * (hyper.final_fraction + (1.0 - hyper.final_fraction) * fall)

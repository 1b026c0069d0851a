"""The optax chain of a run, made of traced numbers."""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from research import trees
from research.optim.hyper import Hyper
from research.optim.schedules import learning_rate
from research.parameters import Parameter
from research.settings import OptimizerSettings

DECAYED_KINDS = ("kernel", "embedding", "head")


def optimizer(
    settings: OptimizerSettings, hyper: Hyper, parameters: Mapping[str, Parameter]
) -> optax.GradientTransformation:
    """Clipping by global norm, AdamW (Loshchilov & Hutter 2019, algorithm 2) and the schedule.

    Weight decay goes by the kind of a parameter: norms and biases keep theirs. May be called inside a traced function,
    with traced numbers; the structure of its state does not depend on them.
    """
    assert settings.name == "adamw", settings.name
    decayed = trees.unflatten({path: parameter.kind in DECAYED_KINDS for path, parameter in parameters.items()})
    chain = optax.chain(
        optax.clip_by_global_norm(hyper.clip_norm),
        optax.scale_by_adam(b1=hyper.beta1, b2=hyper.beta2, eps=hyper.epsilon),
        optax.add_decayed_weights(hyper.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(lambda count: learning_rate(settings.schedule, hyper, count)),
    )

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        # The bias correction of Adam raises a float to the power of an integer count.
        with jax.numpy_dtype_promotion("standard"):
            return chain.update(gradients, state, params)

    return optax.GradientTransformation(chain.init, update)

"""The optax chain of a run, made of traced numbers."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from research import trees
from research.optim.groups import rate_factors, trained
from research.optim.hyper import Hyper
from research.optim.rules import RULES
from research.optim.schedules import learning_rate
from research.optim.transfer import grown, norm_factors, rates_by_depth, transferred, weighted_norm
from research.parameters import Parameter
from research.settings import OptimizerSettings

DECAYED_KINDS = ("kernel", "embedding", "head")


def optimizer(
    settings: OptimizerSettings, hyper: Hyper, parameters: Mapping[str, Parameter]
) -> optax.GradientTransformationExtraArgs:
    """Clipping by global norm, the rule of `optimizer.name`, decoupled weight decay and the schedule.

    Weight decay goes by the kind of a parameter: norms and biases keep theirs. May be called inside a traced function,
    with traced numbers; the structure of its state does not depend on them. Frozen weights have no state, no part in
    a norm that is computed here, and updates of zero.

    The state is float32, but for first moments and momentum, which `optimizer.state_dtype` may make bfloat16: rounded
    at every update they are within 1 % at a decay of at most 0.99. A second moment would stop following: of its last
    change, 1 - beta2, bfloat16 keeps nothing, and at 0.999 its root stays 1.9 times too large after gradients shrank
    to a third (simulated, 1500 updates).

    Its `update` takes `gradient_norm`, the global norm of the gradients of what trains, where that is known already.
    Weights that grew over those of a tuned model have rates, epsilons and parts in the norm of their own
    (`research/optim/transfer.py`).

    Raises:
      UserError: `optimizer.groups` does not fit the parameters.
    """
    factors = rate_factors(settings, parameters)
    clip = clip_by_global_norm(hyper.clip_norm, norm_factors(parameters) if grown(parameters) else None)
    chain = optax.chain(clip, *steps(settings, hyper, parameters, factors))

    def init(params: Any) -> Any:
        return chain.init(_float32(trained(params, factors)))

    def update(
        gradients: Any, state: Any, params: Any = None, *, gradient_norm: Float[Array, ""] | None = None
    ) -> tuple[Any, Any]:
        # The bias correction of Adam raises a float to the power of an integer count.
        with jax.numpy_dtype_promotion("standard"):
            given, weights = (_float32(trained(tree, factors)) for tree in (gradients, params))
            moved, state = chain.update(given, state, weights, gradient_norm=gradient_norm)
        found = trees.flatten(moved)
        still = {path: jnp.zeros_like(leaf) for path, leaf in trees.flatten(params).items() if path not in found}
        return jax.tree.map(lambda new, of: new.astype(of.dtype), trees.unflatten(found | still), params), state

    return optax.GradientTransformationExtraArgs(init, update)


def steps(
    settings: OptimizerSettings, hyper: Hyper, parameters: Mapping[str, Parameter], factors: Mapping[str, float]
) -> tuple[optax.GradientTransformation, ...]:
    """What follows the clipping: rule, decay, rate, and the factors of groups and of depth where there are any."""
    decayed = {path: parameter.kind in DECAYED_KINDS for path, parameter in parameters.items()}

    def rate(count: Int[Array, ""]) -> Float[Array, ""]:
        return learning_rate(settings.schedule, hyper, count)

    found = [
        transferred(settings.name, RULES[settings.name](settings, hyper, parameters), parameters),
        optax.add_decayed_weights(hyper.weight_decay, mask=trained(trees.unflatten(decayed), factors)),
        optax.scale_by_learning_rate(rate),
    ]
    own = {path: factors[path] * by_depth for path, by_depth in rates_by_depth(parameters).items()}
    if settings.groups or any(factor != 1.0 for factor in own.values()):
        found.append(optax.stateless(lambda updates, _: trees.map_with_path(lambda p, u: own[p] * u, updates)))
    if settings.name != "schedule_free":
        return tuple(found)
    # Optax counts its own updates from 1.
    return (optax.contrib.schedule_free(optax.chain(*found), lambda count: rate(count - 1), b1=hyper.beta1),)


def clip_by_global_norm(
    limit: Float[Array, ""], factors: Mapping[str, float] | None = None
) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm`, which computes no norm where one is given as `gradient_norm`.

    With factors the norm is that of the gradients times them, by path, whatever is given.
    """

    def update(
        gradients: Any, state: Any, params: Any = None, *, gradient_norm: Float[Array, ""] | None = None
    ) -> tuple[Any, Any]:
        del params
        norm = optax.tree.norm(gradients) if gradient_norm is None else gradient_norm
        if factors is not None:
            norm = weighted_norm(factors, gradients)
        return jax.tree.map(lambda leaf: jax.lax.select(norm < limit, leaf, leaf / norm * limit), gradients), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _float32(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)

"""Learning rates and epsilons of weights that grew with width and depth (Yang et al. 2022; Dey et al. 2025, table 1).

What a weight is, and by how much it grew, stands in its `Parameter.scaling`; here is what follows for each rule. There
is none for plain gradient steps: they are proportional to gradients that are clipped by a norm over all weights.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import optax

from research import trees
from research.optim.muon import is_orthogonalised
from research.parameters import UNSCALED, Parameter


def transferred(
    name: str, rule: optax.GradientTransformation, parameters: Mapping[str, Parameter]
) -> optax.GradientTransformation:
    """The rule with each weight's own rate and epsilon; its state is that of the rule.

    It stands before weight decay, which so is independent of the width: learning rate times decay is what shrinks a
    weight (Dey et al. 2025, table 1; Yang et al. 2022, appendix B.3).
    """
    if not grown(parameters):
        return rule
    rates = {path: direction_factor(name, parameter) for path, parameter in parameters.items()}
    sizes = {path: gradient_factor(parameter) for path, parameter in parameters.items()}

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        found, state = rule.update(_times(sizes, gradients), state, params)
        return _times(rates, found), state

    return optax.GradientTransformation(rule.init, update)


def grown(parameters: Mapping[str, Parameter]) -> bool:
    """Whether any weight is treated otherwise than in the standard parametrisation."""
    return any(parameter.scaling != UNSCALED for parameter in parameters.values())


def direction_factor(name: str, parameter: Parameter) -> float:
    """The factor of a rule's direction that depends on the width.

    Entries of AdamW's, Lion's, RMSprop's and Adafactor's directions are of order one, and aligned with what comes in,
    so that an output changes by as much as it has inputs (Yang et al. 2022, table 3, Adam; Yang & Littwin 2023). Muon's
    matrices have the spectral norm `sqrt(max(fan in, fan out))`, and should have `sqrt(fan out / fan in)` (Yang, Simon
    & Bernstein 2023, condition 1).
    """
    scaling = parameter.scaling
    if name == "muon" and is_orthogonalised(parameter):
        larger = scaling.fan_in if parameter.fan_in >= parameter.fan_out else scaling.fan_out
        return scaling.multiplier * math.sqrt(scaling.fan_out / scaling.fan_in / larger)
    return scaling.multiplier / scaling.fan_in


def gradient_factor(parameter: Parameter) -> float:
    """What gradients are multiplied by for a rule, so that `optimizer.epsilon` means the same at every size.

    A gradient's entries shrink as its weight's outputs grow in number, and with the branch that it lies in.
    """
    scaling = parameter.scaling
    return scaling.fan_out * scaling.multiplier / scaling.branch


def norm_factors(parameters: Mapping[str, Parameter]) -> dict[str, float]:
    """Factors of the gradients in the norm that is clipped, so that it neither grows nor shrinks with the width.

    They are those to the gradients of the form with multipliers in the forward pass (Yang et al. 2022, table 8).
    """
    return {
        path: parameter.scaling.multiplier * min(1.0, parameter.scaling.fan_out / parameter.scaling.fan_in)
        for path, parameter in parameters.items()
    }


def rates_by_depth(parameters: Mapping[str, Parameter]) -> dict[str, float]:
    """Factors of the whole update that depend on the depth."""
    return {path: parameter.scaling.rate for path, parameter in parameters.items()}


def weighted_norm(factors: Mapping[str, float], gradients: Any) -> jax.Array:
    """The Euclidean norm over all leaves, each times its factor."""
    return optax.tree.norm(_times(factors, gradients))


def _times(factors: Mapping[str, float], tree: Any) -> Any:
    return trees.map_with_path(lambda path, leaf: leaf if factors[path] == 1.0 else factors[path] * leaf, tree)

"""Learning-rate groups: weights whose rate is a multiple of the run's, and frozen ones."""

from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp

from research import trees
from research.errors import UserError
from research.settings import OptimizerSettings


def rate_factors(settings: OptimizerSettings, paths: Collection[str]) -> dict[str, float]:
    """`{path: factor}` of every weight: that of the first pattern of `optimizer.groups` found in its path, or 1.

    Raises:
      UserError: a pattern that decides for no weight, or no weight is left to train.
    """
    groups = settings.learning_rate_groups
    rules = [(pattern, (number, factor)) for number, (pattern, factor) in enumerate(groups)]
    found = dict(trees.first_match([*rules, ("", (-1, 1.0))], paths))
    decided = {number for number, _ in found.values()}
    for number, (pattern, factor) in enumerate(groups):
        if number not in decided:
            known = ", ".join(sorted({path.rpartition("/")[0] or path for path in paths})[:6])
            raise UserError(
                f"optimizer.groups: {pattern}={factor:g} matches no weight that an earlier pattern leaves: name a part "
                f"of a path, as in {known}"
            )
    factors = {path: factor for path, (_, factor) in found.items()}
    if not any(factors.values()):
        raise UserError(f"optimizer.groups={settings.groups} freezes every weight: leave one that trains")
    return factors


def without_frozen(settings: OptimizerSettings, gradients: Any) -> Any:
    """Gradients with zeros for the weights that do not train: they count in no norm, and nothing computes them."""
    factors = rate_factors(settings, trees.flatten(gradients))
    return trees.map_with_path(lambda path, leaf: leaf if factors[path] else jnp.zeros_like(leaf), gradients)


def trained(tree: Any, factors: Mapping[str, float]) -> Any:
    """The tree of weights, or of anything that has their paths, without the frozen ones."""
    if all(factors.values()):
        return tree
    return trees.unflatten({path: leaf for path, leaf in trees.flatten(tree).items() if factors[path]})

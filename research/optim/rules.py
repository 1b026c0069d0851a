"""The update rules: from gradients to a direction, before weight decay and the learning rate."""

from collections.abc import Callable, Mapping
from typing import Any

import optax

from research import trees
from research.optim.adafactor import scale_by_factored_moments
from research.optim.hyper import Hyper
from research.optim.muon import is_orthogonalised, scale_by_muon
from research.parameters import Parameter
from research.settings import OptimizerSettings

Rule = Callable[[OptimizerSettings, Hyper, Mapping[str, Parameter]], optax.GradientTransformation]


def adamw(settings: OptimizerSettings, hyper: Hyper, parameters: Any = None) -> optax.GradientTransformation:
    """Loshchilov & Hutter 2019, algorithm 2."""
    return optax.scale_by_adam(b1=hyper.beta1, b2=hyper.beta2, eps=hyper.epsilon, mu_dtype=settings.state_dtype)


def sgd(settings: OptimizerSettings, hyper: Hyper, parameters: Any) -> optax.GradientTransformation:
    """Gradients with heavy-ball momentum (Polyak 1964) or Nesterov's (Sutskever et al. 2013)."""
    return optax.trace(hyper.momentum, nesterov=settings.nesterov, accumulator_dtype=settings.state_dtype)


def rmsprop(settings: OptimizerSettings, hyper: Hyper, parameters: Any) -> optax.GradientTransformation:
    """Gradients over the root of their second moment, without bias correction (Tieleman & Hinton 2012)."""
    scaled = optax.scale_by_rms(hyper.beta2, eps=hyper.epsilon, eps_in_sqrt=False)
    if settings.momentum_or_default is None:
        return scaled
    return optax.chain(scaled, optax.trace(hyper.momentum, accumulator_dtype=settings.state_dtype))


def lion(settings: OptimizerSettings, hyper: Hyper, parameters: Any) -> optax.GradientTransformation:
    """The sign of a momentum (Chen et al. 2023, algorithm 2)."""
    return optax.scale_by_lion(b1=hyper.beta1, b2=hyper.beta2, mu_dtype=settings.state_dtype)


def adafactor(
    settings: OptimizerSettings, hyper: Hyper, parameters: Mapping[str, Parameter]
) -> optax.GradientTransformation:
    """Factored second moments (Shazeer & Stern 2018); with `momentum` the directions' average."""
    scaled = scale_by_factored_moments(parameters)
    if settings.momentum_or_default is None:
        return scaled
    return optax.chain(scaled, optax.ema(hyper.momentum, debias=False, accumulator_dtype=settings.state_dtype))


def muon(
    settings: OptimizerSettings, hyper: Hyper, parameters: Mapping[str, Parameter]
) -> optax.GradientTransformation:
    """Orthogonalised momentum for kernels, AdamW for all else (Jordan et al. 2024; Liu et al. 2025)."""
    kernels = [path for path, parameter in parameters.items() if is_orthogonalised(parameter)]
    matrices = scale_by_muon(parameters, hyper.momentum, hyper.muon_scale, settings.muon_steps, settings.state_dtype)
    return split(kernels, matrices, adamw(settings, hyper))


def root_mean_square(settings: OptimizerSettings, hyper: Hyper, parameters: Any) -> optax.GradientTransformation:
    """AdamW without its first moment, for which schedule-free training has an average of weights."""
    return optax.scale_by_rms(hyper.beta2, eps=hyper.epsilon, eps_in_sqrt=False, bias_correction=True)


def split(
    paths: list[str], inside: optax.GradientTransformation, outside: optax.GradientTransformation
) -> optax.GradientTransformation:
    """One rule for the weights of these paths, another for the others; each keeps a state of its own weights alone."""
    chosen = frozenset(paths)

    def parts(tree: Any) -> tuple[Any, Any]:
        leaves = trees.flatten(tree)
        within = {path: leaf for path, leaf in leaves.items() if path in chosen}
        return trees.unflatten(within), trees.unflatten({p: leaf for p, leaf in leaves.items() if p not in chosen})

    def init(params: Any) -> tuple[Any, Any]:
        within, without = parts(params)
        return inside.init(within), outside.init(without)

    def update(gradients: Any, state: tuple[Any, Any], params: Any = None) -> tuple[Any, tuple[Any, Any]]:
        pairs = zip((inside, outside), parts(gradients), state, parts(params), strict=True)
        found = [rule.update(own, before, weights) for rule, own, before, weights in pairs]
        leaves = trees.flatten(found[0][0]) | trees.flatten(found[1][0])
        return trees.unflatten(leaves), (found[0][1], found[1][1])

    return optax.GradientTransformation(init, update)


RULES: dict[str, Rule] = {
    "adamw": adamw,
    "sgd": sgd,
    "rmsprop": rmsprop,
    "lion": lion,
    "adafactor": adafactor,
    "muon": muon,
    "schedule_free": root_mean_square,
}

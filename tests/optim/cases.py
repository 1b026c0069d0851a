"""Every update rule, weights of every kind, and each rule by hand, in float64, one layer at a time."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from research import config, trees
from research.optim import Hyper, optimizer
from research.parameters import Parameter
from research.settings import OptimizerSettings
from research.settings.optimizer import NAMES
from tests import small

# Each rule beside its variants. A new name is tested by being listed.
CASES: dict[str, dict[str, Any]] = {
    "adamw": {},
    "sgd": {"name": "sgd"},
    "sgd, nesterov": {"name": "sgd", "nesterov": True, "momentum": 0.8},
    "rmsprop": {"name": "rmsprop"},
    "rmsprop, momentum": {"name": "rmsprop", "momentum": 0.7},
    "lion": {"name": "lion"},
    "adafactor": {"name": "adafactor"},
    "adafactor, momentum": {"name": "adafactor", "momentum": 0.7},
    "muon": {"name": "muon"},
    "schedule_free": {"name": "schedule_free"},
}
assert {case.get("name", "adamw") for case in CASES.values()} == set(NAMES)

# Weights of every kind; what is stacked holds a weight for each layer, and for each expert.
PARAMETERS = {
    made.path: made
    for made in (
        Parameter("embedding/tokens", (6, 4), ("vocab", "embed"), "embedding", 1, 4, std=1.0),
        Parameter(
            "layers/attention/query", (2, 4, 2, 3), ("layers", "embed", "heads", "head_dim"), "kernel", 4, 6, 1.0
        ),
        Parameter("layers/attention/out", (2, 2, 3, 4), ("layers", "heads", "head_dim", "embed"), "kernel", 6, 4, 1.0),
        Parameter("layers/experts/up", (2, 3, 4, 5), ("layers", "experts", "embed", "mlp"), "kernel", 4, 5, std=1.0),
        Parameter("layers/mlp/up_bias", (2, 5), ("layers", "mlp"), "bias", 1, 5, std=1.0),
        Parameter("layers/norm/scale", (2, 4), ("layers", "embed"), "norm", 1, 1, std=1.0),
        Parameter("head/table", (6, 4), ("vocab", "embed"), "head", 4, 6, std=1.0),
    )
}
DECAYED = {"kernel": True, "embedding": True, "head": True, "norm": False, "bias": False}
STEPS = 5
# Of six updates two are warm-up.
RATES = (1 / 3, 2 / 3, 1.0, 1.0, 1.0)


def rule(case: str, **changes: Any) -> OptimizerSettings:
    """The settings of a case; without a decay of the rate, which schedule-free training has none of."""
    return OptimizerSettings(**{"schedule": "constant", **CASES[case], **changes})


def hyper(of: OptimizerSettings | None = None, **changes: Any) -> Hyper:
    """The numbers of six updates, of which two are warm-up and two the final decay, with some changed."""
    lengths = {"train.num_steps": 6, "optimizer.warmup_steps": 2, "optimizer.decay_steps": 2}
    made = config.from_nested(lengths)
    if of is not None:
        own = dataclasses.replace(of, warmup_steps=2, decay_steps=2)
        made = dataclasses.replace(made, optimizer=own)
    values = Hyper.of(made)
    return values._replace(**{name: jnp.asarray(value, getattr(values, name).dtype) for name, value in changes.items()})


def arrays(seed: int, scale: float = 1.0, parameters: Mapping[str, Parameter] = PARAMETERS) -> dict[str, Any]:
    """Random values in the place of the weights."""
    rng = np.random.default_rng(seed)
    shapes = {path: parameter.shape for path, parameter in parameters.items()}
    return trees.unflatten({p: jnp.asarray(scale * rng.normal(size=shape), jnp.float32) for p, shape in shapes.items()})


def gradients(step: int) -> dict[str, Any]:
    """They grow, so that only some are clipped."""
    return arrays(step + 1, scale=0.02 * 2**step)


TRACES: list[OptimizerSettings] = []


def _updated(of: OptimizerSettings, numbers: Hyper, start: Any, given: Any) -> tuple[Any, Any]:
    TRACES.append(of)
    made = optimizer(of, numbers, PARAMETERS)
    return scanned(made, start, given)


def scanned(made: Any, start: Any, given: Any) -> tuple[Any, Any]:
    """Weights and state after an update from each of the stacked gradients."""

    def one(carry: Any, gradient: Any) -> tuple[Any, None]:
        params, state = carry
        change, state = made.update(gradient, state, params)
        return (optax.apply_updates(params, change), state), None

    return jax.lax.scan(one, (start, made.init(start)), given)[0]


_compiled = small.jit(_updated, static_argnums=0)


def updated(of: OptimizerSettings, numbers: Hyper, steps: int = STEPS) -> tuple[dict[str, Any], Any]:
    """Weights and state after updates, on the host."""
    return jax.device_get(_compiled(of, numbers, arrays(0), stacked(steps)))


def stacked(steps: int = STEPS) -> Any:
    """The gradients of several updates, one after the other in each leaf."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(gradients(step) for step in range(steps)))


# --- by hand ------------------------------------------------------------------------------------------------------

Direction = Callable[[np.ndarray, int], np.ndarray]


def slices(path: str, array: Any) -> Iterator[np.ndarray]:
    """The weights of single layers and experts in a leaf: matrices of kernels and tables, else vectors; views of it."""
    made = PARAMETERS[path]
    stack = [size for size, name in zip(made.shape, made.dimensions, strict=True) if name in {"layers", "experts"}]
    shape = (made.fan_in, made.fan_out) if made.kind == "kernel" else made.shape[len(stack) :]
    for position in itertools.product(*map(range, stack)):
        yield array[position].reshape(shape)


def by_hand(of: OptimizerSettings, numbers: Hyper, mean: bool = False) -> dict[str, Any]:
    """The weights after clipping by the norm of all gradients together, the rule, decay and the rate.

    With `mean` those that schedule-free training evaluates.
    """
    n = {name: float(value) for name, value in numbers._asdict().items()}
    params = {path: np.array(leaf, np.float64) for path, leaf in trees.flatten(arrays(0)).items()}
    own = {path: list(slices(path, leaf)) for path, leaf in params.items()}
    directions = {path: [direction(of, n, PARAMETERS[path].kind) for _ in own[path]] for path in own}
    free = {path: [FreeWeight(weight, n["beta1"]) for weight in own[path]] for path in own}
    for step, rate in enumerate(RATES):
        given = {path: np.array(leaf, np.float64) for path, leaf in trees.flatten(gradients(step)).items()}
        norm = math.sqrt(sum((leaf**2).sum() for leaf in given.values()))
        for path, leaf in given.items():
            decay = n["weight_decay"] * DECAYED[PARAMETERS[path].kind]
            for number, gradient in enumerate(slices(path, leaf * min(1.0, n["clip_norm"] / norm))):
                weight = own[path][number]
                change = n["learning_rate"] * rate * (directions[path][number](gradient, step + 1) + decay * weight)
                moved = free[path][number].after(change, rate) if of.name == "schedule_free" else weight - change
                weight[...] = moved
    if mean:
        for path, weights in own.items():
            for weight, averaged in zip(weights, free[path], strict=True):
                weight[...] = averaged.mean
    return trees.unflatten(params)


def direction(of: OptimizerSettings, n: Mapping[str, float], kind: str) -> Direction:
    """The rule for one weight, with what it remembers."""
    name = of.name if of.name != "muon" or kind == "kernel" else "adamw"
    first = second = rows = columns = np.zeros(())

    def adamw(g: np.ndarray, t: int) -> np.ndarray:
        nonlocal first, second
        first = n["beta1"] * first + (1 - n["beta1"]) * g
        second = n["beta2"] * second + (1 - n["beta2"]) * g**2
        return first / (1 - n["beta1"] ** t) / (np.sqrt(second / (1 - n["beta2"] ** t)) + n["epsilon"])

    def sgd(g: np.ndarray, t: int) -> np.ndarray:
        nonlocal first
        first = n["momentum"] * first + g
        return g + n["momentum"] * first if of.nesterov else first

    def rmsprop(g: np.ndarray, t: int) -> np.ndarray:
        nonlocal first, second
        second = n["beta2"] * second + (1 - n["beta2"]) * g**2
        first = n["momentum"] * first + g / (np.sqrt(second) + n["epsilon"])
        return first

    def lion(g: np.ndarray, t: int) -> np.ndarray:
        nonlocal first
        found = np.sign(n["beta1"] * first + (1 - n["beta1"]) * g)
        first = n["beta2"] * first + (1 - n["beta2"]) * g
        return found

    def adafactor(g: np.ndarray, t: int) -> np.ndarray:
        nonlocal first, second, rows, columns
        decay = 1 - t**-0.8
        if g.ndim == 2:
            rows = decay * rows + (1 - decay) * (g**2 + 1e-30).sum(axis=1)
            columns = decay * columns + (1 - decay) * (g**2 + 1e-30).sum(axis=0)
            moment = np.outer(rows, columns) / rows.sum()
        else:
            moment = second = decay * second + (1 - decay) * (g**2 + 1e-30)
        found = g / np.sqrt(moment)
        found /= max(1.0, math.sqrt((found**2).mean()))
        first = n["momentum"] * first + (1 - n["momentum"]) * found
        return first

    def muon(g: np.ndarray, t: int) -> np.ndarray:
        nonlocal first
        first = n["momentum"] * first + g
        x = g + n["momentum"] * first
        x = x / np.linalg.norm(x)
        for _ in range(of.muon_steps):
            x = 3.4445 * x - 4.7750 * (x @ x.T @ x) + 2.0315 * (x @ x.T @ x @ x.T @ x)
        return n["muon_scale"] * math.sqrt(max(g.shape)) * x

    def schedule_free(g: np.ndarray, t: int) -> np.ndarray:
        nonlocal second
        second = n["beta2"] * second + (1 - n["beta2"]) * g**2
        return g / (np.sqrt(second / (1 - n["beta2"] ** t)) + n["epsilon"])

    return {
        "adamw": adamw,
        "sgd": sgd,
        "rmsprop": rmsprop,
        "lion": lion,
        "adafactor": adafactor,
        "muon": muon,
        "schedule_free": schedule_free,
    }[name]


class FreeWeight:
    """One weight of schedule-free training: Defazio et al. 2024, equations 2 to 4, averaged by squared rates."""

    def __init__(self, weight: np.ndarray, beta: float):
        self.last, self.mean, self.beta = weight.copy(), weight.copy(), beta
        self.squares = 0.0
        self.largest = 0.0

    def after(self, change: np.ndarray, rate: float) -> np.ndarray:
        self.last = self.last - change
        self.largest = max(self.largest, rate)
        self.squares += self.largest**2
        share = self.largest**2 / self.squares
        self.mean = (1 - share) * self.mean + share * self.last
        return (1 - self.beta) * self.last + self.beta * self.mean

"""AdamW by hand, schedules at points worked out by hand, and numbers that change without compiling anew."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research import config, trees
from research.optim import Hyper, learning_rate, optimizer
from research.parameters import KINDS, Parameter
from research.settings import OptimizerSettings
from tests import small
from tests.small import assert_close

PARAMETERS = {kind: Parameter(kind, (4, 3), ("embed", "mlp"), kind, fan_in=4, fan_out=3, std=1.0) for kind in KINDS}
DECAYED = {"kernel": True, "embedding": True, "head": True, "norm": False, "bias": False}


def hyper(**changes: Any) -> Hyper:
    values = Hyper.of(
        config.from_nested({"train.num_steps": 6, "optimizer.warmup_steps": 2, "optimizer.decay_steps": 2})
    )
    return values._replace(**{name: jnp.asarray(value, getattr(values, name).dtype) for name, value in changes.items()})


def arrays(seed: int, scale: float = 1.0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {kind: jnp.asarray(scale * rng.normal(size=(4, 3)), jnp.float32) for kind in KINDS}


def updates(schedule: str, numbers: Hyper, steps: int = 5) -> dict[str, jax.Array]:
    """Weights after updates from gradients that grow, so that only some are clipped."""
    rule = OptimizerSettings(schedule=schedule)
    return _updates(rule, numbers, steps)


TRACES: list[str] = []


def _run(rule: OptimizerSettings, numbers: Hyper, steps: int) -> dict[str, jax.Array]:
    TRACES.append(rule.schedule)
    made = optimizer(rule, numbers, PARAMETERS)
    params = arrays(0)
    state = made.init(params)
    for step in range(steps):
        change, state = made.update(arrays(step + 1, scale=0.05 * 2**step), state, params)
        params = optax.apply_updates(params, change)
    return params


_updates = small.jit(_run, static_argnums=(0, 2))


def by_hand(numbers: Hyper, rates: list[float]) -> dict[str, np.ndarray]:
    """Loshchilov & Hutter 2019, algorithm 2, after clipping by the norm of all gradients together; in float64."""
    n = {name: float(value) for name, value in numbers._asdict().items()}
    params = {kind: np.asarray(array, np.float64) for kind, array in arrays(0).items()}
    first, second = ({kind: np.zeros((4, 3)) for kind in KINDS} for _ in range(2))
    for step, rate in enumerate(rates):
        gradients = {kind: np.asarray(a, np.float64) for kind, a in arrays(step + 1, scale=0.05 * 2**step).items()}
        norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
        for kind in KINDS:
            gradient = gradients[kind] * min(1.0, n["clip_norm"] / norm)
            first[kind] = n["beta1"] * first[kind] + (1 - n["beta1"]) * gradient
            second[kind] = n["beta2"] * second[kind] + (1 - n["beta2"]) * gradient**2
            mean = first[kind] / (1 - n["beta1"] ** (step + 1))
            square = second[kind] / (1 - n["beta2"] ** (step + 1))
            decay = n["weight_decay"] * params[kind] if DECAYED[kind] else 0.0
            params[kind] = params[kind] - rate * (mean / (np.sqrt(square) + n["epsilon"]) + decay)
    return params


# Of six updates two are warm-up (a third, two thirds of the peak) and, for wsd, two the final decay to a tenth.
RATES = {
    "constant": [1 / 3, 2 / 3, 1, 1, 1],
    "linear": [1 / 3, 2 / 3, 1, 0.775, 0.55],
    "cosine": [1 / 3, 2 / 3, 1, 0.1 + 0.45 * (1 + np.sqrt(0.5)), 0.55],
    "wsd": [1 / 3, 2 / 3, 1, 1, 1],
}


@pytest.mark.parametrize("schedule", RATES)
def test_five_updates_are_those_of_the_algorithm(schedule: str) -> None:
    numbers = hyper(learning_rate=0.03)
    assert_close(updates(schedule, numbers), by_hand(numbers, [0.03 * rate for rate in RATES[schedule]]))


def without_gradients(parameters: Any, params: Any, numbers: Hyper) -> Any:
    """The first update that weights get from decay alone."""
    rule = optimizer(OptimizerSettings(schedule="constant"), numbers, parameters)
    still = jax.tree.map(jnp.zeros_like, params)
    return small.jit(lambda p: rule.update(still, rule.init(p), p)[0])(params)


def test_every_kind_of_weight_is_decayed_or_not() -> None:
    params = arrays(0)
    change = without_gradients(PARAMETERS, params, hyper(learning_rate=0.1, weight_decay=0.5))
    for kind in KINDS:
        assert_close(change[kind], -0.1 / 3 * 0.5 * DECAYED[kind] * params[kind], 1e-7)


@pytest.mark.parametrize("variant", ["llama", "bert"])
def test_of_a_model_norms_and_biases_alone_are_not_decayed(variant: str) -> None:
    made = small.model(variant)
    change = without_gradients(made.parameters(), small.weights(made), hyper(learning_rate=0.1, weight_decay=0.5))
    still = {path for path, leaf in trees.flatten(change).items() if not np.asarray(leaf).any()}
    assert still == {path for path in made.parameters() if path.endswith("bias") or "norm" in path}


# --- traced numbers -----------------------------------------------------------------------------------------------

OTHER = {
    "learning_rate": 0.07,
    "final_fraction": 0.5,
    "weight_decay": 0.01,
    "beta1": 0.5,
    "beta2": 0.5,
    "epsilon": 0.1,
    "clip_norm": 0.1,
    "num_steps": 6,
    "warmup_steps": 1,
    "decay_steps": 3,
}


def test_every_number_changes_the_result_and_compiles_nothing_anew() -> None:
    assert set(Hyper._fields) == {*OTHER, "dropout", "momentum", "muon_scale", "ema_decay"}
    numbers = {"learning_rate": 0.03, "num_steps": 5}
    before = jax.device_get(updates("wsd", hyper(**numbers)))
    TRACES.clear()
    for name, value in OTHER.items():
        after = updates("wsd", hyper(**numbers | {name: value}))
        assert max(np.abs(after[kind] - before[kind]).max() for kind in KINDS) > 1e-4, name
    assert TRACES == []


def test_hyper_is_the_settings_numbers_as_scalars() -> None:
    of = config.from_nested(
        {
            "train.num_steps": 200,
            "model.dropout": 0.25,
            "optimizer.learning_rate": 0.5,
            "optimizer.schedule": "wsd",
            "optimizer.beta2": 0.75,
        }
    )
    found = Hyper.of(of)
    assert {(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(found)} == {((), "float32"), ((), "int32")}
    assert (found.num_steps, found.warmup_steps, found.decay_steps) == (200, 10, 40)
    assert (found.dropout, found.learning_rate, found.beta2) == (0.25, 0.5, 0.75)
    assert (found.final_fraction, found.weight_decay) == (np.float32(0.1), np.float32(0.1))


# --- schedules ----------------------------------------------------------------------------------------------------


def rate(schedule: str, step: int, **numbers: Any) -> float:
    return float(learning_rate(schedule, hyper(learning_rate=2.0, **numbers), jnp.asarray(step, jnp.int32))) / 2.0


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        ("constant", {0: 1 / 3, 1: 2 / 3, 2: 1, 9: 1, 10: 1, 1000: 1}),
        ("linear", {0: 1 / 3, 1: 2 / 3, 2: 1, 4: 0.775, 6: 0.55, 8: 0.325, 10: 0.1, 1000: 0.1}),
        ("cosine", {0: 1 / 3, 1: 2 / 3, 2: 1, 6: 0.55, 8: 0.1 + 0.45 * (1 - np.sqrt(0.5)), 10: 0.1, 1000: 0.1}),
        ("wsd", {0: 1 / 3, 1: 2 / 3, 2: 1, 5: 1, 6: 1, 7: 0.775, 8: 0.55, 9: 0.325, 10: 0.1, 1000: 0.1}),
    ],
)
def test_schedules_at_points_worked_out_by_hand(schedule: str, points: dict[int, float]) -> None:
    """Ten updates, of which two are warm-up and (for wsd) four the final decay, to a tenth of the peak."""
    found = {step: rate(schedule, step, num_steps=10, warmup_steps=2, decay_steps=4) for step in points}
    assert found == pytest.approx(points, rel=1e-6)


@pytest.mark.parametrize("schedule", RATES)
def test_edges_of_warm_up_and_decay(schedule: str) -> None:
    assert rate(schedule, 0, num_steps=10, warmup_steps=0, decay_steps=10) == 1.0
    only_warmup = [rate(schedule, step, num_steps=4, warmup_steps=4, decay_steps=1) for step in range(4)]
    assert only_warmup == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rate(schedule, 0, num_steps=1, warmup_steps=0, decay_steps=1) == 1.0


@pytest.mark.parametrize("schedule", RATES)
@pytest.mark.parametrize(("steps", "warmup", "decay"), [(1, 0, 1), (7, 6, 1), (50, 10, 20), (50, 0, 50), (50, 30, 20)])
def test_a_schedule_rises_to_its_peak_and_then_only_falls(schedule: str, steps: int, warmup: int, decay: int) -> None:
    numbers = hyper(learning_rate=1.0, num_steps=steps, warmup_steps=warmup, decay_steps=decay)
    rates = np.asarray(jax.vmap(lambda step: learning_rate(schedule, numbers, step))(jnp.arange(steps + 5)))
    assert (rates > 0).all() and (rates <= 1.0).all()
    assert (np.diff(rates[: warmup + 1]) > 0).all() and (np.diff(rates[warmup:]) <= 0).all()
    assert rates[warmup] == 1.0
    assert rates[-1] == pytest.approx(1.0 if schedule == "constant" else 0.1)

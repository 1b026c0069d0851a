"""Members of a population: each is the run that it would be alone, in one program for all of them."""

from typing import Any

import jax
import numpy as np
import pytest

from research.errors import UserError
from research.train.population import born_together, common_step, member_of, placed, together
from research.train.state import born_sharded, state_shapes
from research.train.step import make_step
from tests import small
from tests.small import assert_close, assert_same_bits

# What the members of a population may differ in, each number beside another.
NUMBERS: tuple[dict[str, Any], ...] = (
    {},
    {"seed": 7, "optimizer.learning_rate": 1e-2, "optimizer.weight_decay": 0.0, "optimizer.warmup_steps": 0},
    {"seed": 1, "model.dropout": 0.3, "optimizer.beta2": 0.99, "optimizer.clip_norm": 0.1, "optimizer.beta1": 0.5},
)
UPDATES = 4


def most_targets(objective: str, number: int) -> int:
    """Targets of a row, as a mask rate decides them."""
    return 8 if objective == "causal" else 2 + 3 * number


def batches(objective: str, of: Any, number: int, step: int) -> dict[str, np.ndarray]:
    return small.random_batch(of, 100 * number + step, most=most_targets(objective, number))


@pytest.fixture(scope="module", params=["causal", "masked"])
def population(request: pytest.FixtureRequest) -> tuple[Any, ...]:
    """What each member's state and metrics are after some updates together, and what they are alone."""
    shared: dict[str, Any] = {"model.dropout": 0.1, "objective.name": request.param, "objective.mask_rate": 0.5}
    # An update is a gradient over its own size: epsilon stands above the rounding, which is not what is compared.
    shared |= {"optimizer.epsilon": 1e-4}
    assemblies = [small.trainer(shared | own)[0] for own in NUMBERS]
    first, mesh = assemblies[0], assemblies[0].mesh
    shapes = state_shapes(first.settings, first.model, mesh, first.settings.parallel.preset)
    update = small.jit(jax.vmap(make_step(first.settings, first.model, first.objective)), donate_argnums=0)
    _, alone = small.trainer(shared)
    found: list[dict[str, np.ndarray]] = []
    separate: list[list[Any]] = [[] for _ in NUMBERS]
    with jax.set_mesh(mesh):
        state = born_together(assemblies, shapes)
        born = jax.device_get(state)
        for step in range(UPDATES):
            parts = [batches(request.param, of.settings, number, step) for number, of in enumerate(assemblies)]
            state, metrics = update(state, placed({n: np.stack([part[n] for part in parts]) for n in parts[0]}, mesh))
            found.append(jax.device_get(metrics))
        known = update._cache_size()
        others = born_together(assemblies[::-1], shapes)
        update(others, placed({name: np.stack([part[name] for part in parts]) for name in parts[0]}, mesh))
        programs = (known, update._cache_size())
        take = member_of(shapes)
        ends = [jax.device_get(take(state, number)) for number in range(len(NUMBERS))]
        for number, of in enumerate(assemblies):
            own = born_sharded(of.settings, of.model, shapes)
            for step in range(UPDATES):
                own, metrics = alone(own, small.placed(of, batches(request.param, of.settings, number, step)))
                separate[number].append(jax.device_get(metrics))
            separate[number].append(jax.device_get(own))
    return request.param, assemblies, shapes, born, found, ends, separate, programs


def test_each_member_is_born_as_it_is_alone(population: tuple[Any, ...]) -> None:
    _, assemblies, shapes, born, *_ = population
    with jax.set_mesh(assemblies[0].mesh):
        for number, of in enumerate(assemblies):
            own = jax.device_get(born_sharded(of.settings, of.model, shapes))
            assert_same_bits(jax.tree.map(lambda leaf, number=number: leaf[number], born), own)


def test_each_member_makes_the_updates_that_it_makes_alone(population: tuple[Any, ...]) -> None:
    objective, assemblies, _, _, found, ends, separate, _ = population
    for number in range(len(NUMBERS)):
        for step in range(UPDATES):
            own = {name: values[number] for name, values in found[step].items()}
            expected = separate[number][step]
            assert own["targets"] == expected["targets"]
            for name, tolerance in (("loss", 1e-5), ("learning_rate", 1e-9), ("gradient_norm", 1e-4)):
                assert_close(own[name], expected[name], tolerance)
        assert ends[number].step == UPDATES and ends[number].seed == assemblies[number].settings.seed
        assert_close(ends[number].params, separate[number][-1].params, 1e-4)
    losses = np.array([values["loss"] for values in found])
    assert len(np.unique(losses)) == losses.size  # they are different runs
    if objective == "masked":
        assert len(np.unique(found[0]["targets"])) == len(NUMBERS)


def test_no_number_of_a_member_compiles_the_update_anew(population: tuple[Any, ...]) -> None:
    *_, (before, after) = population
    assert before == after


def test_stacked_states_are_the_states() -> None:
    assembly, _ = small.trainer({"model.dropout": 0.1})
    shapes = state_shapes(assembly.settings, assembly.model, assembly.mesh, assembly.settings.parallel.preset)
    states = [small.state(assembly, seed=seed) for seed in (0, 5)]
    with jax.set_mesh(assembly.mesh):
        stacked, take = together(states, shapes), member_of(shapes)
        for number, state in enumerate(states):
            assert_same_bits(jax.device_get(take(stacked, number)), jax.device_get(state))


def test_members_go_on_from_the_newest_update_that_all_of_them_have() -> None:
    assert common_step([[], []]) == 0
    assert common_step([[5, 10], [5, 10], [10]]) == 10
    assert common_step([[5, 10], [5]]) == 5
    for steps in ([[5], []], [[5], [10]]):
        with pytest.raises(UserError) as error:
            common_step(steps)
        small.assert_one_sentence(str(error.value), "5")

"""States of every rule: born sharded and kept so, resumed to the bit, and the averages that are evaluated."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import trees
from research.checkpoint import Checkpoints, restore_parts
from research.cli import rundir
from research.kernels.choice import REFERENCE
from research.models import build
from research.optim import evaluated, evaluated_from, next_ema, optimizer
from research.parallel import mesh, rules
from research.settings.optimizer import NAMES
from research.train.assembly import assemble
from research.train.state import TrainState, born_sharded, initial_state, state_shapes
from tests import small
from tests.optim.cases import arrays, by_hand, hyper, rule, updated
from tests.small import assert_close, assert_same_bits

PRESETS = tuple(mesh.PRESET_AXES)
AVERAGED = {"optimizer.ema_decay": 0.9}
FREE = {"optimizer.name": "schedule_free", "optimizer.schedule": "constant"}


def changes_of(name: str) -> dict[str, Any]:
    """A rule with all that it may keep."""
    if name == "schedule_free":
        return FREE
    momentum = {"optimizer.momentum": 0.8} if name in {"sgd", "rmsprop", "adafactor", "muon"} else {}
    return {"optimizer.name": name, **momentum, **AVERAGED}


def step_of(of: Any, model: Any) -> Any:
    """The update from given gradients, as the training step makes it."""

    def step(state: TrainState, given: Any) -> TrainState:
        made = optimizer(of.optimizer, state.hyper, model.parameters())
        change, moments = made.update(given, state.optimizer, state.params)
        return state.after(jax.tree.map(jnp.add, state.params, change), moments)

    return step


@functools.cache
def shapes_of(name: str, preset: str, devices: int = 8) -> Any:
    of = small.settings({**changes_of(name), "parallel.preset": preset, "parallel.layers": "scan"})
    made = mesh.make_mesh(of.parallel, jax.devices()[:devices])
    model = build(of, REFERENCE)
    return of, model, state_shapes(of, model, made, preset)


@pytest.mark.parametrize("name", NAMES)
def test_every_leaf_lies_like_its_weight(name: str) -> None:
    of, model, shapes = shapes_of(name, "dp")
    for preset in PRESETS:
        grid = mesh.make_mesh(dataclasses.replace(of.parallel, preset=preset))
        weights = rules.parameter_shardings(model.parameters(), grid, preset)
        places = trees.flatten(rules.state_shardings(shapes, weights, grid))
        for path, leaf in trees.flatten(shapes).items():
            owner = next((weight for weight in weights if path.endswith(f"/{weight}")), None)
            if owner is None:
                assert leaf.shape == () and places[path].is_fully_replicated, path
                continue
            whole = model.parameters()[owner].shape
            parts = zip(leaf.shape, whole, weights[owner].shard_shape(whole), strict=True)
            assert places[path].shard_shape(leaf.shape) == tuple(s if n == w else 1 for n, w, s in parts), path
            assert leaf.shape != whole or places[path] == weights[owner], path


@pytest.mark.parametrize("name", NAMES)
def test_a_sharded_state_is_that_of_one_device_and_an_update_leaves_every_leaf_in_its_place(name: str) -> None:
    found = []
    for preset, devices in (("fsdp_tp", 8), ("dp", 1)):
        of, model, shapes = shapes_of(name, preset, devices)
        with jax.set_mesh(shapes.step.sharding.mesh):
            step = small.jit(step_of(of, model), donate_argnums=0).lower(shapes, shapes.params).compile()
            after = trees.flatten(step.output_shardings)
            for path, leaf in trees.flatten(shapes).items():
                assert after[path].is_equivalent_to(leaf.sharding, leaf.ndim), path
            state = jax.device_put(start_of(name), jax.tree.map(lambda leaf: leaf.sharding, shapes))
            for number in range(3):
                given = arrays(number, scale=0.1, parameters=model.parameters())
                places = jax.tree.map(lambda leaf: leaf.sharding, shapes.params)
                state = step(state, jax.device_put(given, places))
        found.append(jax.device_get(state))
    assert_close(*found)


@functools.cache
def start_of(name: str) -> TrainState:
    of, model, _ = shapes_of(name, "dp", 1)
    return jax.device_get(small.jit(lambda: initial_state(of, model))())


def test_a_state_of_other_shapes_is_born_sharded() -> None:
    of, model, shapes = shapes_of("adafactor", "fsdp_tp")
    state = born_sharded(of, model, shapes)
    assert_same_bits(jax.device_get(state.optimizer), start_of("adafactor").optimizer)
    for path, leaf in trees.flatten(state).items():
        assert leaf.sharding.is_equivalent_to(trees.flatten(shapes)[path].sharding, leaf.ndim), path


# --- checkpoints --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_run_resumes_to_the_bit(name: str, tmp_path: Path) -> None:
    of, model, _ = shapes_of(name, "dp", 1)
    step = small.jit(step_of(of, model))
    given = [arrays(number, scale=0.1, parameters=model.parameters()) for number in range(5)]
    straight = jax.device_put(start_of(name))
    with Checkpoints(tmp_path) as checkpoints:
        for number, gradient in enumerate(given):
            if number == 3:
                checkpoints.save(3, straight.kept())
            straight = step(straight, gradient)
        fresh = jax.device_put(start_of(name))
        kept, start = checkpoints.restore(jax.eval_shape(lambda: fresh).kept())
    assert start == 3
    resumed = fresh.with_kept(kept)
    for gradient in given[start:]:
        resumed = step(resumed, gradient)
    assert jax.tree.structure(resumed) == jax.tree.structure(straight)
    assert_same_bits(jax.device_get(resumed), jax.device_get(straight))


# --- averages -----------------------------------------------------------------------------------------------------


def test_the_average_of_weights_is_that_of_the_formula() -> None:
    numbers = hyper(ema_decay=0.3)
    mean = {"a": jnp.asarray([1.0, -2.0])}
    expected = np.asarray(mean["a"], np.float64)
    for step in range(8):
        weights = np.asarray([step, step**2], np.float64)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights
        mean = next_ema(mean, {"a": jnp.asarray(weights, jnp.bfloat16)}, numbers, jnp.asarray(step, jnp.int32))
    assert (1 + 2) / (10 + 2) < 0.3 < (1 + 3) / (10 + 3)
    assert_close(mean, {"a": expected.astype(np.float32)})


def test_a_training_step_averages_the_weights_and_learns_the_same() -> None:
    plain, _ = small.train({}, steps=3)
    states = [small.train(AVERAGED, steps=steps)[0] for steps in (0, 1, 2, 3)]
    assert_same_bits(states[3]._replace(ema=None, hyper=plain.hyper), plain)
    assert_same_bits(states[0].ema, states[0].params)
    mean = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), states[0].params)
    for step, state in enumerate(states[1:]):
        decay = (1 + step) / (10 + step)
        mean = jax.tree.map(lambda a, b, decay=decay: decay * a + (1 - decay) * b, mean, state.params)
        assert_close(state.ema, mean)
    of = small.settings(AVERAGED).optimizer
    assert_same_bits(jax.device_get(jax.device_put(states[3]).evaluated(of)), states[3].ema)
    assert_same_bits(jax.device_get(jax.device_put(plain).evaluated(small.settings().optimizer)), plain.params)


def test_schedule_free_training_evaluates_the_average_of_its_weights() -> None:
    of = rule("schedule_free", beta1=0.8)
    numbers = hyper(of, learning_rate=0.03)
    params, state = jax.device_put(updated(of, numbers))
    parts = {"params": params, "optimizer/1/z": state[1].z}
    found = jax.device_get(evaluated(parts, params, numbers.beta1))
    assert_close(found, by_hand(of, numbers, mean=True))
    assert max(np.abs(a - b).max() for _, (a, b) in small.zip_leaves(found, params)) > 1e-3


def test_frozen_weights_of_schedule_free_training_are_evaluated_as_they_are() -> None:
    of = rule("schedule_free", groups="attention=0")
    params, state = jax.device_put(updated(of, hyper(of)))
    wanted = evaluated_from(of, jax.eval_shape(lambda: params))["optimizer/1/z"]
    assert jax.tree.structure(wanted) == jax.tree.structure(state[1].z)
    found = evaluated({"params": params, "optimizer/1/z": state[1].z}, params, 0.9)
    start = arrays(0)["layers"]["attention"]
    assert_same_bits(jax.device_get(found["layers"]["attention"]), jax.device_get(start))


@pytest.mark.parametrize(
    ("changes", "stored"),
    [
        ({}, "float32"),
        (AVERAGED, "float32"),
        (AVERAGED, "bfloat16"),
        (FREE | {"optimizer.groups": "attention=0"}, "float32"),
    ],
    ids=str,
)
def test_the_verbs_read_the_weights_that_training_evaluates(
    changes: dict[str, Any], stored: str, tmp_path: Path
) -> None:
    of = small.settings({**changes, "model.parameter_dtype": stored, "parallel.preset": "fsdp"})
    assembly = assemble(of, small.VOCABULARY, devices=jax.devices()[:2])
    shapes = state_shapes(of, assembly.model, assembly.mesh, of.parallel.preset)
    with jax.set_mesh(assembly.mesh), Checkpoints(tmp_path / "checkpoints") as checkpoints:
        start = jax.device_get(small.jit(lambda: initial_state(of, assembly.model))())
        state = jax.device_put(start, jax.tree.map(lambda leaf: leaf.sharding, shapes))
        given = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.1), state.params)
        step = small.jit(step_of(of, assembly.model))
        state = jax.block_until_ready(step(step(state, given), given))
        checkpoints.save(2, state.kept())
        checkpoints.wait()
        expected = state.evaluated(of.optimizer)
    found, step_found = rundir.open_parameters(tmp_path, assembly, None)
    assert step_found == 2
    assert_same_bits(jax.device_get(found), jax.device_get(expected))
    for path, leaf in trees.flatten(found).items():
        shape = trees.flatten(shapes.params)[path]
        assert (leaf.dtype, leaf.sharding) == (shape.dtype, shape.sharding), path
    last = trees.flatten(jax.device_get(state.params))["embedding/tokens"]
    assert (np.asarray(found["embedding"]["tokens"]).tobytes() == last.tobytes()) == (changes == {})


def test_an_average_that_was_not_kept_is_not_made_up(tmp_path: Path) -> None:
    of = small.settings()
    state = jax.jit(lambda: initial_state(of, build(of, REFERENCE)))()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state.kept())
    wanted = evaluated_from(small.settings(AVERAGED).optimizer, jax.eval_shape(lambda: state.params))
    with pytest.raises(Exception, match="ema/embedding/tokens is absent in the checkpoint"):
        restore_parts(tmp_path, wanted)

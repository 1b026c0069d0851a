"""What models declare is what they make, and initial weights are functions of a seed."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import trees
from research.kernels import Pattern
from research.kernels.choice import REFERENCE
from research.models import Model
from research.models.attention import Places
from research.models.stack import Block
from tests import small
from tests.small import LENGTH, VARIANTS, assert_same_bits


@pytest.mark.parametrize("variant", VARIANTS)
def test_declared_weights_are_those_that_init_and_the_block_make(variant: str) -> None:
    made = small.model(variant, num_layers=3)
    declared = {path: parameter.shape for path, parameter in made.parameters().items()}
    shapes = trees.flatten(jax.eval_shape(made.init, jax.random.key(0)))
    assert {path: leaf.shape for path, leaf in shapes.items()} == declared
    assert {leaf.dtype for leaf in shapes.values()} == {jnp.dtype(jnp.float32)}
    assert all(parameter.path == path for path, parameter in made.parameters().items())

    block = Block(made.settings, made.kernels, made.constrain, local=False, cross=False)
    batch, x = small.inputs(np.zeros((1, LENGTH))), jnp.zeros((1, LENGTH, made.settings.embed_dim))
    places, layer = Places(batch["segment_ids"], batch["positions"]), jnp.zeros((), jnp.int32)
    own = jax.eval_shape(
        lambda: block.init(jax.random.key(0), x, layer, places, Pattern(causal=True), None, None, None)
    )
    of_layers = {path: shape[1:] for path, shape in declared.items() if path.startswith("layers/")}
    assert {f"layers/{path}": leaf.shape for path, leaf in trees.flatten(own["params"]).items()} == of_layers


def init(made: Model, seed: int) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in trees.flatten(initialised(made)(jax.random.key(seed))).items()}


@functools.cache
def initialised(made: Model) -> Any:
    return small.jit(made.init)


SHALLOW, DEEP = (small.model("bert", num_layers=layers, embed_dim=32, mlp_dim=128) for layers in (2, 5))


def test_init_is_a_function_of_the_seed_alone() -> None:
    first, again, other = init(DEEP, 7), init(DEEP, 7), init(DEEP, 8)
    assert_same_bits(again, first)
    for path, leaf in first.items():
        assert (leaf == other[path]).all() == (DEEP.parameters()[path].std == 0.0), path


def test_init_does_not_depend_on_how_a_model_is_executed() -> None:
    other = dataclasses.replace(DEEP, scan=0, remat="full", kernels=REFERENCE)
    programs = [str(jax.make_jaxpr(made.init)(jax.random.key(0))) for made in (DEEP, other)]
    assert programs[0] == programs[1]


def test_initial_weights_have_the_declared_mean_and_deviation_and_no_two_are_alike() -> None:
    seen: list[np.ndarray] = []
    for path, leaf in init(DEEP, 0).items():
        parameter = DEEP.parameters()[path]
        for values in leaf if path.startswith("layers/") else leaf[None]:
            if parameter.std == 0.0:
                assert (values == parameter.mean).all(), path
                continue
            error = parameter.std / np.sqrt(values.size)
            assert abs(np.mean(values, dtype=np.float64) - parameter.mean) < 5 * error, path
            assert abs(np.std(values, dtype=np.float64) - parameter.std) < 5 * error, path
            normal = np.ravel(values)[:128] / parameter.std
            assert all(np.abs(normal - other).max() > 0.5 for other in seen), path
            seen.append(normal)


def test_a_layers_initial_weights_do_not_depend_on_how_many_there_are() -> None:
    few, many, scaled = init(SHALLOW, 3), init(DEEP, 3), []
    for path, leaf in few.items():
        before, after = SHALLOW.parameters()[path].std, DEEP.parameters()[path].std
        own = many[path][:2] if path.startswith("layers/") else many[path]
        if before == after:
            assert_same_bits(own, leaf)
        else:  # residual branches shrink with the depth, by their declared deviation alone
            scaled.append(path)
            np.testing.assert_allclose(before / after, np.sqrt(5 / 2), rtol=1e-12)
            np.testing.assert_allclose(own / after, leaf / before, rtol=1e-6)
    assert scaled == ["layers/attention/out", "layers/mlp/down"]

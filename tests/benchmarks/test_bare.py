"""The bare step and Isoflop's compute the same thing, so that the benchmark compares equals."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import bare, isoflop
from benchmarks.gate import random_batches
from benchmarks.shapes import SHAPES, Shape
from research.train.state import initial_state
from research.train.step import make_step
from tests import small

TINY = Shape(embed=32, layers=2, heads=4, mlp=64, vocabulary=320, sequence=24, batch=4)


@pytest.fixture(autouse=True)
def promotion() -> Iterator[None]:
    """The bare step adds a bias to a batch without ceremony, and a float to an integer."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def bare_weights(params: dict) -> bare.Params:
    """Isoflop's weights in the bare step's arrangement."""
    layers, width = params["layers"], params["embedding"]["tokens"].shape[1]
    attention, mlp = layers["attention"], layers["mlp"]

    def layer(number: int) -> bare.Params:
        def norm(name: str) -> bare.Params:
            return {key: layers[name][key][number] for key in ("scale", "bias")}

        projections = [attention[name][number].reshape(width, -1) for name in ("query", "key", "value")]
        return {
            "norm1": norm("attention_norm"),
            "qkv": jnp.concatenate(projections, axis=1),
            "out": attention["out"][number].reshape(-1, width),
            "norm2": norm("mlp_norm"),
            "up": mlp["up"][number],
            "down": mlp["down"][number],
        }

    return {
        **params["embedding"],
        "layers": [layer(number) for number in range(attention["query"].shape[0])],
        "norm": params["final_norm"],
    }


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_both_steps_make_the_same_updates(kernels: str) -> None:
    assembly = isoflop.assembly_of(TINY, kernels)
    # The bare step does not clip.
    settings = dataclasses.replace(
        assembly.settings, optimizer=dataclasses.replace(assembly.settings.optimizer, clip_norm=1e9)
    )
    with jax.set_mesh(assembly.mesh):
        state = small.jit(lambda: initial_state(settings, assembly.model))()
        step = small.jit(make_step(settings, assembly.model, assembly.objective))
        rule = bare.optimizer()
        params = bare_weights(state.params)
        moments, bare_step = rule.init(params), bare.make_step(TINY, rule)
        for batch in random_batches(TINY)[:3]:
            state, metrics = step(state, jax.tree.map(jnp.asarray, isoflop.batch_of(batch)))
            params, moments, loss = bare_step(params, moments, jnp.asarray(batch.tokens), jnp.asarray(batch.targets))
            np.testing.assert_allclose(float(metrics["loss"]), float(loss), rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), bare_weights(state.params), params)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_both_models_have_the_same_size(name: str) -> None:
    shape = SHAPES[name]
    weights = jax.eval_shape(lambda key: bare.init(key, shape), jax.random.key(0))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(weights))
    assert isoflop.assembly_of(shape).count.parameters == parameters

"""A small state of every kind of leaf, and events that are kept to be looked at."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.checkpoint import Checkpoints


class Moments(NamedTuple):
    count: jax.Array
    mu: Any
    nu: Any


def make_state(step: int, width: int = 16, sharding: jax.sharding.Sharding | None = None) -> dict[str, Any]:
    """A state of a NamedTuple, an empty node, several dtypes and sizes; its values depend on the step."""
    keys = jax.random.split(jax.random.key(step), 3)
    params = {
        "embed": {"table": jax.random.normal(keys[0], (64, width))},
        "layers": {
            "kernel": jax.random.normal(keys[1], (8, width, 24)),
            "scale": jnp.full((8, width), 0.5, jnp.bfloat16),
        },
    }
    moments = Moments(jnp.array(step, jnp.int32), jax.tree.map(jnp.ones_like, params), jax.tree.map(jnp.square, params))
    state = {
        "step": jnp.array(step, jnp.int32),
        "params": params,
        "optimizer": (moments, (), {"mask": jnp.arange(8) % 2 == 0}),
    }
    if sharding is not None:
        state = jax.tree.map(
            lambda leaf: jax.device_put(leaf, sharding if leaf.ndim > 1 else replicated(sharding)), state
        )
    return state


def replicated(sharding: jax.sharding.Sharding) -> jax.sharding.NamedSharding:
    assert isinstance(sharding, jax.sharding.NamedSharding)
    return jax.NamedSharding(sharding.mesh, jax.P())


def target_of(state: Any, sharding: jax.sharding.Sharding | None = None) -> Any:
    """The shapes of a state, to be restored with this sharding of matrices (or on one device)."""

    def abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
        if sharding is None:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        place = sharding if leaf.ndim > 1 else replicated(sharding)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    return jax.tree.map(abstract, state)


def assert_same_bits(left: Any, right: Any) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


class Events(list):
    """The events that came, callable as a receiver."""

    def __call__(self, kind: str, fields: dict[str, Any]) -> None:
        self.append((kind, fields))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self if name == kind]


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture(scope="session")
def three_saved(tmp_path_factory):
    """A directory with the good steps 1, 2 and 3: tests damage copies of it."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpoints(directory, keep_last=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, make_state(step))
    return directory

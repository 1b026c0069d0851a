"""A mesh changes where numbers are, not what they are: twenty updates of random tokens against those of one device."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from tests import small

DROPPED = {"model.dropout": 0.1}  # compiled with dropout; its rate is a traced number
MESHES: dict[str, dict[str, Any]] = {
    "dp": {"parallel.preset": "dp"},
    "fsdp": {"parallel.preset": "fsdp"},
    "tp": {"parallel.preset": "tp"},
    "fsdp_tp": {"parallel.preset": "fsdp_tp", **DROPPED},
    "fsdp in two replicas": {"parallel.preset": "fsdp", "parallel.mesh.replica": 2, "train.accumulation": 2},
}
MASKED = {"objective.name": "masked", "objective.mask_rate": 0.5, "model.num_layers": 1}


@functools.cache
def losses(mesh: str | None, rate: float) -> np.ndarray:
    changes, devices = (DROPPED, 1) if mesh is None else (MESHES[mesh], 8)
    state, metrics = small.train(changes, devices=devices, dropout=rate)
    assert int(state.step) == len(metrics) == 20
    return np.array([row["loss"] for row in metrics])


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_gives_the_losses_of_one_device(mesh: str) -> None:
    np.testing.assert_allclose(losses(mesh, 0.0), losses(None, 0.0), rtol=0, atol=1e-5)


def test_a_mesh_drops_the_activations_that_one_device_drops() -> None:
    np.testing.assert_allclose(losses("fsdp_tp", 0.1), losses(None, 0.1), rtol=0, atol=1e-5)
    assert np.abs(losses(None, 0.1) - losses(None, 0.0)).max() > 1e-3


def test_a_mesh_gives_the_masked_losses_of_one_device() -> None:
    batches = functools.partial(small.random_batch, most=8)
    found = [
        small.train(MASKED | mesh, devices=devices, steps=5, batches=batches)[1]
        for mesh, devices in (({}, 1), ({"parallel.preset": "fsdp_tp"}, 8))
    ]
    alone, sharded = ([row["loss"] for row in metrics] for metrics in found)
    np.testing.assert_allclose(sharded, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["fsdp", "fsdp_tp"])
def test_an_update_keeps_the_state_where_it_was_born(name: str) -> None:
    assembly, update = small.trainer(MESHES[name], 8)
    before = small.state(assembly)
    places = jax.tree.map(lambda leaf: leaf.sharding, before)
    with jax.set_mesh(assembly.mesh):
        after, metrics = update(before, small.placed(assembly, small.random_batch(assembly.settings, 0)))
    for leaf, place in zip(jax.tree.leaves(after), jax.tree.leaves(places), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
    assert all(leaf.is_fully_replicated for leaf in metrics.values())

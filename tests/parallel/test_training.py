"""A mesh changes where numbers are, not what they are: updates of random tokens against those of one device."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import tests
from research.errors import UserError
from research.parallel import flags, mesh
from research.plan import topologies
from research.settings import Settings
from research.train.assembly import assemble
from tests import small
from tests.small import assert_one_sentence

DROPPED = {"model.dropout": 0.1}  # compiled with dropout; its rate is a traced number
RING = {"parallel.preset": "fsdp_sp", "parallel.mesh.sequence": 4, "parallel.sequence_attention": "ring"}
MESHES: dict[str, dict[str, Any]] = {
    "dp": {"parallel.preset": "dp"},
    "fsdp": {"parallel.preset": "fsdp"},
    "tp": {"parallel.preset": "tp"},
    "fsdp_tp": {"parallel.preset": "fsdp_tp", **DROPPED},
    "fsdp in two replicas": {"parallel.preset": "fsdp", "parallel.mesh.replica": 2, "train.accumulation": 2},
    "fsdp_tp_sp": {"parallel.preset": "fsdp_tp_sp"},
    "ring": RING,
    "references": {"parallel.preset": "fsdp_tp_sp", "parallel.kernels": "reference"},
}
SEQ2SEQ = {"model.architecture": "encoder_decoder", "objective.name": "span_corruption", "model.num_layers": 1}
EXPERTS = {"model.num_experts": 8, "model.mlp_dim": 32, "model.num_layers": 1}
# Other models and objectives, each on meshes that split it in another way.
OTHERS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "masked": (
        {"objective.name": "masked", "objective.mask_rate": 0.5, "model.num_layers": 1},
        [{"parallel.preset": "fsdp_tp"}, RING],
    ),
    "experts": (
        EXPERTS,
        [{"parallel.preset": "fsdp_ep"}, {"parallel.preset": "fsdp_tp_sp", "parallel.mesh.expert": 2}],
    ),
    "experts with places": (EXPERTS | {"model.expert_capacity": 1.0}, [{"parallel.preset": "fsdp_ep"}]),
    "two stacks": (SEQ2SEQ, [{"parallel.preset": "fsdp_tp_sp"}, RING]),
    "lstm": ({"model.architecture": "lstm", "model.num_layers": 1}, [{"parallel.preset": "fsdp_sp"}]),
    "averaging": ({"model.architecture": "mlp", "model.num_layers": 1}, [{"parallel.preset": "fsdp_sp"}]),
}


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


@functools.cache
def others(name: str, number: int | None) -> list[dict[str, np.ndarray]]:
    model, meshes = OTHERS[name]
    changes, devices = (model, 1) if number is None else (model | meshes[number], 8)
    batches: Any = functools.partial(small.random_batch, most=8) if name == "masked" else small.random_batch
    batches = two_sided if name == "two stacks" else batches
    return small.train(changes, devices=devices, steps=3, batches=batches)[1]


def two_sided(of: Settings, step: int) -> dict[str, np.ndarray]:
    """A batch with another one for the encoder."""
    read = small.random_batch(of, 100 + step)
    inputs = ("tokens", "segment_ids", "positions")
    return small.random_batch(of, step) | {f"encoder_{name}": read[name] for name in inputs}


@pytest.mark.parametrize(
    ("name", "number"), [(name, n) for name, (_, all_) in OTHERS.items() for n in range(len(all_))]
)
def test_every_kind_of_model_gives_the_losses_and_gradients_of_one_device(name: str, number: int) -> None:
    for sharded, alone in zip(others(name, number), others(name, None), strict=True):
        np.testing.assert_allclose(sharded["loss"], alone["loss"], rtol=0, atol=1e-5)
        found, expected = sharded["gradient_norm_by_layer"], alone["gradient_norm_by_layer"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["fsdp", "fsdp_tp_sp"])
def test_an_update_keeps_the_state_where_it_was_born(name: str) -> None:
    assembly, update = small.trainer(MESHES[name], 8)
    before = small.state(assembly)
    places = jax.tree.map(lambda leaf: leaf.sharding, before)
    with jax.set_mesh(assembly.mesh):
        after, metrics = update(before, small.placed(assembly, small.random_batch(assembly.settings, 0)))
    for leaf, place in zip(jax.tree.leaves(after), jax.tree.leaves(places), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
    assert all(leaf.is_fully_replicated for leaf in metrics.values())


SIXTEEN = """
import json, tests.conftest
from tests import small
changes = {"model.num_layers": 1, "parallel.preset": "fsdp_tp_sp", "parallel.mesh.replica": 2}
rows = small.train(changes, devices=16, steps=2)[1]
print(json.dumps([float(row["loss"]) for row in rows]))
"""


def test_sixteen_devices_in_two_replicas_give_the_losses_of_one() -> None:
    """Slices, weights in parts, positions and heads at once."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=16")
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(Path(tests.__path__[0]).parent)}
    ran = subprocess.run([sys.executable, "-c", SIXTEEN], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    alone = [row["loss"] for row in small.train({"model.num_layers": 1}, steps=2)[1]]
    np.testing.assert_allclose(json.loads(ran.stdout.splitlines()[-1]), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "mentioned"),
    [
        ({"parallel.preset": "fsdp_sp", "data.sequence_length": 17}, ["data.sequence_length=17", "mesh.sequence=2"]),
        ({"parallel.preset": "fsdp_ep", **EXPERTS, "model.num_experts": 3}, ["model.num_experts=3", "mesh.expert=2"]),
        (
            {"parallel.preset": "fsdp_sp", "model.embed_dim": 36, "model.num_heads": 6},
            ["model.embed_dim=36", "fsdp=4", "sequence=2"],
        ),
        (
            {"parallel.preset": "dp", "parallel.mesh.data": 2, "parallel.mesh.tensor": 4, "model.num_heads": 2},
            ["model.num_heads=2", "tensor=4"],
        ),
        ({"parallel.preset": "fsdp_tp", "model.num_kv_heads": 1}, ["model.num_kv_heads=1", "tensor=2"]),
        ({"parallel.preset": "fsdp_ep", "train.batch_size": 12}, ["train.batch_size=12"]),
        ({"parallel.attention": "splash"}, ["parallel.attention=splash", "TPU"]),
    ],
)
def test_what_a_mesh_does_not_divide_is_refused_before_anything_is_compiled(
    changes: dict[str, Any], mentioned: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        assemble(small.settings(changes), small.VOCABULARY)
    assert_one_sentence(str(caught.value), *mentioned)


# --- what a compiler is told ------------------------------------------------------------------------------------------


def test_options_are_those_of_the_platform_that_the_user_does_not_name(monkeypatch: pytest.MonkeyPatch) -> None:
    made = mesh.make_mesh(small.settings().parallel)
    monkeypatch.setitem(flags.OPTIONS, "cpu", ({"xla_single": True}, {"xla_one": True, "xla_two": 2}))
    assert flags.compiler_options(made) == {"xla_one": True, "xla_two": 2}
    assert flags.compiler_options(made, "reference") == {}
    assert flags.compiler_options(mesh.make_mesh(small.settings().parallel, jax.devices()[:1])) == {"xla_single": True}
    monkeypatch.setenv("XLA_FLAGS", "--xla_one=false --other")
    assert flags.compiler_options(made) == {"xla_two": 2}
    kept = flags.record(made)
    assert kept["flags_version"] == flags.VERSION and kept["compiler_options"] == {"xla_two": 2}


@pytest.mark.parametrize(("topology", "fused"), [("v4:2x2x1", 0), ("v5e:2x2", 3), ("v5p:2x2x1", 0), ("v6e:2x2", 0)])
def test_gathers_are_fused_with_products_where_the_compiler_takes_it(topology: str, fused: int) -> None:
    made = jax.sharding.Mesh(np.array(topologies.parse(topology).devices()), ("fsdp",))
    options = flags.compiler_options(made)
    assert sum(name.startswith("xla_tpu_enable_async_collective_fusion") for name in options) == fused
    assert options["xla_enable_async_all_gather"] is True
    assert flags.compiler_options(jax.sharding.Mesh(made.devices[:1], ("fsdp",))) == {}


def test_variables_that_are_set_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    first, *rest = flags.ENVIRONMENT
    monkeypatch.setenv(first, "mine")
    for name in rest:
        monkeypatch.delenv(name, raising=False)
    flags.set_environment()
    assert os.environ[first] == "mine" and all(os.environ[name] == flags.ENVIRONMENT[name] for name in rest)
    for name in rest:
        monkeypatch.setenv(name, "")


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_the_compiler_knows_every_option(platform: str) -> None:
    """XLA's own, which every build of it parses; `tests/tpu_aot` tries a TPU's with its compiler."""
    for options in flags.OPTIONS[platform]:
        jax.jit(jax.numpy.negative, compiler_options=options or None)(1.0)

"""Sharding tables cover what models declare, and states are born as the tables say."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from research import trees
from research.errors import UserError
from research.kernels import Pattern
from research.kernels.choice import REFERENCE
from research.models import build
from research.parallel import mesh, rules
from research.settings import AXES, Settings
from research.settings import parallel as settings
from research.settings.families import FAMILIES
from research.train.state import TrainState, born_sharded, initial_state, state_shapes
from tests import small
from tests.small import VARIANTS, assert_one_sentence, assert_same_bits

PRESETS = tuple(mesh.PRESET_AXES)


def test_every_preset_of_the_settings_has_a_table_and_axes() -> None:
    assert tuple(rules.PARAMETERS) == PRESETS
    for table in (*rules.PARAMETERS.values(), rules.ACTIVATIONS):
        assert {axis for axes in table.values() for axis in axes} <= set(AXES)
    used = {preset: {axis for axes in table.values() for axis in axes} for preset, table in rules.PARAMETERS.items()}
    own = {"dp": set(), "fsdp": {"fsdp"}, "tp": {"tensor"}, "fsdp_tp": {"fsdp", "tensor"}, "fsdp_ep": {"fsdp"}}
    own |= {"fsdp_sp": {"fsdp", "sequence"}, "fsdp_tp_sp": {"fsdp", "sequence", "tensor"}}
    assert used == {preset: axes | {"expert"} for preset, axes in own.items()}
    assert PRESETS == settings.PRESETS


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_dimension_of_every_model_has_a_row(variant: str, preset: str) -> None:
    changes = {f"model.{name}": value for name, value in VARIANTS[variant].items() if name != "num_kv_heads"}
    of = small.settings({**changes, "parallel.preset": preset})
    made = mesh.make_mesh(of.parallel)
    parameters = build(of, REFERENCE).parameters()
    shardings = rules.parameter_shardings(parameters, made, preset)
    assert set(shardings) == set(parameters)
    for path, parameter in parameters.items():
        shape = shardings[path].shard_shape(parameter.shape)
        for size, shard, name in zip(parameter.shape, shape, parameter.dimensions, strict=True):
            assert size // shard == np.prod([made.shape[axis] for axis in rules.PARAMETERS[preset][name]]), path
    kernels = [path for path, parameter in parameters.items() if parameter.kind in {"kernel", "head"}]
    assert all(shardings[path].is_fully_replicated == (preset == "dp") for path in kernels)


def test_an_axis_splits_one_dimension_of_a_weight() -> None:
    """Experts over `expert`; what is no expert's has its width there, too."""
    of = small.settings({"parallel.preset": "fsdp_ep", "model.num_experts": 4})
    found = rules.parameter_shardings(build(of, REFERENCE).parameters(), mesh.make_mesh(of.parallel), "fsdp_ep")
    assert found["layers/experts/gate"].spec == PartitionSpec((), ("expert",), ("fsdp",), ())
    assert found["layers/attention/out"].spec == PartitionSpec((), (), (), ("fsdp", "expert"))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_layout(family: str, preset: str) -> None:
    parameters = small.model(family, embed_dim=32, num_heads=8, num_kv_heads=None, mlp_dim=64).parameters()
    made = mesh.make_mesh(small.settings({"parallel.preset": preset}).parallel)
    shardings = rules.parameter_shardings(parameters, made, preset)
    kernels = [path for path, parameter in parameters.items() if "mlp" in parameter.dimensions and parameter.size > 256]
    assert kernels and all(shardings[path].is_fully_replicated == (preset == "dp") for path in kernels)


def test_a_dimension_without_a_row_raises() -> None:
    with pytest.raises(KeyError, match="hands"):
        rules.axes_of(("layers", "hands"), rules.PARAMETERS["fsdp"])
    assert rules.axes_of(("layers", None, "embed"), rules.PARAMETERS["fsdp"]) == [(), (), ("fsdp",)]


@pytest.mark.parametrize(
    ("changes", "mentioned"),
    [
        ({"parallel.preset": "fsdp", "model.embed_dim": 36, "model.head_dim": 4}, "model.embed_dim=36"),
        ({"parallel.preset": "tp", "model.num_kv_heads": 2}, "model.num_kv_heads=2"),
        ({"parallel.preset": "tp", "model.num_heads": 4}, "model.num_heads=4"),
        ({"parallel.preset": "tp", "model.mlp_dim": 65}, "model.mlp_dim=65"),
        ({"parallel.preset": "tp", "tokenizer.vocab_size": 321}, "tokenizer.vocab_size=321"),
    ],
)
def test_a_weight_that_the_mesh_does_not_divide_is_one_sentence(changes: dict[str, Any], mentioned: str) -> None:
    of = small.settings(changes)
    with pytest.raises(UserError) as caught:
        rules.parameter_shardings(build(of, REFERENCE).parameters(), mesh.make_mesh(of.parallel), of.parallel.preset)
    axis = {"fsdp": "parallel.mesh.fsdp=8", "tp": "parallel.mesh.tensor=8"}[of.parallel.preset]
    assert_one_sentence(str(caught.value), mentioned, axis, f"parallel.preset={of.parallel.preset}")


# --- activations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_activation_that_a_model_names_has_a_row(variant: str) -> None:
    named: set[str | None] = set()

    def constrain(x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
        assert len(names) == x.ndim
        named.update(names)
        return x

    made = small.model(variant, constrain=constrain)
    batch = small.inputs(np.zeros((2, small.LENGTH)))

    def run(params: Any) -> jax.Array:
        return made.unembed(params, made.apply(params, batch, pattern=Pattern(causal=True)).hidden)

    jax.eval_shape(run, small.weights(made))
    assert named == {"batch", "sequence", "embed", "heads", "head_dim", "mlp", "vocab"}
    assert named <= set(rules.ACTIVATIONS)


@pytest.mark.parametrize("devices", [1, 8])
def test_constrain_refuses_names_that_it_does_not_know(devices: int) -> None:
    constrain = rules.constrainer(mesh.make_mesh(small.settings().parallel, jax.devices()[:devices]))
    with pytest.raises(KeyError, match="batsh"):
        constrain(jnp.zeros((8, 4)), ("batsh", "embed"))
    with pytest.raises(AssertionError):
        constrain(jnp.zeros((8, 4)), ("batch",))


def test_constrain_pins_the_layout_where_the_axes_divide_it() -> None:
    made = mesh.make_mesh(small.settings({"parallel.preset": "fsdp_tp"}).parallel)
    constrain = rules.constrainer(made)
    names = ("batch", "sequence", "heads", "head_dim")
    pinned = jax.jit(lambda x: constrain(x, names))(jnp.zeros((8, 3, 4, 5)))
    assert pinned.sharding.shard_shape(pinned.shape) == (2, 3, 2, 5)
    odd = jax.jit(lambda x: constrain(x, names))(jnp.zeros((6, 3, 4, 5)))
    assert odd.sharding.shard_shape(odd.shape) == (6, 3, 2, 5)


# --- states -------------------------------------------------------------------------------------------------------


def born(preset: str) -> tuple[Settings, Any, TrainState]:
    of = small.settings({"parallel.preset": preset, "parallel.layers": "scan"})
    made = mesh.make_mesh(of.parallel)
    model = build(of, REFERENCE)
    return of, model, state_shapes(of, model, made, preset)


@pytest.mark.parametrize("preset", PRESETS)
def test_moments_lie_like_their_weights_and_scalars_everywhere(preset: str) -> None:
    _, model, shapes = born(preset)
    weights = rules.parameter_shardings(model.parameters(), shapes.step.sharding.mesh, preset)
    owners = dict.fromkeys(weights, 0)
    for path, leaf in trees.flatten(shapes).items():
        owner = next((weight for weight in weights if path.endswith(f"/{weight}")), None)
        if owner is None:
            assert leaf.shape == () and leaf.sharding.is_fully_replicated, path
        else:
            owners[owner] += 1
            assert leaf.sharding == weights[owner] and leaf.shape == model.parameters()[owner].shape, path
    assert set(owners.values()) == {3}  # the weight, its first and its second moment


def test_a_leaf_that_no_weight_lends_its_sharding_raises() -> None:
    made = mesh.make_mesh(small.settings().parallel)
    shardings = {"layers/scale": NamedSharding(made, PartitionSpec())}
    with pytest.raises(KeyError, match="other/bale"):
        rules.state_shardings({"other": {"bale": jnp.zeros(3)}}, shardings, made)


def test_a_state_is_born_sharded_and_equal_to_the_bit() -> None:
    of, model, shapes = born("fsdp_tp")
    state = born_sharded(of, model, shapes)
    alone = jax.jit(lambda: initial_state(of, model))()
    assert_same_bits(jax.device_get(state), jax.device_get(alone))
    for path, leaf in trees.flatten(state).items():
        expected = trees.flatten(shapes)[path]
        assert leaf.sharding.is_equivalent_to(expected.sharding, leaf.ndim), path
        assert {shard.data.shape for shard in leaf.addressable_shards} == {expected.sharding.shard_shape(leaf.shape)}


def test_no_device_ever_holds_a_whole_weight_of_a_state_that_is_born_sharded() -> None:
    of, model, shapes = born("fsdp_tp")
    shardings = jax.tree.map(lambda shape: shape.sharding, shapes)
    program = small.jit(lambda: initial_state(of, model), out_shardings=shardings).lower().compile().as_text()
    sizes = (shape.split(",") for shape in re.findall(r"\w+\[([\d,]+)\]", program))
    held = max(int(np.prod([int(size) for size in shape])) for shape in sizes)
    shard = max(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) for leaf in jax.tree.leaves(shapes))
    assert shard <= held <= 2 * shard < max(leaf.size for leaf in jax.tree.leaves(shapes))

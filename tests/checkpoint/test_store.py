import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.checkpoint import Checkpoints, restore_parameters
from research.errors import UserError

from .conftest import assert_same_bits, make_state, target_of


def fsdp(size: int = 8) -> jax.sharding.NamedSharding:
    mesh = jax.make_mesh((size,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:size])
    return jax.NamedSharding(mesh, jax.P("fsdp"))


def two_axes() -> jax.sharding.NamedSharding:
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    return jax.NamedSharding(mesh, jax.P("tensor", "data"))


def data_parallel() -> jax.sharding.NamedSharding:
    return jax.NamedSharding(fsdp().mesh, jax.P())


MESHES = {"one device": lambda: None, "fsdp": fsdp, "half": lambda: fsdp(4), "dp": data_parallel, "two axes": two_axes}


@pytest.mark.parametrize("source", ["one device", "fsdp"])
def test_restored_bit_by_bit_onto_any_mesh(tmp_path, source):
    state = make_state(7, sharding=MESHES[source]())
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, state)
        for make in MESHES.values():
            target = target_of(state, make())
            restored, step = checkpoints.restore(target)
            assert step == 7
            assert_same_bits(restored, state)
            for leaf, asked in zip(jax.tree.leaves(restored), jax.tree.leaves(target), strict=True):
                assert asked.sharding is None or leaf.sharding.is_equivalent_to(asked.sharding, leaf.ndim)


@pytest.mark.parametrize("make", MESHES.values(), ids=MESHES)
def test_parameters_alone(three_saved, make):
    target = target_of(make_state(3)["params"], make())
    for asked, expected in ((None, 3), (1, 1)):
        params, step = restore_parameters(three_saved, target, asked)
        assert step == expected
        assert_same_bits(params, make_state(expected)["params"])


def test_state_may_be_donated_at_once(tmp_path):
    @functools.partial(jax.jit, donate_argnums=0)
    def update(state):
        return {"step": state["step"] + 1, "params": jax.tree.map(lambda x: x * 1.5 + 1.0, state["params"])}

    expected = {}
    for sharding in (None, fsdp()):
        table = jnp.arange(400_000, dtype=jnp.float32).reshape(8, -1)
        state = {"step": jnp.array(0, jnp.int32), "params": {"table": jax.device_put(table, sharding)}}
        if sharding is not None:
            state["step"] = jax.device_put(state["step"], jax.NamedSharding(sharding.mesh, jax.P()))
        with Checkpoints(tmp_path / str(sharding is None), keep_last=9) as checkpoints:
            for step in range(1, 6):
                state = update(state)
                expected[step] = jax.tree.map(lambda x: np.array(x, copy=True), state)
                checkpoints.save(step, state)
                state = update(state)  # into the memory that was just given to save
                state = {"step": state["step"] - 1, "params": state["params"]}
            for step in range(1, 6):
                assert_same_bits(checkpoints.restore(target_of(expected[step]), step)[0], expected[step])


def test_published_only_when_committed(tmp_path, events):
    with Checkpoints(tmp_path, on_event=events) as checkpoints:
        assert (checkpoints.latest(), checkpoints.best(), checkpoints.steps()) == (None, None, [])
        for step in (1, 2):
            checkpoints.save(step, make_state(step))
            on_disk = {int(path.parent.name) for path in tmp_path.glob("*/commit_success.txt")}
            assert set(checkpoints.steps()) <= on_disk | {step}
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]
    assert [fields["step"] for fields in events.of("checkpoint")] == [1, 2]


def test_retention(tmp_path):
    losses = {1: 5.0, 2: 3.0, 3: 1.0, 4: 2.0, 5: None, 6: 4.0, 7: float("nan"), 8: None}
    with Checkpoints(tmp_path, keep_last=2, keep_every=4) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, make_state(step), heldout_loss=loss)
        checkpoints.wait()
        assert (checkpoints.steps(), checkpoints.best(), checkpoints.latest()) == ([3, 4, 7, 8], 3, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000003", "00000004", "00000007", "00000008"]
    with Checkpoints(tmp_path, keep_last=1, keep_best=False) as checkpoints:
        assert (checkpoints.steps(), checkpoints.best(), checkpoints.latest()) == ([3, 4, 7, 8], 3, 8)
        checkpoints.save(9, make_state(9))
        checkpoints.wait()
        assert checkpoints.steps() == [9]


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_a_state_that_is_not_finite_evicts_nothing(tmp_path, events, value):
    with Checkpoints(tmp_path, keep_last=1, on_event=events) as checkpoints:
        checkpoints.save(1, make_state(1))
        for step in range(2, 7):
            bad = make_state(step)
            bad["params"]["embed"]["table"] = bad["params"]["embed"]["table"].at[3, 5].set(value)
            checkpoints.save(step, bad)
        assert checkpoints.steps() == [1]
        assert_same_bits(checkpoints.restore(target_of(make_state(1)))[0], make_state(1))
    failed = events.of("checkpoint_failed")
    assert [fields["step"] for fields in failed] == [2, 3, 4, 5, 6]
    assert "params/embed/table" in failed[0]["reason"] and "NaN" in failed[0]["reason"]


def test_a_step_that_is_there_is_left_alone_or_replaced(tmp_path, events):
    with Checkpoints(tmp_path, on_event=events) as checkpoints:
        checkpoints.save(1, make_state(1))
        checkpoints.wait()
        before = (tmp_path / "00000001" / "commit_success.txt").stat().st_mtime_ns
        checkpoints.save(1, make_state(1))
        checkpoints.wait()
        assert (tmp_path / "00000001" / "commit_success.txt").stat().st_mtime_ns == before
        other = make_state(1) | {"params": make_state(2)["params"]}
        checkpoints.save(1, other, heldout_loss=2.0)
        assert_same_bits(checkpoints.restore(target_of(other))[0], other)
        assert (checkpoints.steps(), checkpoints.best()) == ([1], 1)
    assert len(events.of("checkpoint")) == 2


def test_a_state_of_another_step_is_a_defect(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(AssertionError, match="step 3 saved as 4"):
        checkpoints.save(4, make_state(3))


def test_another_model_is_told_by_its_leaves(three_saved, events):
    with Checkpoints(three_saved, on_event=events) as checkpoints:
        with pytest.raises(UserError) as told:
            checkpoints.restore(target_of(make_state(3, width=8)))
        assert "step 3 is of another model" in str(told.value)
        assert "optimizer/0/mu/embed/table is float32[64,16] in the checkpoint and float32[64,8]" in str(told.value)
        assert "more" in str(told.value) and "\n" not in str(told.value)

        target = target_of(make_state(3))
        del target["params"]["layers"]["scale"]
        target["params"]["extra"] = jax.ShapeDtypeStruct((), jnp.float32)
        with pytest.raises(UserError, match=r"params/extra is absent in the checkpoint and float32.. in this model"):
            checkpoints.restore(target)
        with pytest.raises(UserError, match=r"params/layers/scale is bfloat16\[8,16\] in the checkpoint and absent"):
            restore_parameters(three_saved, target["params"])

        target = target_of(make_state(3))
        target["step"] = jax.ShapeDtypeStruct((), jnp.int8)
        with pytest.raises(UserError, match=r"step is int32\[\] in the checkpoint and int8\[\] in this model"):
            checkpoints.restore(target)
        assert checkpoints.steps() == [1, 2, 3]
    assert events == []


def test_no_checkpoint(tmp_path, three_saved):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="there is no checkpoint in"):
        checkpoints.restore(target_of(make_state(1)))
    with pytest.raises(UserError, match="there is no checkpoint in"):
        restore_parameters(tmp_path / "absent", target_of(make_state(1)["params"]))
    with pytest.raises(UserError, match=r"no checkpoint of step 9 .* it has 1, 2, 3"):
        restore_parameters(three_saved, target_of(make_state(1)["params"]), step=9)


def test_a_relative_directory_is_resolved_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpoints("run/checkpoints") as checkpoints:
        monkeypatch.chdir("/")
        checkpoints.save(1, make_state(1))
    assert (tmp_path / "run" / "checkpoints" / "00000001" / "commit_success.txt").exists()


def test_a_file_in_the_place_of_the_directory(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match="checkpoints cannot be kept in"):
        Checkpoints(tmp_path / "checkpoints")

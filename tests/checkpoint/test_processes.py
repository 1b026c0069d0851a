"""Two real processes that share one checkpoint directory."""

import socket
import subprocess
import sys

import pytest

PROGRAM = """
import pathlib, sys
import jax, jax.numpy as jnp, numpy as np
rank, port, directory = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank, initialization_timeout=60, heartbeat_timeout_seconds=20)
from jax.experimental import multihost_utils
from research.checkpoint import Checkpoints, RunLock, restore_parameters
from research.errors import UserError

mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
split, whole = jax.NamedSharding(mesh, jax.P(("data", "fsdp"))), jax.NamedSharding(mesh, jax.P())
tensor = jax.NamedSharding(mesh, jax.P(None, "data"))

def state_of(step):
    values = np.random.default_rng(step).normal(size=(64, 48)).astype(np.float32)
    place = lambda array, sharding: jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
    return {"step": place(np.array(step, np.int32), whole),
            "params": {"a": place(values, split), "b": place(values[0], whole)}}

def shapes(sharding):
    make = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding if leaf.ndim > 1 else whole)
    return jax.tree.map(make, state_of(1))

def check(tree, expected):
    for leaf, good in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(multihost_utils.process_allgather(leaf, tiled=True),
                                      multihost_utils.process_allgather(good, tiled=True))

def damage(step, change):
    if rank == 0:
        change(directory / f"{step:08d}")
    multihost_utils.sync_global_devices(f"damaged {step}")

def flip_value(path):
    (path / "files.json").unlink()
    file = max((p for p in (path / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)

def cut_data_of_rank_1(path):
    (path / "files.json").unlink()
    for file in (path / "state" / "ocdbt.process_1" / "d").iterdir():
        file.write_bytes(file.read_bytes()[:40])

events = []
receive = lambda *event: events.append(event)
with RunLock(directory.parent), Checkpoints(directory, keep_last=4, on_event=receive) as saved:
    for step in (1, 2, 3, 4):
        saved.save(step, state_of(step), heldout_loss=1.0 / step)
    bad = state_of(5)
    bad["params"]["a"] = bad["params"]["a"] * jnp.inf
    saved.save(5, bad)
    saved.wait()
    assert (saved.steps(), saved.best(), saved.latest()) == ([1, 2, 3, 4], 4, 4), saved.steps()
    for sharding in (split, tensor, whole):
        state, step = saved.restore(shapes(sharding))
        assert step == 4
        check(state, state_of(4))
    params, step = restore_parameters(directory, shapes(tensor)["params"], 2)
    check(params, state_of(2)["params"])
    damage(4, flip_value)
    damage(3, cut_data_of_rank_1)
    state, step = saved.restore(shapes(split))
    assert (step, saved.steps()) == (2, [1, 2])
    check(state, state_of(2))
    other = shapes(split)
    other["params"]["b"] = jax.ShapeDtypeStruct((7,), jnp.float32, sharding=whole)
    try:
        saved.restore(other)
        raise AssertionError("another model was restored")
    except UserError as error:
        assert "params/b is float32[48] in the checkpoint and float32[7]" in str(error)
    saved.save(3, state_of(3))
told = [(kind, fields["step"]) for kind, fields in events if kind == "checkpoint_damaged"]
assert told == [("checkpoint_damaged", 4), ("checkpoint_damaged", 3)], events
if rank == 0:
    names = sorted(path.name for path in directory.iterdir())
    assert names == ["00000001", "00000002", "00000003", "damaged-00000003", "damaged-00000004"], names
print("done", flush=True)
"""


@pytest.mark.multihost
def test_two_processes_save_restore_and_agree_on_damage(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", PROGRAM]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(port), str(tmp_path / "run" / "checkpoints")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=240)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    for rank, output in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0 and "done\n" in output, output[-4000:]

"""Real damage to real files, real kills of real processes, a disk that is really full."""

import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import pytest

from research.checkpoint import Checkpoints, restore_parameters
from research.errors import UserError

from .conftest import Events, assert_same_bits, make_state, target_of

TARGET = target_of(make_state(1))

# A load that fails leaves Orbax's other reads waiting in an event loop that is closed; collecting them is not silent.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collect_what_failed_loads_leave():
    yield
    gc.collect()


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def array_file(step: Path) -> Path:
    """The file that holds the values."""
    return max((path for path in (step / "state").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def restored_from(directory: Path, events: Events, expected: int) -> None:
    with Checkpoints(directory, on_event=events) as checkpoints:
        state, step = checkpoints.restore(TARGET)
        assert step == expected
        assert_same_bits(state, make_state(expected))
        assert expected in checkpoints.steps() and max(checkpoints.steps()) == expected


@pytest.fixture
def copy(three_saved, tmp_path):
    return Path(shutil.copytree(three_saved, tmp_path / "checkpoints"))


FILES = ["record/data.json", "state/manifest.ocdbt", "state/_METADATA", "values"]


@pytest.mark.parametrize("sizes", ["noted", "not noted"])
@pytest.mark.parametrize("damage", ["truncated", "emptied", "deleted", "flipped"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_never_restored_from(copy, events, name, damage, sizes):
    step = copy / "00000003"
    file = array_file(step) if name == "values" else step / name
    if sizes == "not noted":  # killed between commit and note
        (step / "files.json").unlink()
    if damage == "truncated":
        os.truncate(file, file.stat().st_size // 2)
    elif damage == "emptied":
        os.truncate(file, 0)
    elif damage == "deleted":
        file.unlink()
    else:
        flip(file, 8 * (file.stat().st_size // 3))
    with Checkpoints(copy, on_event=events) as checkpoints:
        state, restored = checkpoints.restore(TARGET)
    assert_same_bits(state, make_state(restored))  # what Orbax does not read may be damaged without harm
    if restored == 3:
        assert name == "state/_METADATA" and damage == "flipped"
        return
    assert restored == 2
    (told,) = events.of("checkpoint_damaged")
    assert (told["step"], told["renamed"]) == (3, "damaged-00000003") and told["reason"]
    if sizes == "noted" and damage != "flipped":
        assert str(file.relative_to(step)) in told["reason"]
    assert (copy / "damaged-00000003").exists() and not step.exists()


def test_flipped_bits_of_values_are_always_seen(copy, events):
    good = array_file(copy / "00000003").read_bytes()
    file, choose = array_file(copy / "00000003"), random.Random(0)
    seen = 0
    for _ in range(12):
        file.write_bytes(good)
        flip(file, choose.randrange(8 * len(good)))
        try:
            params, _ = restore_parameters(copy, TARGET["params"], step=3, on_event=events)
            full = params
        except UserError as error:
            assert "step 3" in str(error) and "is damaged" in str(error)
            seen += 1
        else:  # the bit belongs to a part of the file that is not the parameters'
            assert_same_bits(full, make_state(3)["params"])
            with Checkpoints(copy, on_event=events) as checkpoints:
                try:
                    assert_same_bits(checkpoints.restore(TARGET, step=3)[0], make_state(3))
                except UserError:
                    seen += 1
    assert seen >= 8 and sorted(path.name for path in copy.iterdir()) == ["00000001", "00000002", "00000003"]


def test_all_damaged(copy, events):
    for step in copy.iterdir():
        flip(step / "record" / "data.json", 100)
    everything = pytest.raises(UserError, match=r"every checkpoint in .* was damaged")
    with Checkpoints(copy, on_event=events) as checkpoints, everything:
        checkpoints.restore(TARGET)
    assert [fields["step"] for fields in events.of("checkpoint_damaged")] == [3, 2, 1]
    assert sorted(path.name for path in copy.iterdir()) == ["damaged-00000001", "damaged-00000002", "damaged-00000003"]
    with Checkpoints(copy) as checkpoints:
        assert checkpoints.steps() == []
        checkpoints.save(3, make_state(3))
    restored_from(copy, events, 3)


def test_a_damaged_step_that_was_asked_for_is_refused_and_stays(copy, events):
    os.truncate(array_file(copy / "00000002"), 100)
    with Checkpoints(copy, on_event=events) as checkpoints:
        with pytest.raises(UserError, match=r"step 2 in .* is damaged .*has 100 bytes.*: choose another step .1, 3"):
            checkpoints.restore(TARGET, step=2)
        assert checkpoints.restore(TARGET)[1] == 3
    assert (copy / "00000002").exists() and events.of("checkpoint_damaged")[0]["step"] == 2


def test_parameters_fall_back_without_touching_anything(copy, events):
    flip(copy / "00000003" / "record" / "data.json", 200)
    before = sorted(str(path) for path in copy.rglob("*"))
    params, step = restore_parameters(copy, TARGET["params"], on_event=events)
    assert step == 2 and [fields["step"] for fields in events.of("checkpoint_damaged")] == [3]
    assert_same_bits(params, make_state(2)["params"])
    assert sorted(str(path) for path in copy.rglob("*")) == before


def test_a_directory_copied_to_another_step(copy, events):
    shutil.copytree(copy / "00000002", copy / "00000007")
    restored_from(copy, events, 3)
    (told,) = events.of("checkpoint_damaged")
    assert told["step"] == 7 and "is of step 2" in told["reason"]


def test_a_second_damaged_directory_of_a_step_gets_its_own_name(copy, events):
    (copy / "damaged-00000003").mkdir()
    flip(copy / "00000003" / "record" / "data.json", 200)
    restored_from(copy, events, 2)
    assert events.of("checkpoint_damaged")[0]["renamed"] == "damaged-00000003-2"


def test_what_interrupted_saves_leave_is_ignored_and_removed(copy, events):
    (copy / "00000003" / "commit_success.txt").unlink()
    (copy / "00000009").mkdir()
    shutil.copytree(copy / "00000001", copy / "00000004.orbax-checkpoint-tmp")
    (copy / "notes.txt").write_text("a person's")
    assert restore_parameters(copy, TARGET["params"])[1] == 2
    restored_from(copy, events, 2)
    (cleaned,) = events.of("checkpoint_cleaned")
    assert cleaned["names"] == ["00000003", "00000004.orbax-checkpoint-tmp", "00000009"]
    assert sorted(path.name for path in copy.iterdir()) == ["00000001", "00000002", "notes.txt"]


SAVER = """
import sys
import jax.numpy as jnp
from research.checkpoint import Checkpoints
with Checkpoints(sys.argv[1]) as checkpoints:
    step = checkpoints.latest() or 0
    while True:
        step += 1
        values = jnp.full((1000, 1000), step, jnp.float32)
        checkpoints.save(step, {"step": jnp.array(step, jnp.int32), "params": {"a": values, "b": values + 1}})
        print(step, flush=True)
"""


def test_kill_9_at_random_moments_of_a_save(tmp_path, events):
    choose = random.Random()
    last = 0
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for _ in range(3):
            started = int(child.stdout.readline())
        time.sleep(choose.uniform(0, 0.2))
        child.send_signal(signal.SIGKILL)
        child.stdout.close()
        child.wait()
        with Checkpoints(tmp_path, on_event=events) as checkpoints:
            shapes = {"a": jnp.zeros((1000, 1000)), "b": jnp.zeros((1000, 1000))}
            state, step = checkpoints.restore({"step": jnp.zeros((), jnp.int32), "params": shapes})
        assert step >= started - 1 and step > last  # the third save began when the second was committed
        assert int(state["step"]) == step
        assert bool((state["params"]["a"] == step).all()) and bool((state["params"]["b"] == step + 1).all())
        last = step
    assert events.of("checkpoint_damaged") == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(disk: Path) -> None:
    (disk / "filler").write_bytes(b"0" * (shutil.disk_usage(disk).free - 20_000))


@pytest.mark.parametrize("noticed", ["before", "while writing"])
def test_full_disk(small_disk, events, monkeypatch, noticed):
    if noticed == "while writing":
        monkeypatch.setattr(Checkpoints, "_no_space", lambda self, size: None)
    directory = small_disk / "checkpoints"
    with Checkpoints(directory, on_event=events) as checkpoints:
        checkpoints.save(1, make_state(1))
        checkpoints.wait()
        fill(small_disk)
        for step in (2, 3):
            checkpoints.save(step, make_state(step))
            checkpoints.wait()
            assert checkpoints.steps() == [1]
            assert [path.parent.name for path in directory.glob("*/commit_success.txt")] == ["00000001"]
        (small_disk / "filler").unlink()
        checkpoints.save(4, make_state(4))  # an earlier failure poisons nothing
        checkpoints.wait()
        assert checkpoints.steps() == [1, 4]
        assert sorted(path.name for path in directory.iterdir()) == ["00000001", "00000004"]
        fill(small_disk)
        with pytest.raises(UserError, match=r"3 checkpoints in a row could not be written .* goes on from step 4"):
            for step in (5, 6, 7):
                checkpoints.save(step, make_state(step))
                checkpoints.wait()
        assert_same_bits(checkpoints.restore(TARGET)[0], make_state(4))
    assert [fields["step"] for fields in events.of("checkpoint_failed")] == [2, 3, 5, 6, 7]
    assert noticed == "while writing" or "MB free, the checkpoint needs" in events.of("checkpoint_failed")[0]["reason"]

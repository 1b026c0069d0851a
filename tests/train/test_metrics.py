import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.train import metrics
from research.train.metrics import EventLog, MetricsLog, NullLog, encode, read_events, read_metrics, write_summary


def write_rows(workdir: Path, steps: Iterator[int] | range, *, start_step: int = 0, tensorboard: bool = False) -> Path:
    with MetricsLog(workdir, tensorboard=tensorboard, start_step=start_step) as log:
        for step in steps:
            log.write(step, {"loss": np.float32(1 / step), "norms": np.array([step, 0.1], np.float32)})
    return log.path


def steps(path: Path) -> list[int]:
    return [row["step"] for row in read_metrics(path)]


def test_every_bit_of_a_float32_survives() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    bits = np.concatenate([bits, np.array([0, 1, 2**31, 0x7F7FFFFF, 0x00800000, 0x007FFFFF, 0x3DCCCCCD], np.uint32)])
    numbers = bits.view(np.float32)
    numbers = numbers[np.isfinite(numbers)]
    again = np.array(json.loads(encode(numbers)), np.float32)
    assert (again.view(np.uint32) == numbers.view(np.uint32)).all()


def test_decimals_are_the_shortest() -> None:
    assert encode(np.float32(0.1)) == encode(jnp.float32(0.1)) == "0.1"
    assert encode(np.float64(0.1) + 0.2) == encode(0.1 + 0.2) == "0.30000000000000004"
    assert encode(jnp.asarray(0.5, jnp.bfloat16)) == "0.5"
    assert encode([3, np.int32(3), True, np.bool_(False), None, "ü"]) == '[3, 3, true, false, null, "ü"]'


def test_numbers_that_json_lacks_are_valid_json_and_come_back(tmp_path: Path) -> None:
    row = {"loss": np.float32("nan"), "norm": float("-inf"), "norms": np.array([1, np.inf], np.float32)}
    with MetricsLog(tmp_path, tensorboard=False, start_step=0) as log:
        log.write(1, row)
    strict = json.loads(log.path.read_text(), parse_constant=pytest.fail)
    assert strict == {"step": 1, "loss": "nan", "norm": "-inf", "norms": [1.0, "inf"]}
    (read,) = read_metrics(log.path)
    assert np.isnan(read.pop("loss"))
    assert read == {"step": 1, "norm": -np.inf, "norms": [1.0, np.inf]}


def test_step_stands_first_and_rows_are_on_the_disk_at_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, tensorboard=False, start_step=0)
    log.write(1, {"loss": np.float32(4.25)})
    assert log.path.read_text() == '{"step": 1, "loss": 4.25}\n'
    log.close()


@pytest.mark.parametrize("torn", [b"", b'{"step": 11, "lo', b'{"step": 11}', b"\0\0\0\n"])
@pytest.mark.parametrize("start_step", [0, 4, 10, 15])
def test_opening_cuts_to_the_restored_step(tmp_path: Path, start_step: int, torn: bytes) -> None:
    path = write_rows(tmp_path, range(1, 11))
    kept = path.read_bytes().splitlines(keepends=True)[:start_step]
    with path.open("ab") as file:
        file.write(torn)
    assert steps(path) == list(range(1, 11))
    MetricsLog(tmp_path, tensorboard=False, start_step=start_step).close()
    assert path.read_bytes() == b"".join(kept)
    write_rows(tmp_path, range(start_step + 1, 13), start_step=start_step)
    assert steps(path) == [*range(1, min(start_step, 10) + 1), *range(start_step + 1, 13)]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_a_resumed_file_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    straight = write_rows(tmp_path / "straight", range(1, 21))
    write_rows(tmp_path / "resumed", range(1, 18))
    resumed = write_rows(tmp_path / "resumed", range(11, 21), start_step=10)
    assert straight.read_bytes() == resumed.read_bytes()


def test_a_row_damaged_in_the_middle_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    path = write_rows(tmp_path, range(1, 4))
    damaged = path.read_bytes().replace(b'{"step": 2', b'"step": 2')
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="line 2"):
        MetricsLog(tmp_path, tensorboard=False, start_step=3)
    assert path.read_bytes() == damaged
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_events_are_appended_with_utc_time(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        log.write("start", step=0, devices=["cpu:0"])
    with log.path.open("ab") as file:
        file.write(b'{"time": "2026-')
    with EventLog(tmp_path) as log:
        log.write("evaluate", step=5, heldout_loss=np.float32(4.1), heldout_accuracy=None)
    start, evaluate = read_events(log.path)
    assert list(start) == ["time", "event", "step", "devices"]
    assert evaluate["heldout_loss"] == 4.1
    assert evaluate["heldout_accuracy"] is None
    assert evaluate["time"] >= start["time"]
    assert evaluate["time"].endswith("Z")


def test_summary_is_one_object(tmp_path: Path) -> None:
    path = write_summary(tmp_path, {"step": 3, "train_loss": np.float32(4.1), "versions": {"jax": "1"}, "loss": np.nan})
    assert json.loads(path.read_text()) == {"step": 3, "train_loss": 4.1, "versions": {"jax": "1"}, "loss": "nan"}
    assert os.listdir(tmp_path) == ["summary.json"]


def records(directory: Path) -> Iterator[tuple[str, object]]:
    """`(file, event)` of a TensorBoard directory, read without TensorBoard."""
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(directory.iterdir()):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("Q", content[:8])
            yield file.name, Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def test_tensorboard_has_a_curve_a_layer_and_purges_at_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "SECONDS_PER_RECORD", 0.0)
    write_rows(tmp_path, range(1, 6), tensorboard=True)
    with MetricsLog(tmp_path, tensorboard=True, start_step=3) as log:
        log.write(4, {"loss": 0.5})
        log.write_tensorboard(4, {"heldout_loss": 0.25, "heldout_accuracy": None})
    events = [event for _, event in records(tmp_path / "tensorboard")]
    starts = [event.step for event in events if event.HasField("session_log")]
    tags = [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]
    assert starts == [1, 4]
    assert (5, "norms/layer_00", 5.0) in tags
    assert [tag for step, tag, _ in tags if step == 1] == ["loss", "norms/layer_00", "norms/layer_01"]
    assert tags[-2:] == [(4, "loss", 0.5), (4, "heldout_loss", 0.25)]


def test_few_steps_of_a_fast_run_cost_a_tensorboard_record(tmp_path: Path) -> None:
    write_rows(tmp_path, range(1, 100), tensorboard=True)
    with_values = [event for _, event in records(tmp_path / "tensorboard") if event.summary.value]
    assert with_values[0].step == 1
    assert len(with_values) < 50


def test_null_log_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with NullLog() as log:
        log.write(1, {"loss": 1.0})
        log.write("start", step=1)
        log.write_tensorboard(1, {})
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    log = EventLog(tmp_path)
    with pytest.raises(UserError, match=r"cannot write .*events\.jsonl \(no space left on device\)"):
        log.write("start")
    with pytest.raises(UserError, match="cannot write"):
        log.close()


def test_a_directory_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for opening in (
        lambda: MetricsLog(tmp_path / "file", tensorboard=False, start_step=0),
        lambda: EventLog(tmp_path / "file"),
        lambda: write_summary(tmp_path / "file", {}),
    ):
        with pytest.raises(UserError, match=r"cannot write .*file"):
            opening()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_directory_is_one_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="permission denied"):
        MetricsLog(tmp_path, tensorboard=False, start_step=0)
    tmp_path.chmod(0o700)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        read_metrics(tmp_path / "metrics.jsonl")

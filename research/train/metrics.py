"""What a run writes down: `metrics.jsonl`, TensorBoard events, `events.jsonl`, `summary.json`.

A number keeps every bit: a float32 is written as the shortest decimal that gives the same float32 when it is read as
one, a float64 likewise. What JSON has no number for is written as "nan", "inf" or "-inf", and read back as the float.
"""

import contextlib
import datetime
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from research.errors import UserError

METRICS, EVENTS, SUMMARY = "metrics.jsonl", "events.jsonl", "summary.json"

# TensorBoard shows a thousand points a curve, and its records cost more than rows of metrics.jsonl: few steps need one.
SECONDS_PER_RECORD = 0.5
SECONDS_PER_SYNC = 10.0

_NOT_FINITE = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


class MetricsLog:
    """One row of numbers for each update; row n means that n updates have been applied.

    Opening cuts the file to the rows of `start_step` and before, a torn last line included, by writing a new file and
    renaming it. A row is with the operating system when `write` returns, so that a killed process loses none; write row
    n before checkpoint n is saved.

    Raises:
      UserError: the directory cannot be written, the disk is full, or a row before the last is damaged.
    """

    def __init__(self, workdir: str | os.PathLike[str], *, tensorboard: bool, start_step: int) -> None:
        self.path = Path(workdir) / METRICS
        with _writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _cut(self.path, lambda row: row["step"] <= start_step)
            self._file = _open(self.path)
        self._tensorboard = _TensorBoard(self.path.parent / "tensorboard", start_step) if tensorboard else None

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends the row of a step: numbers, or arrays of them (one entry a layer), which become JSON lists."""
        _append(self._file, self.path, {"step": step, **metrics})
        if self._tensorboard:
            self._tensorboard.write(step, metrics)

    def write_tensorboard(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Shows numbers that do not come with every step (held-out losses) in TensorBoard; None is left out."""
        if self._tensorboard:
            self._tensorboard.write(step, {k: v for k, v in metrics.items() if v is not None}, always=True)

    def close(self) -> None:
        """Closes the files."""
        with _writing(self.path):
            self._file.close()
        if self._tensorboard:
            self._tensorboard.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EventLog:
    """What happened when: `{"time": UTC, "event": name, ...}`, only ever appended to."""

    def __init__(self, workdir: str | os.PathLike[str]) -> None:
        self.path = Path(workdir) / EVENTS
        with _writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _open(self.path)
            _end_line(self._file)

    def write(self, event: str, **fields: Any) -> None:
        """Appends one event with the time of now."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        _append(self._file, self.path, {"time": now, "event": event, **fields})

    def close(self) -> None:
        """Closes the file."""
        with _writing(self.path):
            self._file.close()

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class NullLog:
    """Stands for either log on every process but the first: writes nothing."""

    def write(self, *_: Any, **__: Any) -> None:
        """Writes nothing."""

    def write_tensorboard(self, *_: Any, **__: Any) -> None:
        """Writes nothing."""

    def close(self) -> None:
        """Closes nothing."""

    def __enter__(self) -> "NullLog":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def set_aside(workdir: str | os.PathLike[str], start_step: int, num_steps: int, checkpoint_every: int) -> list[str]:
    """Renames what no longer holds of a run that goes on at `start_step`; gives the new names.

    The summary of a run that now goes on is one of them. Rows beyond the next checkpoint mean that checkpoints were
    lost, not that a process was killed: they are kept under another name instead of being cut.
    """
    workdir, found = Path(workdir), []
    with _writing(workdir):
        if (workdir / SUMMARY).exists() and start_step < num_steps:
            found.append(_renamed(workdir / SUMMARY))
        rows = read_metrics(workdir / METRICS) if (workdir / METRICS).exists() else []
        if rows and rows[-1]["step"] > start_step + 2 * checkpoint_every:
            found.append(_renamed(workdir / METRICS))
    return found


def _renamed(path: Path) -> str:
    number = 1
    while (other := path.with_name(f"{path.stem}.before-{number}{path.suffix}")).exists():
        number += 1
    path.rename(other)
    return other.name


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, with numbers as floats; a torn last line is left out.

    Raises:
      UserError: there is no such file, or a row before the last is damaged.
    """
    return list(iterate_metrics(path))


def iterate_metrics(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The same, row by row, for files of millions of rows."""
    with _reading(Path(path)) as file:
        yield from (row for row, _ in _rows(file, Path(path)))


def read_events(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The events of an `events.jsonl`, likewise; a line that a killed process tore is left out wherever it stands."""
    with _reading(Path(path)) as file:
        return [row for row, _ in _rows(file, Path(path), torn_within=True)]


def write_summary(workdir: str | os.PathLike[str], summary: Mapping[str, Any]) -> Path:
    """Writes `summary.json`, whole or not at all."""
    path = Path(workdir) / SUMMARY
    write_json(path, summary)
    return path


def write_json(path: str | os.PathLike[str], value: Mapping[str, Any]) -> None:
    """Writes a JSON object, one line a key, by renaming a complete file into place.

    Raises:
      UserError: the file cannot be written.
    """
    write_text(path, json.dumps(json.loads(encode(value)), indent=2, ensure_ascii=False) + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a UTF-8 file by renaming a complete one into place, likewise."""
    path = Path(path)
    with _writing(path), _replacing(path) as file:
        file.write(text.encode("utf-8", "replace"))


# --- numbers ----------------------------------------------------------------------------------------------------------


def encode(value: Any) -> str:
    """JSON of nested dictionaries, lists, arrays and numbers, with the shortest exact decimals."""
    if value is None or isinstance(value, (str, bool)):
        return json.dumps(value, ensure_ascii=False)
    if type(value) is int:
        return str(value)
    if type(value) is float:
        return _decimal(repr(value))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {encode(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(encode, value)) + "]"
    array = np.asarray(value)
    if array.ndim:
        return "[" + ", ".join(map(encode, array)) + "]"
    if array.dtype.kind in "biu":
        return json.dumps(array.item())
    if array.dtype.itemsize < 4:
        array = array.astype(np.float32)
    return _decimal(str(array[()]))


def _decimal(text: str) -> str:
    return f'"{text}"' if text in _NOT_FINITE else text


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


# --- files ------------------------------------------------------------------------------------------------------------


def _open(path: Path) -> BinaryIO:
    return open(path, "ab+")


def _append(file: BinaryIO, path: Path, row: Mapping[str, Any]) -> None:
    with _writing(path):
        file.write((encode(row) + "\n").encode())
        file.flush()


def _rows(file: BinaryIO, path: Path, torn_within: bool = False) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Rows and their lines. A line that is no JSON object ends the file, or is skipped where `torn_within`."""
    torn = 0
    for number, line in enumerate(file, 1):
        if torn and not torn_within:
            raise UserError(f"{path} is damaged in line {torn}: remove that line, or use a new --workdir")
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            row = None
        if isinstance(row, dict):
            yield {key: _decode(value) for key, value in row.items()}, line
        else:
            torn = number


def _cut(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Replaces the file by its rows that are to be kept."""
    if not path.exists():
        return
    with open(path, "rb") as old, _replacing(path) as new:
        for row, line in _rows(old, path):
            if keep(row):
                new.write(line)


def _end_line(file: BinaryIO) -> None:
    """Ends a line that a killed process left torn, so that the next one stands alone."""
    if file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` once it is complete and on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    try:
        with open(path, "rb") as file:
            yield file
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns a full disk, a missing permission and their like into one sentence."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot write {path} ({reason}): make room there or use another --workdir") from error


# --- TensorBoard ------------------------------------------------------------------------------------------------------


class _TensorBoard:
    """Scalars for TensorBoard; those of steps after `start_step` that an earlier process wrote are purged.

    tensorboardX's own SummaryWriter hands its records to a thread: when the disk is full the thread dies, and the run
    would wait for it for ever. Its record writer is used directly.
    """

    def __init__(self, directory: Path, start_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._directory, self._last, self._synced = directory, float("-inf"), time.monotonic()
        with _writing(directory):
            directory.mkdir(exist_ok=True)
            self._writer = EventsWriter(str(directory / "events"), f".{time.time_ns()}")
            session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._writer.write_event(self._event(wall_time=time.time(), step=start_step + 1, session_log=session))
            self._writer.flush()

    def write(self, step: int, metrics: Mapping[str, Any], *, always: bool = False) -> None:
        now = time.monotonic()
        if now - self._last < SECONDS_PER_RECORD and not always:
            return
        if not always:
            self._last = now
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in _scalars(metrics)]
        with _writing(self._directory):
            self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))
            if always or now - self._synced > SECONDS_PER_SYNC:
                self._synced = now
                self._writer.flush()

    def close(self) -> None:
        with _writing(self._directory):
            self._writer.close()


def _scalars(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Names and numbers; entry 3 of a vector of layers is `name/layer_03`."""
    for name, value in metrics.items():
        array = np.asarray(value, dtype=np.float64)
        if not array.ndim:
            yield name, float(array)
        else:
            yield from ((f"{name}/layer_{layer:02d}", float(number)) for layer, number in enumerate(array.ravel()))

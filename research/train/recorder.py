"""The numbers of an update, read one step late and handed to the log and to the display."""

import math
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from research.errors import UserError
from research.parallel import devices
from research.train.assembly import Assembly
from research.train.metrics import METRICS, MetricsLog, NullLog, read_metrics


@runtime_checkable
class Display(Protocol):
    """What a person watches; see `research/cli/progress.py`."""

    def stage(self, text: str) -> None:
        """What is done now, before or between updates."""

    def event(self, text: str) -> None:
        """What happened, as a line that stays."""

    def update(self, step: int, loss: float, tokens_per_second: float, utilisation: float | None) -> None:
        """The numbers of an update; `utilisation` is the share of the devices' peak, where it is known."""


class Recorder:
    """Writes the numbers of an update while the next one runs, so that the device never waits for the host."""

    def __init__(
        self, assembly: Assembly, log: MetricsLog | NullLog, display: Display, interval: int, predicted: int = 0
    ) -> None:
        """`predicted` is the number of targets of the updates before, see `predicted_before`."""
        mesh = assembly.mesh
        self._log, self._display, self._predicted = log, display, predicted
        self._tokens = assembly.settings.train.batch_size * assembly.raw_length
        self._flops = assembly.count.model_flops
        peak = devices.peak_flops(mesh.devices.flat[0])
        self._share = None if peak is None else self._flops / (peak * mesh.size)
        self._previous: tuple[int, Mapping[str, jax.Array]] | None = None
        self._began = time.perf_counter()
        self._times: deque[float] = deque([self._began], maxlen=max(2, min(interval, 50)))

    def restart_clock(self) -> None:
        """Leaves what was done since the last update (compilation, evaluation) out of the throughput."""
        self._times.clear()
        self._times.append(time.perf_counter())

    def keep(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Holds what the update that was just started will give."""
        self._previous = (step, metrics)

    def write_previous(self) -> None:
        """Waits for the update before and writes its row.

        Raises:
          UserError: the loss is not finite; the checkpoints before it are kept.
        """
        if self._previous is None:
            return
        step, metrics = self._previous
        self._previous = None
        values = jax.device_get(metrics)
        now = time.perf_counter()
        speed = self._tokens * len(self._times) / (now - self._times[0])
        self._times.append(now)
        loss = float(values["loss"])
        targets = float(values["targets"])
        self._predicted += round(targets) if math.isfinite(targets) else 0
        seen = step * self._tokens
        so_far = {"tokens_seen": seen, "tokens_predicted": self._predicted, "model_flops": seen * self._flops}
        timing = {"tokens_per_second": round(speed, 1), "seconds": round(now - self._began, 3)}
        self._log.write(step, {"loss": values["loss"], **values, **so_far, **timing})
        self._display.update(step, loss, speed, None if self._share is None else speed * self._share)
        if not math.isfinite(loss):
            raise UserError(
                f"the loss of update {step} is {loss}: lower optimizer.learning_rate or lengthen the warm-up; "
                "earlier checkpoints are kept"
            )


def predicted_before(workdir: Path, start: int) -> int:
    """Targets of the updates up to `start`, from the rows of `metrics.jsonl`; rows of older runs do not sum them up."""
    if start == 0 or not (workdir / METRICS).exists():
        return 0
    rows = [row for row in read_metrics(workdir / METRICS) if row["step"] <= start]
    if rows and "tokens_predicted" in rows[-1]:
        return int(rows[-1]["tokens_predicted"])
    return round(sum(row["targets"] for row in rows))


def sentence(event: str, fields: Mapping[str, Any]) -> str:
    """An event as a line for a person."""
    parts = [
        f"{name.replace('_', ' ')} {f'{value:.4f}' if isinstance(value, float) else value}"
        for name, value in fields.items()
        if value is not None
    ]
    return f"{event.replace('_', ' ')}: {', '.join(parts)}"

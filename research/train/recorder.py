"""The numbers of an update, read one step late and handed to the log and to the display."""

import dataclasses
import math
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

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
        """The numbers of an update; `utilisation` is the share of the devices' peak, see `Utilisation`."""


@dataclasses.dataclass(frozen=True)
class Utilisation:
    """The share of the devices' peak that goes into operations which no implementation can leave out.

    So it counts what the objective needs, `required_flops`: of attention what the pattern lets a position see, and the
    head where there are targets. Counted in full, a kernel that leaves out hidden blocks would pass for more than it
    is, and on long sequences for more than the peak. Recomputation does not count.

    Attributes:
      flops: required a token.
      peak: FLOP/s of all devices; none where no data sheet is known.
    """

    flops: float
    peak: float | None

    @classmethod
    def of(cls, assembly: Assembly) -> "Utilisation":
        """Of a run: where products are in int8, of the peak of int8."""
        mesh, model = assembly.mesh, assembly.settings.model
        peak = devices.peak_flops(mesh.devices.flat[0])
        rate = 1.0 if model.quantisation == "none" else devices.int8_rate(mesh.devices.flat[0])
        return cls(assembly.count.required_flops, peak * mesh.size * rate if peak else None)

    def at(self, tokens_per_second: float) -> float | None:
        """The share at a speed, none where the peak is not known."""
        return None if self.peak is None else tokens_per_second * self.flops / self.peak

    def impossible(self, tokens_per_second: float) -> str:
        """What is said where the share would be above one."""
        peak = self.peak or math.nan
        return (
            f"utilisation is not shown: {tokens_per_second * self.flops / 1e12:.1f} TFLOP/s would be more than the "
            f"{peak / 1e12:.1f} that these devices are said to reach"
        )


class Recorder:
    """Writes the numbers of an update while the next one runs, so that the device never waits for the host."""

    def __init__(
        self, assembly: Assembly, log: MetricsLog | NullLog, display: Display, interval: int, predicted: int = 0
    ) -> None:
        """`predicted` is the number of targets of the updates before, see `predicted_before`."""
        self._log, self._display, self._predicted = log, display, predicted
        self._tokens = assembly.settings.train.batch_size * assembly.raw_length
        self._flops = assembly.count.model_flops
        self._utilisation = Utilisation.of(assembly)
        self._previous: tuple[int, Mapping[str, jax.Array | np.ndarray]] | None = None
        self._began = time.perf_counter()
        self._times: deque[float] = deque([self._began], maxlen=max(2, min(interval, 50)))

    def restart_clock(self) -> None:
        """Leaves what was done since the last update (compilation, evaluation) out of the throughput."""
        self._times.clear()
        self._times.append(time.perf_counter())

    def keep(self, step: int, metrics: Mapping[str, jax.Array | np.ndarray]) -> None:
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
        share = self._utilisation.at(speed)
        if share is not None and share > 1.0:
            self._display.event(self._utilisation.impossible(speed))
            self._utilisation, share = Utilisation(self._utilisation.flops, None), None
        self._display.update(step, loss, speed, share)
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

"""What a person sees while a run goes on: one live display on a terminal, plain lines everywhere else."""

import time
from collections.abc import Iterator
from typing import Any, SupportsFloat

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

REFRESHES_PER_SECOND = 4

# How named numbers are shown; any other keeps its name.
_FORMATS = {
    "heldout_loss": "held-out loss {:.4f}",
    "heldout_bits_per_byte": "held-out {:.3f} bits/byte",
    "heldout_accuracy": "held-out accuracy {:.1%}",
}
# Control characters of text that is shown could steer the terminal; tabs and line ends are harmless.
_CONTROL = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}")


class Progress:
    """Steps, loss and speed of one process's run, as a context manager.

    On a terminal a thread draws a display four times a second from what was last told, so that `update` costs a
    microsecond. Elsewhere lines are printed: each stage and event, the first and last step, and every `log_every`-th.

    Args:
      total_steps: length of the run, in updates.
      start_step: updates that were applied before this process began.
      log_every: interval of plain lines, in updates.
      console: where to show it; none: standard output. Standard error (`Console(stderr=True)`) where standard output
        carries a machine-readable result, `Console(quiet=True)` for nothing at all.
    """

    def __init__(self, total_steps: int, start_step: int, log_every: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self.total_steps, self.start_step, self.log_every = total_steps, start_step, log_every
        self._step = start_step
        self._shown: int | None = None
        self._numbers: dict[str, Any] = {}
        self._began = time.monotonic()
        self._first: tuple[int, float] | None = None
        self._stage: tuple[str, float] | None = None
        self._spinner = Spinner("dots")
        self._live: Live | None = None
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = Live(
                get_renderable=self._display, console=self.console, refresh_per_second=REFRESHES_PER_SECOND
            )

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._end_stage()
            self._live.stop()

    def stage(self, text: str) -> None:
        """Says what is being prepared from now on, until the next stage or step."""
        self._end_stage()
        self._stage = (text, time.monotonic())
        if not self._live:
            self._print(text)

    def event(self, text: str) -> None:
        """Shows a line that stays: an evaluation, a checkpoint, a resume, a sample."""
        self._print(text)

    def update(
        self,
        step: int,
        loss: SupportsFloat,
        tokens_per_second: SupportsFloat,
        utilisation: SupportsFloat | None = None,
        **extra: SupportsFloat | None,
    ) -> None:
        """Takes the numbers of a step.

        Args:
          step: updates applied.
          loss: training loss, in nats a token.
          tokens_per_second: of all devices.
          utilisation: share of the devices' FLOP limit, where it is known.
          **extra: other numbers by name (`heldout_bits_per_byte`, `heldout_accuracy`); None leaves the last one.
        """
        if self._stage:
            self._end_stage()
        if self._first is None:
            self._first = (step, time.monotonic())
        self._step = step
        self._numbers |= {"loss": loss, "tokens_per_second": tokens_per_second, "utilisation": utilisation}
        if extra:
            self._numbers |= {name: value for name, value in extra.items() if value is not None}
        due = self._shown is None or step % self.log_every == 0 or step == self.total_steps
        if due and not self._live and step != self._shown:
            self._shown = step
            self._print("  ".join([f"step {step}/{self.total_steps}", *self._parts(), *self._times()]))

    def _end_stage(self) -> None:
        """On a terminal the line of a stage before the first step is replaced by one that stays and says how long."""
        stage, self._stage = self._stage, None
        if stage and self._live and self._first is None:
            self._print(f"{stage[0]} ({duration(time.monotonic() - stage[1])})")

    def _print(self, text: str) -> None:
        self.console.print(Text(text.translate(_CONTROL)), soft_wrap=True)

    def _times(self) -> Iterator[str]:
        """Elapsed and left, by the mean pace since the first step: that leaves compilation out and evaluations in."""
        now, left = time.monotonic(), self.total_steps - self._step
        yield f"{duration(now - self._began)} elapsed"
        if self._first and self._step > self._first[0] and left > 0:
            yield f"{duration((now - self._first[1]) / (self._step - self._first[0]) * left)} left"

    def _parts(self) -> Iterator[str]:
        numbers = dict(self._numbers)
        if not numbers:
            return
        yield f"loss {float(numbers.pop('loss')):.4f}"
        speed, utilisation = numbers.pop("tokens_per_second"), numbers.pop("utilisation")
        for name, value in numbers.items():
            yield _FORMATS.get(name, name.replace("_", " ") + " {:.4g}").format(float(value))
        yield f"{float(speed):,.0f} tokens/s"
        if utilisation is not None:
            yield f"{float(utilisation):.0%} of peak FLOPs"

    def _display(self) -> Group:
        """The stage, the bar and the numbers; drawn by the display's own thread."""
        lines: list[Any] = []
        if self._stage:
            text, began = self._stage
            self._spinner.update(text=Text(f"{text.translate(_CONTROL)}  {duration(time.monotonic() - began)}"))
            lines.append(self._spinner)
        if self._first is not None:
            row = Table.grid(expand=True, padding=(0, 2, 0, 0))
            row.add_column(no_wrap=True)
            row.add_column(ratio=1)
            row.add_column(no_wrap=True)
            row.add_row(
                f"step {self._step:,} / {self.total_steps:,}",
                ProgressBar(total=self.total_steps, completed=self._step),
                ", ".join(self._times()),
            )
            lines += [row, Text("   ".join(self._parts()), style="bold")]
        return Group(*lines)


def duration(seconds: float) -> str:
    """`3.2 s`, `4:05` or `1:02:03`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

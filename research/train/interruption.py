"""Ending a run in good order when it is asked to stop."""

import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Interruption:
    """Notes SIGTERM and Ctrl-C, so that the loop can save and leave after the update it is in.

    A second Ctrl-C ends the process at once. In a run of several processes JAX itself catches SIGTERM on any of them
    and agrees on the step after which all leave; its handler must stay.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ():
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def requested(self, step: int) -> bool:
        """Whether the run is to leave after `step` updates; the same answer on every process."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal is not None

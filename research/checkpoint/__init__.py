"""Checkpoints of whole states, verified at every restore, and the lock of a run directory."""

from research.checkpoint.lock import HeldError, RunLock, living_holder
from research.checkpoint.restore import restore_parameters, restore_parts
from research.checkpoint.store import Checkpoints

__all__ = ["Checkpoints", "HeldError", "RunLock", "living_holder", "restore_parameters", "restore_parts"]

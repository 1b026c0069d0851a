"""Optimizers and schedules; their numbers are traced, so that runs that differ in them share one compiled program."""

from research.optim.averages import evaluated, evaluated_from, next_ema
from research.optim.build import optimizer
from research.optim.groups import without_frozen
from research.optim.hyper import Hyper
from research.optim.schedules import learning_rate

__all__ = ["Hyper", "evaluated", "evaluated_from", "learning_rate", "next_ema", "optimizer", "without_frozen"]

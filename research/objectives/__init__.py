"""Pretraining objectives: what a batch asks of the model, one file each."""

from research.objectives.build import build
from research.objectives.terms import Objective, Term

__all__ = ["Objective", "Term", "build"]

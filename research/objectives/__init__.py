"""Pretraining objectives: what a batch asks of the model, one file each.

Replaced-token detection (ELECTRA: Clark et al. 2020) is not one of them. What its discriminator reads are samples of a
generator that is trained along with it, so that the batch of a step would no longer be a function of (settings, seed,
step) but of the generator's weights at that step: it could not be made on the host, prefetched, matched between
objectives by raw window, or asked of held-out text in the same way by every run. It would need a second model, a second
optimizer state and sampling inside the update, not a file here.
"""

from research.objectives import accounting
from research.objectives.build import build, raw_length
from research.objectives.terms import Lengths, Objective, Term

__all__ = ["Lengths", "Objective", "Term", "accounting", "build", "raw_length"]

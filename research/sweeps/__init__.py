"""Sweeps: which cells there are, what they need, who runs them, and what became of them.

A sweep file `experiments/<question>/sweep.py` has one function `get_sweep() -> Sweep` and builds its points with what
is named here.
"""

from research.sweeps.algebra import (
    Point,
    Points,
    chain,
    changed,
    derived,
    only,
    over,
    product,
    sample,
    seeds,
    where,
    zipped,
)
from research.sweeps.budgets import branch, isoflop, ladder, matched, recipes
from research.sweeps.sweep import Cell, Sweep

__all__ = [
    "Cell",
    "Point",
    "Points",
    "Sweep",
    "branch",
    "chain",
    "changed",
    "derived",
    "isoflop",
    "ladder",
    "matched",
    "only",
    "over",
    "product",
    "recipes",
    "sample",
    "seeds",
    "where",
    "zipped",
]

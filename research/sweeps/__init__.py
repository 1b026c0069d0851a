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
from research.sweeps.rules import RULES, Law, Rule, by_rule, scaled
from research.sweeps.sweep import Cell, Sweep
from research.sweeps.tuning import by_tuning, tuned

__all__ = [
    "RULES",
    "Cell",
    "Law",
    "Point",
    "Points",
    "Rule",
    "Sweep",
    "branch",
    "by_rule",
    "by_tuning",
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
    "scaled",
    "seeds",
    "tuned",
    "where",
    "zipped",
]

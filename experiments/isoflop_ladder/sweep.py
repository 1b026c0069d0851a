"""Sizes at each of five budgets, and two sizes at twice the largest budget, predicted before they run.

isoflop sweep run experiments/isoflop_ladder/sweep.py --on=local --workdir=runs/isoflop_ladder --parallel=2

The learning rate comes from rates.py, beside this file. Cost and result: README.md.
"""

from rates import RECIPE, WIDTHS, sizes

from research.sweeps import Point, Points, Sweep, chain, isoflop, only, product, seeds

RATE = 2.0**-7.5
# The width that did best at a quarter of a TFLOP is 24; the best one grows slowly.
AROUND = {1.25e11: (8, 32), 2.5e11: (8, 32), 5e11: (12, 48), 1e12: (16, 64)}
SEEDS = 2
ONCE = {4e12: (48, 64)}
LARGEST, PREDICTED = 8e12, (80, 96)


def between(narrowest: int, widest: int) -> Points:
    """Sizes of these widths, and between."""
    return tuple(size for size in sizes() if narrowest <= size["model.embed_dim"] <= widest)


def get_sweep() -> Sweep:
    """The sweep."""
    often = chain(*(isoflop(between(*ends), [budget], RECIPE) for budget, ends in AROUND.items()))
    once = chain(*(isoflop(between(*ends), [budget], RECIPE) for budget, ends in ONCE.items()))
    rung = isoflop(sizes(PREDICTED), [LARGEST], RECIPE)

    def held_out(point: Point) -> bool:
        return point["model.embed_dim"] in PREDICTED

    return Sweep(
        question="How does the best size grow with compute, and what does the law say of twice as much?",
        recipe=RECIPE,
        points=product(chain(product(often, seeds(SEEDS)), once, rung), only({"optimizer.learning_rate": RATE})),
        held_out=held_out,
        keep="none",
        analyses=("fit", "isoflop"),
        tuning=f"one learning rate, within 0.022 bits of the best that rates.py found at each of {len(WIDTHS)} sizes",
    )

"""Five sizes at each of four budgets, and two sizes at four times the largest budget, predicted before they run.

isoflop sweep run experiments/isoflop_ladder/sweep.py --on=local --workdir=runs/isoflop_ladder --parallel=2

The learning rate comes from rates.py, beside this file. Cost and result: README.md.
"""

from rates import RECIPE, WIDTHS, sizes

from research.sweeps import Point, Points, Sweep, chain, isoflop, only, product, seeds

RATE = 2.0**-7.5
# The width that did best at a quarter of a TFLOP is 24; the best one grows slowly.
AROUND = {1.25e11: (8, 32), 2.5e11: (8, 32), 5e11: (12, 48), 1e12: (16, 64)}
SEEDS = 2
LARGEST, PREDICTED = 4e12, (48, 64)


def between(narrowest: int, widest: int) -> Points:
    """Sizes of these widths, and between."""
    chosen = [size for size in sizes() if narrowest <= size["model.embed_dim"] <= widest]
    return product(chosen, only({"optimizer.learning_rate": RATE}))


def get_sweep() -> Sweep:
    """The sweep."""
    fitted = chain(*(isoflop(between(*ends), [budget], RECIPE) for budget, ends in AROUND.items()))
    largest = [size for size in between(*PREDICTED) if size["model.embed_dim"] in PREDICTED]
    rung = isoflop(largest, [LARGEST], RECIPE)
    steps = {(point["model.embed_dim"], point["train.num_steps"]) for point in rung}

    def held_out(point: Point) -> bool:
        return (point["model.embed_dim"], point["train.num_steps"]) in steps

    return Sweep(
        question="How does the best size grow with compute, and what does the law say of four times as much?",
        recipe=RECIPE,
        points=chain(product(fitted, seeds(SEEDS)), rung),
        held_out=held_out,
        keep="none",
        analyses=("fit", "isoflop"),
        tuning=f"one learning rate, within 0.021 bits of the best that rates.py found at each of {len(WIDTHS)} sizes",
    )

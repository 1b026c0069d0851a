"""Six update rules, each at its own best learning rate, over five seeds, against AdamW.

isoflop sweep run experiments/optimizers/sweep.py --on=local --workdir=runs/optimizers --parallel=2

The learning rates come from rates.py, beside this file. Cost and result: README.md.
"""

from rates import RECIPE, SCHEDULES, shared

from research.sweeps import Sweep, chain, only, product, seeds

# Minus the logarithm to base two of the rate that was best in rates.py.
BEST = {"adamw": 6.5, "lion": 8.5, "muon": 5.5, "adafactor": 6.5, "schedule_free": 5.5, "sgd": 3.0}
SEEDS = 5


def get_sweep() -> Sweep:
    """The sweep."""
    rules = [
        only({"optimizer.name": name, "optimizer.learning_rate": 2.0**-best} | SCHEDULES.get(name, {}))
        for name, best in BEST.items()
    ]
    return Sweep(
        question="Which update rule learns most from a quarter of a TFLOP?",
        recipe=RECIPE,
        points=product(shared(), chain(*rules), seeds(SEEDS)),
        baseline={"optimizer.name": "adamw"},
        keep="none",
        analyses=("verdict",),
        tuning="the best of four learning rates for each rule, one seed (rates.py)",
    )

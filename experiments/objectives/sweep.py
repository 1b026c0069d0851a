"""Causal, prefix and masked pretraining at equal FLOPs: four sizes, each as long as 20 tokens a parameter.

    isoflop sweep run experiments/objectives/sweep.py --on=local --workdir=runs/objectives --parallel=2
    isoflop compare runs/objectives

The learning rates come from rates.py, beside this file. Cost and result: README.md.
"""

import math

from rates import OBJECTIVES, RECIPE, SHARED

from research.sweeps import Point, Points, Sweep, chain, derived, ladder, matched, over, product, seeds, zipped

WIDTHS = (16, 24, 32, 48)
SEEDS = 3


def rate(point: Point) -> dict[str, float]:
    """2^-7, the best of the three objectives at width 32 (rates.py), by the root of the width."""
    return {"optimizer.learning_rate": 2.0**-7 * math.sqrt(32 / point["model.embed_dim"])}


def compared(size: Point) -> Points:
    """The objectives at one size, each with the FLOPs of the causal run."""
    return matched(product([size], OBJECTIVES), RECIPE, by="model_flops", to=size)


def get_sweep() -> Sweep:
    """The sweep."""
    heads = [max(1, width // 16) for width in WIDTHS]
    sizes = zipped(over("model.embed_dim", WIDTHS), over("model.num_heads", heads))
    rungs = ladder(derived(product(SHARED, sizes), rate), RECIPE, tokens_per_parameter=20.0)
    return Sweep(
        question="What do causal, prefix and masked pretraining learn from equal compute?",
        recipe=RECIPE,
        points=product(chain(*map(compared, rungs)), seeds(SEEDS)),
        yardstick="heldout_loss",
        keep="last",
        analyses=(),
    )

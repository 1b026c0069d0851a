"""Four sizes at three budgets of compute, and the best two at twice the largest budget, which are predicted.

    isoflop sweep run experiments/quick_ladder/sweep.py --on=local --workdir=runs/quick_ladder --parallel=2

Cost: 4.4 TFLOP, minutes on two CPU cores. Result: the best size grows as about C^0.4, and both predictions hold; see
README.md beside this file.
"""

import math

from research.sweeps import Point, Sweep, chain, derived, isoflop, only, over, product, zipped

RECIPE = "configs/causal.py:tiny"
BUDGETS = (1e11, 2e11, 4e11)
HELD_OUT = 8e11

# Few tokens an update, since at this compute a wide model would have too few updates to learn in; a small vocabulary,
# since most of the weights should not be in the embedding.
SHARED = only(
    {
        "train.batch_size": 2,
        "tokenizer.vocab_size": 1024,
        "model.num_layers": 2,
        "train.evaluate_every": 10**6,
        "train.checkpoint_every": 10**6,
        "evaluate.num_samples": 0,
        "train.tensorboard": False,
    }
)
WIDTHS = zipped(over("model.embed_dim", [8, 16, 32, 64]), over("model.num_heads", [1, 2, 4, 8]))


def rate(point: Point) -> dict[str, float]:
    """Half the recipe's learning rate at width 128 (a quarter of its batch), larger for narrower models by the root."""
    return {"optimizer.learning_rate": 2e-3 * math.sqrt(128 / point["model.embed_dim"])}


def get_sweep() -> Sweep:
    """The sweep."""
    sizes = derived(product(SHARED, WIDTHS), rate)
    fitted = isoflop(sizes, BUDGETS, RECIPE)
    largest = isoflop(sizes[1:3], [HELD_OUT], RECIPE)
    steps = {(point["model.embed_dim"], point["train.num_steps"]) for point in largest}
    return Sweep(
        question="How large should a causal model be for its compute, at the smallest scale?",
        recipe=RECIPE,
        points=chain(fitted, largest),
        held_out=lambda point: (point["model.embed_dim"], point["train.num_steps"]) in steps,
        keep="none",
        analyses=("fit", "isoflop"),
    )

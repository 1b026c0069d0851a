"""Which learning rate each objective wants at one size: the first half of the question in sweep.py.

isoflop sweep run experiments/objectives/rates.py --on=local --workdir=runs/objective_rates --parallel=2
"""

from research.sweeps import Sweep, matched, only, over, product

RECIPE = "configs/causal.py:tiny"
SHARED = only(
    {
        "tokenizer.vocab_size": 1024,
        "model.num_layers": 2,
        "train.batch_size": 4,
        "train.evaluate_every": 10**6,
        "train.checkpoint_every": 10**6,
        "evaluate.num_samples": 0,
        "train.tensorboard": False,
    }
)
OBJECTIVES = over("objective.name", ["causal", "prefix", "masked"])
WIDTH = only({"model.embed_dim": 32, "model.num_heads": 2})
RATES = over("optimizer.learning_rate", [2.0**-power for power in range(10, 4, -1)])


def get_sweep() -> Sweep:
    """The sweep."""
    points = product(SHARED, WIDTH, OBJECTIVES, RATES, only({"train.num_steps": 1000}))
    return Sweep(
        question="Which learning rate do causal, prefix and masked pretraining want?",
        recipe=RECIPE,
        points=matched(points, RECIPE, by="model_flops"),
        yardstick="heldout_loss",
        keep="none",
        analyses=("transfer",),
    )

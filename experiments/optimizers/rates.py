"""Which learning rate each update rule wants: the first half of the question in sweep.py.

isoflop sweep run experiments/optimizers/rates.py --on=local --workdir=runs/optimizer_rates --parallel=2
"""

from research.sweeps import Points, Sweep, chain, only, over, product

RECIPE = "configs/causal.py:tiny"
# Minus the logarithms to base two about which four rates lie, each twice the one before.
MIDDLES = {"adamw": 7.0, "lion": 8.0, "muon": 6.0, "adafactor": 6.0, "schedule_free": 6.0, "sgd": 3.5}
SCHEDULES = {"schedule_free": {"optimizer.schedule": "constant"}}


def shared() -> Points:
    """Width 32, two layers, 1000 updates of 512 tokens."""
    return only(
        {
            "train.batch_size": 4,
            "train.num_steps": 1000,
            "tokenizer.vocab_size": 1024,
            "model.num_layers": 2,
            "model.embed_dim": 32,
            "model.num_heads": 4,
            "train.evaluate_every": 10**6,
            "train.checkpoint_every": 10**6,
            "evaluate.num_samples": 0,
            "train.tensorboard": False,
        }
    )


def get_sweep() -> Sweep:
    """The sweep."""
    points = [
        product(
            shared(),
            only({"optimizer.name": name} | SCHEDULES.get(name, {})),
            over("optimizer.learning_rate", [2.0 ** -(middle + step) for step in (1.5, 0.5, -0.5, -1.5)]),
        )
        for name, middle in MIDDLES.items()
    ]
    return Sweep(
        question="Which learning rate does each update rule want?",
        recipe=RECIPE,
        points=chain(*points),
        keep="none",
        analyses=("transfer",),
    )

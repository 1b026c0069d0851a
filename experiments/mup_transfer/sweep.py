"""Learning rates at four widths, under the standard parametrisation and under mup from the narrowest.

isoflop sweep run experiments/mup_transfer/sweep.py --on=local --workdir=runs/mup_transfer --parallel=2
"""

from research.sweeps import Sweep, chain, only, over, product, zipped

RECIPE = "configs/causal.py:tiny"
WIDTHS = (32, 64, 128, 256)
BASE = WIDTHS[0]
HEAD_WIDTH = 16
RATES = tuple(2.0**-power for power in range(10, 4, -1))

SHARED = only(
    {
        "tokenizer.vocab_size": 1024,
        "data.sequence_length": 64,
        "optimizer.groups": "embedding=4",
        "train.num_steps": 400,
        "train.evaluate_every": 10**6,
        "train.checkpoint_every": 10**6,
        "evaluate.num_samples": 0,
        "train.tensorboard": False,
    }
)
MUP = only({"model.parametrisation": "mup", "model.base_width": BASE, "model.base_head_dim": HEAD_WIDTH})


def get_sweep() -> Sweep:
    """The sweep; at the base the two parametrisations are one, so that its cells stand for both."""
    sizes = zipped(
        over("model.embed_dim", WIDTHS),
        over("model.num_heads", [width // HEAD_WIDTH for width in WIDTHS]),
        over("model.mlp_dim", [3 * width for width in WIDTHS]),
    )
    rates = over("optimizer.learning_rate", RATES)
    return Sweep(
        question="Does the best learning rate of a narrow model hold for models up to eight times as wide?",
        recipe=RECIPE,
        points=chain(product(SHARED, sizes, rates), product(SHARED, MUP, sizes[1:], rates)),
        keep="none",
        analyses=("transfer",),
    )

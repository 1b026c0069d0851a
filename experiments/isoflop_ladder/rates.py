"""Which learning rate each size of the ladder wants: the first half of the question in sweep.py.

isoflop sweep run experiments/isoflop_ladder/rates.py --on=local --workdir=runs/ladder_rates --parallel=2
"""

from collections.abc import Sequence

from research.sweeps import Points, Sweep, isoflop, only, over, product, zipped

RECIPE = "configs/causal.py:tiny"
BUDGET = 2.5e11
WIDTHS = (8, 12, 16, 24, 32, 48, 64)


def sizes(widths: Sequence[int] = WIDTHS) -> Points:
    """Two layers and heads of 8, small updates and a small vocabulary, since the compute is small."""
    shared = only(
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
    heads = [max(1, width // 8) for width in widths]
    return product(shared, zipped(over("model.embed_dim", widths), over("model.num_heads", heads)))


def get_sweep() -> Sweep:
    """The sweep."""
    rates = over("optimizer.learning_rate", [2.0**-power for power in (9.5, 8.5, 7.5, 6.5, 5.5)])
    return Sweep(
        question="Which learning rate does each size want at a quarter of a TFLOP?",
        recipe=RECIPE,
        points=isoflop(product(sizes(), rates), [BUDGET], RECIPE),
        keep="none",
        analyses=("transfer",),
    )

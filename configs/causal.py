"""Causal language modelling (GPT): each token from those before it in its document.

    isoflop train --config=configs/causal.py:tiny --workdir=runs/first

Cost and result of `tiny`: 2.7 million tokens, 12 TFLOP, three to four minutes on two CPU cores; 1.70 held-out bits per
byte on the embedded corpus, where a bigram model of the same training tokens reaches 2.06 and a 3-gram model 1.60.

What was tried for `tiny`, each at 11.3 TFLOP (held-out bits per byte; width 128, 2 layers, sequence 128, vocabulary
2048, 2.5 million tokens unless said):

    batch 32, rate 1e-2                        2.016
    batch 16, rate 1e-2 / 6e-3 / 4e-3          1.927 / 1.817 / 1.793
    batch 16, rate 4e-3, queries and keys normalised    1.793
    batch 8, rate 4e-3                         1.746
    the same, vocabulary 4096, 1.9 million tokens       1.764 (bigram 1.904)
    batch 8, rate 4e-3, beta2 0.99             1.735   <- the recipe, run a little longer
    the same, queries and keys normalised      1.725   (left out: the ladder keeps one architecture)
"""

import ml_collections

from configs import base, sizes


def get_config(size: str = "tiny") -> ml_collections.ConfigDict:
    """The recipe at a size of the ladder in `configs/sizes.py`."""
    config = base.get_config()
    sizes.set_size(config, size)
    config.objective.name = "causal"
    return config

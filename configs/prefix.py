"""Prefix language modelling: the rest of a document from a beginning that is read from both sides.

    isoflop train --config=configs/prefix.py:tiny --workdir=runs/prefix

Cost of `tiny`: that of `configs/causal.py`. After its first 300 of 2600 updates (`--config.train.num_steps=300`, 0.3
million tokens, half a minute on two CPU cores): 5.60 nats a held-out target, where the frequencies of the targets alone
give 6.51.
"""

import ml_collections

from configs import base, sizes


def get_config(size: str = "tiny") -> ml_collections.ConfigDict:
    """The recipe at a size of the ladder in `configs/sizes.py`."""
    config = base.get_config()
    sizes.set_size(config, size)
    config.objective.name = "prefix"
    return config

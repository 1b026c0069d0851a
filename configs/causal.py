"""Causal language modelling (GPT)."""

import ml_collections

from configs import base, sizes


def get_config(size: str = "tiny") -> ml_collections.ConfigDict:
    """The recipe at a size of the ladder in `configs/sizes.py`."""
    config = base.get_config()
    sizes.set_size(config, size)
    config.objective.name = "causal"
    return config

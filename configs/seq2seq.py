"""Sequence to sequence: the encoder reads the first part of each document, the decoder predicts the rest.

    isoflop train --config=configs/seq2seq.py:tiny --workdir=runs/seq2seq
    isoflop generate --workdir=runs/seq2seq --prompt='Return the'

A rung alone gets an encoder as deep as the decoder; `t5-` before it makes a T5.

Cost of `tiny`: 2.7 million raw tokens, over twice the operations of `configs/causal.py`: either side has a position for
every raw token. After its first 300 of 2600 updates (`--config.train.num_steps=300`, a minute on two CPU cores): 5.71
nats a held-out target, where the frequencies of the targets alone give 6.50.
"""

import ml_collections

from configs import base, sizes


def get_config(size: str = "tiny") -> ml_collections.ConfigDict:
    """The recipe at a size of the ladder in `configs/sizes.py`; a rung alone gets an encoder as deep as the decoder."""
    config = base.get_config()
    sizes.set_size(config, size)
    config.model.architecture = "encoder_decoder"
    config.objective.name = "seq2seq"
    return config

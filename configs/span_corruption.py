"""Span corruption (T5): 15 % of the tokens in spans of three, named by sentinels and restored in one sequence.

    isoflop train --config=configs/span_corruption.py:tiny --workdir=runs/spans
    isoflop train --config=configs/span_corruption.py:t5-tiny --workdir=runs/t5
    isoflop train --config=configs/span_corruption.py:tiny --workdir=runs/ul2 --config.objective.denoisers=r,x,s
    isoflop generate --workdir=runs/spans --prompt='Return the [MASK] of the array.'

A rung alone is the model of `configs/causal.py`, and the inputs are a bidirectional prefix of the targets; `t5-` before
it makes an encoder and a decoder of that many layers each.

Cost of `tiny`: 2.4 million raw tokens, that of `configs/causal.py`; `t5-tiny` twice that. After the first 300 of 2600
updates (`--config.train.num_steps=300`, half a minute to a minute on two CPU cores): `tiny` 5.26 nats a held-out
target and 19 % of the targets restored, where their frequencies alone give 5.80 and the most frequent one 6 %;
`t5-tiny` 5.65 and 11 %, with T5's own initial embeddings (`--config.model.embedding_std=1`) 5.38 and 21 %, where their
frequencies give 5.88.
"""

import ml_collections

from configs import base, sizes


def get_config(size: str = "tiny") -> ml_collections.ConfigDict:
    """The recipe at a size of the ladder in `configs/sizes.py`."""
    config = base.get_config()
    sizes.set_size(config, size)
    config.objective.name = "span_corruption"
    return config

"""Plans by analysis that several suites ask about."""

import functools
from typing import Any

from research.plan import planning, topologies
from research.plan.planning import Plan
from tests import small

WIDE = {
    "model.embed_dim": 512,
    "model.num_layers": 4,
    "model.mlp_dim": 2048,
    "data.sequence_length": 256,
    "train.batch_size": 16,
    "model.compute_dtype": "bfloat16",
    "parallel.preset": "fsdp",
}
LARGE = {
    "model__embed_dim": 8192,
    "model__num_heads": 64,
    "model__mlp_dim": 28672,
    "model__num_layers": 24,
    "data__sequence_length": 2048,
    "tokenizer__vocab_size": 320,
}


@functools.cache
def planned(topology: str = "v5e:2x2", slices: int = 1, **changes: Any) -> Plan:
    """The wide run by analysis; `__` in the name of a change stands for a dot."""
    keys = WIDE | {name.replace("__", "."): value for name, value in changes.items()}
    return planning.plan(small.settings(keys), topologies.parse(topology, slices), compiles=False)

"""How the processes of a run agree on what one of them saw. With one process nothing is exchanged."""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_REASON_BYTES = 512


def from_first_process(value: Any) -> Any:
    """The value (anything that JSON holds) of process 0, on every process; the other values are ignored."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.array(text.size, np.int32)))
    padded = np.zeros(size, np.uint8)
    if jax.process_index() == 0:
        padded[:] = text
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes().decode())


def first_reason(reason: str | None) -> str | None:
    """The reason of the lowest process that has one, on every process; `None` where no process has one."""
    if jax.process_count() == 1:
        return reason
    encoded = (reason or "").encode()[:_REASON_BYTES]
    padded = np.frombuffer(encoded.ljust(_REASON_BYTES, b"\0"), np.uint8)
    everyone = np.asarray(multihost_utils.process_allgather(padded)).astype(np.uint8)
    reasons = [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in everyone]
    return next((text for text in reasons if text), None)

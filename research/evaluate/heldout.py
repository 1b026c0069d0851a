"""Held-out loss, perplexity, bits per byte and accuracy."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from research.models import Transformer
from research.objectives import Objective
from research.parallel import arrays

Evaluate = Callable[[Any], dict[str, float | None]]


@runtime_checkable
class HeldoutBatches(Protocol):
    """Fixed batches, padded with rows of weight zero; each holds the rows of this host."""

    num_batches: int
    num_bytes: int

    def batch(self, index: int) -> dict[str, np.ndarray]:
        """The arrays of a batch, each `[rows, ...]`."""
        ...


def heldout_evaluation(
    model: Transformer, objective: Objective, batches: HeldoutBatches, batch_size: int, mesh: Mesh
) -> Evaluate:
    """A function of the weights that gives

    - `heldout_loss`: nats a target, over all held-out windows;
    - `heldout_perplexity`: its exponential;
    - `heldout_bits_per_byte`: bits of all targets over bytes of text; none for masked models, which do not predict all;
    - `heldout_accuracy`: share of targets that are the most probable token; none for causal models.
    """
    masked = objective.name == "masked"
    held = arrays.local_rows(batch_size, mesh)

    @jax.jit
    def sums(params: Any, batch: Mapping[str, Array]) -> dict[str, Array]:
        rows = jax.tree.map(lambda array: array[0], dict(batch))
        outputs = model.apply(params, rows, pattern=objective.pattern)
        found = {"loss": objective.terms(model, params, outputs, rows)["loss"].sum, "weight": jnp.sum(rows["weights"])}
        if masked:
            hidden, targets, weights = objective.select(outputs.hidden, rows)
            found["correct"] = jnp.sum(weights * (model.predictions(params, hidden) == targets).astype(jnp.float32))
        return found

    def parts(params: Any) -> Iterator[dict[str, Array]]:
        for index in range(batches.num_batches):
            rows = {name: array[None] for name, array in batches.batch(index).items()}
            yield sums(params, arrays.to_global(rows, batch_size, held, mesh))

    def evaluate(params: Any) -> dict[str, float | None]:
        totals: dict[str, float] = {}
        for part in jax.device_get(list(parts(params))):
            for name, value in part.items():
                totals[name] = totals.get(name, 0.0) + float(value)
        loss = totals["loss"] / totals["weight"]
        return {
            "heldout_loss": loss,
            "heldout_perplexity": math.exp(min(loss, 700.0)),
            "heldout_bits_per_byte": None if masked else totals["loss"] / math.log(2) / batches.num_bytes,
            "heldout_accuracy": totals["correct"] / totals["weight"] if masked else None,
        }

    return evaluate

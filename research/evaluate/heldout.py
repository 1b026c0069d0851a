"""Held-out loss, perplexity, bits per byte and accuracies."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from research.models import Model
from research.objectives import Objective
from research.parallel import arrays

Evaluate = Callable[[Any], dict[str, float | None]]
Sums = Callable[[Any, Mapping[str, Array]], dict[str, tuple[Array, Array]]]


@runtime_checkable
class HeldoutBatches(Protocol):
    """Fixed batches, padded with rows of weight zero; each holds the rows of this host."""

    num_batches: int
    num_bytes: int

    def batch(self, index: int) -> dict[str, np.ndarray]:
        """The arrays of a batch, each `[rows, ...]`."""
        ...


def heldout_evaluation(
    model: Model,
    objective: Objective,
    batches: HeldoutBatches,
    batch_size: int,
    mesh: Mesh,
    sums: Sums | None = None,
) -> Evaluate:
    """A function of the weights that gives

    - `heldout_loss`: cross entropy in nats a target, over all held-out windows, without smoothing and other terms;
    - `heldout_perplexity`: its exponential;
    - `heldout_bits_per_byte`: bits of all targets over bytes of text; none where not all of the text is predicted;
    - `heldout_accuracy`: share of targets that are the most probable token; none where every token is a target;
    - `heldout_loss_NAME`: of each further term of the loss, and of each member of a mixture;
    - `heldout_accuracy_NAME`: of each further question.

    Runs of one program share what `sums_of` has made for one of them.
    """
    held = arrays.local_rows(batch_size, mesh)
    sums = sums or sums_of(model, objective)

    def parts(params: Any) -> Iterator[dict[str, tuple[Array, Array]]]:
        for index in range(batches.num_batches):
            rows = {name: array[None] for name, array in batches.batch(index).items()}
            yield sums(params, arrays.to_global(rows, batch_size, held, mesh))

    def evaluate(params: Any) -> dict[str, float | None]:
        totals: dict[str, np.ndarray] = {}
        for part in jax.device_get(list(parts(params))):
            for name, pair in part.items():
                totals[name] = totals.get(name, np.zeros(2)) + np.array(pair, dtype=np.float64)
        means = {name: float(total / weight) if weight else None for name, (total, weight) in totals.items()}
        loss = float(totals["loss"][0] / totals["loss"][1])
        bits = float(totals["loss"][0]) / math.log(2) / batches.num_bytes
        shown = {name: mean for name, mean in means.items() if name not in {"loss", "loss_loss", "loss_z", "accuracy"}}
        return {
            "heldout_loss": loss,
            "heldout_perplexity": math.exp(min(loss, 700.0)),
            "heldout_bits_per_byte": bits if objective.predicts_text else None,
            "heldout_accuracy": means.get("accuracy"),
        } | {f"heldout_{name}": mean for name, mean in shown.items()}

    return evaluate


def sums_of(model: Model, objective: Objective) -> Sums:
    """The compiled part of an evaluation: sums and weights by name over the rows of a batch."""

    @jax.jit
    def sums(params: Any, batch: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
        rows = jax.tree.map(lambda array: array[0], dict(batch))
        outputs = model.apply(params, rows, pattern=objective.pattern)
        terms = objective.terms(model, params, outputs, rows)
        found = {f"loss_{name}": (term.sum, term.weight) for name, term in terms.items()}
        # Without smoothing and z-loss the two are one.
        found["loss"] = found.pop("loss_cross_entropy", found["loss_loss"])
        hits = objective.hits(model, params, outputs, rows)
        return found | {f"accuracy{name and '_'}{name}": of for name, of in hits.items()}

    return sums

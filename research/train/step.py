"""One update: `(state, batch) -> (state, metrics)`, pure."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from research import trees
from research.models import Model, Outputs
from research.objectives import Objective, Term
from research.optim import learning_rate, optimizer, without_frozen
from research.settings import Settings
from research.train import noise
from research.train.state import TrainState

Step = Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, dict[str, Array]]]


def make_step(settings: Settings, model: Model, objective: Objective) -> Step:
    """The update for batches `[accumulation, rows, ...]`.

    Sums of all terms are added over the micro-batches and divided once by the weight of the whole batch, so that
    accumulation changes nothing but the order of additions. With `train.noise_scale` the squared norms of what each of
    them adds are summed as well, one number.
    """
    measured = settings.train.noise_scale

    def micro(params: Any, batch: Mapping[str, Array], weights: Mapping[str, Array], key: Array, rate: Array) -> Any:
        outputs = model.apply(params, batch, pattern=objective.pattern, key=key, dropout=rate)
        terms = objective.terms(model, params, outputs, batch) | own_terms(model, outputs, weights)
        parts = {name: term.sum / jnp.maximum(weights[name], 1.0) for name, term in terms.items()}
        return total(terms, parts), (parts, outputs.aux)

    def step(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, dict[str, Array]]:
        weights = objective.weights(batch) | dict.fromkeys(model.loss_coefficients, sequences(batch))
        key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        gradient_of = jax.value_and_grad(micro, has_aux=True)
        count = batch["tokens"].shape[0]

        def accumulate(carry: Any, part: Any) -> Any:
            number, rows = part
            own = key if count == 1 else jax.random.fold_in(key, number)
            (loss, (parts, aux)), gradients = gradient_of(state.params, rows, weights, own, state.hyper.dropout)
            gradients = noise.apart(gradients, model.parameters())
            square = noise.square(without_frozen(settings.optimizer, gradients)) if measured else None
            return jax.tree.map(jnp.add, carry, (loss, parts, gradients, square)), aux

        if count == 1:
            rows = jax.tree.map(lambda array: array[0], dict(batch))
            (loss, (parts, aux)), gradients = gradient_of(state.params, rows, weights, key, state.hyper.dropout)
        else:
            first = jax.tree.map(lambda array: array[0], dict(batch))
            shapes = jax.eval_shape(gradient_of, state.params, first, weights, key, state.hyper.dropout)
            (loss, (parts, _)), gradients = shapes
            sums = (loss, parts, gradients, loss if measured else None)
            empty = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), sums)
            (loss, parts, gradients, squares), aux = jax.lax.scan(accumulate, empty, (jnp.arange(count), dict(batch)))
            aux = jax.tree.map(lambda values: jnp.max(values, axis=0), aux)

        rule = optimizer(settings.optimizer, state.hyper, model.parameters())
        gradients = without_frozen(settings.optimizer, gradients)
        size = norms("gradient_norm", gradients)
        known = size["gradient_norm"]
        with jax.named_scope("optimizer"):
            updates, moments = rule.update(gradients, state.optimizer, state.params, gradient_norm=known)
            params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            **({} if len(parts) == 1 else {f"loss_{name}": value for name, value in parts.items()}),
            "learning_rate": learning_rate(settings.optimizer.schedule, state.hyper, state.step),
            **size,
            **norms("update_norm", updates),
            **norms("parameter_norm", params),
            **{name: jnp.max(values) for name, values in aux.items()},
            "targets": weights["loss"],
        }
        if measured:
            each = jax.vmap(lambda rows: objective.weights(rows)["loss"])(dict(batch))
            metrics |= noise.estimates(squares, jnp.square(known), each)
        return state.after(params, moments), metrics

    return step


def own_terms(model: Model, outputs: Outputs, weights: Mapping[str, Array]) -> dict[str, Term]:
    """The model's own losses, means over the sequences of the batch."""
    return {
        name: Term(outputs.losses[name], weights[name], coefficient)
        for name, coefficient in model.loss_coefficients.items()
    }


def sequences(batch: Mapping[str, Array]) -> Array:
    """Rows of a batch that hold a token."""
    return jnp.sum(jnp.any(batch["segment_ids"] > 0, axis=-1).astype(jnp.float32))


def total(terms: Mapping[str, Term], parts: Mapping[str, Array]) -> Array:
    """The loss: its terms' means, each times its coefficient."""
    return sum((term.coefficient * parts[name] for name, term in terms.items()), start=jnp.zeros((), jnp.float32))


@jax.named_scope("statistics")
def norms(name: str, tree: Any) -> dict[str, Array]:
    """Euclidean norms over all leaves (`name`) and over each layer's stacked leaves (`name_by_layer`, `[layers]`)."""
    whole, layered = jnp.zeros((), jnp.float32), []
    for path, leaf in trees.flatten(tree).items():
        if path.startswith("layers/"):
            layered.append(jnp.sum(jnp.square(leaf), axis=tuple(range(1, leaf.ndim))))
        else:
            whole += jnp.sum(jnp.square(leaf))
    # A norm that the first layer lacks has a row less: its rows are those of the last layers.
    depth = max(part.shape[0] for part in layered)
    by_layer = sum(jnp.pad(part, (depth - part.shape[0], 0)) for part in layered)
    return {name: jnp.sqrt(whole + jnp.sum(by_layer)), f"{name}_by_layer": jnp.sqrt(by_layer)}

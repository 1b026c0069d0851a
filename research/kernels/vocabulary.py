"""The vocabulary head with its loss: cross entropy of `hidden @ table.T` against target ids."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

VocabularyLoss = Callable[..., Float[Array, ""]]

CHUNKS = 16


def reference(
    hidden: Float[Array, "tokens embed"],
    table: Float[Array, "vocab embed"],
    targets: Int[Array, " tokens"],
    weights: Float[Array, " tokens"],
) -> Float[Array, ""]:
    """Weighted sum of cross entropies in nats, all logits at once in float32."""
    logits = _logits(hidden, table)
    return jnp.sum(weights * (jax.nn.logsumexp(logits, axis=-1) - _at(logits, targets)))


@jax.custom_vjp
def chunked(
    hidden: Float[Array, "tokens embed"],
    table: Float[Array, "vocab embed"],
    targets: Int[Array, " tokens"],
    weights: Float[Array, " tokens"],
) -> Float[Array, ""]:
    """The same sum, never holding `[tokens, vocab]`: loss and both gradients come from one pass over chunks.

    The weights are constants of the batch: their gradient is zero here.
    """

    def chunk(total: Array, part: tuple[Array, ...]) -> tuple[Array, None]:
        hidden, targets, weights = part
        return total + reference(hidden, table, targets, weights), None

    return jax.lax.scan(chunk, jnp.zeros((), jnp.float32), _split(hidden, targets, weights))[0]


def _chunked_forward(
    hidden: Array, table: Array, targets: Array, weights: Array
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    def chunk(carry: tuple[Array, Array], part: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        total, gradient = carry
        hidden, targets, weights = part
        logits = _logits(hidden, table)
        largest = jnp.max(logits, axis=-1, keepdims=True)
        exponentials = jnp.exp(logits - largest)
        normaliser = jnp.sum(exponentials, axis=-1, keepdims=True)
        loss = jnp.log(normaliser[:, 0]) + largest[:, 0] - _at(logits, targets)
        hot = targets[:, None] == jnp.arange(table.shape[0])[None, :]
        error = (exponentials * (weights[:, None] / normaliser) - jnp.where(hot, weights[:, None], 0.0)).astype(
            hidden.dtype
        )
        gradient += jax.lax.dot_general(error, hidden, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        return (total + jnp.sum(weights * loss), gradient), error @ table

    start = (jnp.zeros((), jnp.float32), jnp.zeros(table.shape, jnp.float32))
    (total, gradient), hidden_gradient = jax.lax.scan(chunk, start, _split(hidden, targets, weights))
    hidden_gradient = hidden_gradient.reshape(-1, hidden.shape[1])[: hidden.shape[0]]
    return total, (hidden_gradient, gradient.astype(table.dtype), targets, weights)


def _chunked_backward(kept: tuple[Array, Array, Array, Array], cotangent: Array) -> tuple[Array, Array, None, Array]:
    hidden_gradient, gradient, _, weights = kept
    scaled = cotangent.astype(hidden_gradient.dtype)
    return hidden_gradient * scaled, gradient * cotangent.astype(gradient.dtype), None, jnp.zeros_like(weights)


chunked.defvjp(_chunked_forward, _chunked_backward)


def predictions(hidden: Float[Array, "tokens embed"], table: Float[Array, "vocab embed"]) -> Int[Array, " tokens"]:
    """The most probable id at each position, a chunk of tokens at a time."""
    parts = jax.lax.map(lambda part: jnp.argmax(_logits(part[0], table), axis=-1).astype(jnp.int32), _split(hidden))
    return parts.reshape(-1)[: hidden.shape[0]]


def _logits(hidden: Array, table: Array) -> Array:
    return jnp.einsum("te,ve->tv", hidden, table, preferred_element_type=jnp.float32)


def _at(logits: Array, targets: Array) -> Array:
    return jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]


@partial(jax.named_call, name="split")
def _split(*arrays: Array) -> tuple[Array, ...]:
    """Each array as `[CHUNKS, tokens / CHUNKS, ...]`, zeros (of weight zero) behind the last token."""
    tokens = arrays[0].shape[0]
    size = -(-tokens // CHUNKS)
    padding = size * CHUNKS - tokens

    def split(array: Array) -> Array:
        padded = jnp.pad(array, ((0, padding),) + ((0, 0),) * (array.ndim - 1)) if padding else array
        return padded.reshape(CHUNKS, size, *array.shape[1:])

    return tuple(split(array) for array in arrays)

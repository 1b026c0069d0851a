"""The vocabulary head with its loss: cross entropy of `hidden @ table.T + bias` against target ids."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

CHUNKS = 8


class Losses(NamedTuple):
    """Weighted sums over tokens, in nats; only `total` is differentiated.

    Attributes:
      total: what is minimised: the cross entropy, smoothed, and the z-loss times its coefficient.
      cross_entropy: of the targets as they are.
      z: squares of the logarithm of the softmax's normaliser.
    """

    total: Float[Array, ""]
    cross_entropy: Float[Array, ""]
    z: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Form:
    """The static part of a vocabulary loss.

    Attributes:
      softcap: logits are bent to stay below this, by tanh; none: they are not.
      smoothing: probability that the target gives to all ids alike (Szegedy et al. 2016, section 7).
      z_loss: coefficient of the squared log-normaliser (Chowdhery et al. 2022, section 5).
    """

    softcap: float | None = None
    smoothing: float = 0.0
    z_loss: float = 0.0


PLAIN = Form()
VocabularyLoss = Callable[..., Losses]


def reference(
    hidden: Float[Array, "tokens embed"],
    table: Float[Array, "vocab embed"],
    bias: Float[Array, " vocab"] | None,
    targets: Int[Array, " tokens"],
    weights: Float[Array, " tokens"],
    form: Form = PLAIN,
) -> Losses:
    """The sums, all logits at once in float32."""
    values = logits(hidden, table, bias, form.softcap)
    normaliser = jax.nn.logsumexp(values, axis=-1)
    return _sums(normaliser, _at(values, targets), jnp.mean(values, axis=-1), weights, form)


def _sums(normaliser: Array, chosen: Array, mean: Array, weights: Array, form: Form) -> Losses:
    cross_entropy = jnp.sum(weights * (normaliser - chosen))
    z = jnp.sum(weights * normaliser**2)
    total = cross_entropy
    if form.smoothing:
        total = (1.0 - form.smoothing) * total + form.smoothing * jnp.sum(weights * (normaliser - mean))
    if form.z_loss:
        total += form.z_loss * z
    return Losses(total, jax.lax.stop_gradient(cross_entropy), jax.lax.stop_gradient(z))


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def chunked(
    hidden: Float[Array, "tokens embed"],
    table: Float[Array, "vocab embed"],
    bias: Float[Array, " vocab"] | None,
    targets: Int[Array, " tokens"],
    weights: Float[Array, " tokens"],
    form: Form = PLAIN,
) -> Losses:
    """The same sums, never holding `[tokens, vocab]`: loss and gradients come from one pass over chunks.

    The weights are constants of the batch: their gradient is zero here.
    """

    def chunk(sums: Losses, part: tuple[Array, ...]) -> tuple[Losses, None]:
        hidden, targets, weights = part
        return jax.tree.map(jnp.add, sums, reference(hidden, table, bias, targets, weights, form)), None

    return jax.lax.scan(chunk, _nothing(), _split(hidden, targets, weights))[0]


def _chunked_forward(
    hidden: Array, table: Array, bias: Array | None, targets: Array, weights: Array, form: Form
) -> tuple[Losses, tuple[Array, Array, Array | None, Array]]:
    ids = jnp.arange(table.shape[0])

    def chunk(carry: tuple[Losses, Array, Array | None], part: tuple[Array, ...]) -> tuple[tuple, Array]:
        sums, gradient, bias_gradient = carry
        hidden, targets, weights = part
        values = logits(hidden, table, bias, form.softcap)
        largest = jnp.max(values, axis=-1, keepdims=True)
        exponentials = jnp.exp(values - largest)
        total = jnp.sum(exponentials, axis=-1, keepdims=True)
        normaliser = jnp.log(total[:, 0]) + largest[:, 0]
        found = _sums(normaliser, _at(values, targets), jnp.mean(values, axis=-1), weights, form)
        pull = weights * (1.0 + 2.0 * form.z_loss * normaliser) if form.z_loss else weights
        hot = targets[:, None] == ids[None, :]
        error = exponentials * (pull[:, None] / total) - jnp.where(
            hot, (weights * (1.0 - form.smoothing))[:, None], 0.0
        )
        if form.smoothing:
            error -= weights[:, None] * (form.smoothing / len(ids))
        if form.softcap is not None:
            error *= 1.0 - (values / form.softcap) ** 2
        if bias_gradient is not None:
            bias_gradient += jnp.sum(error, axis=0)
        error = error.astype(hidden.dtype)
        gradient += jax.lax.dot_general(error, hidden, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        return (jax.tree.map(jnp.add, sums, found), gradient, bias_gradient), error @ table

    empty = None if bias is None else jnp.zeros(bias.shape, jnp.float32)
    start = (_nothing(), jnp.zeros(table.shape, jnp.float32), empty)
    (sums, gradient, bias_gradient), hidden_gradient = jax.lax.scan(chunk, start, _split(hidden, targets, weights))
    hidden_gradient = hidden_gradient.reshape(-1, hidden.shape[1])[: hidden.shape[0]]
    if bias is not None and bias_gradient is not None:
        bias_gradient = bias_gradient.astype(bias.dtype)
    return sums, (hidden_gradient, gradient.astype(table.dtype), bias_gradient, weights)


def _chunked_backward(form: Form, kept: tuple[Array, Array, Array | None, Array], cotangent: Losses) -> tuple:
    del form
    hidden_gradient, gradient, bias_gradient, weights = kept
    scaled = tuple(
        None if part is None else part * cotangent.total.astype(part.dtype)
        for part in (hidden_gradient, gradient, bias_gradient)
    )
    return *scaled, None, jnp.zeros_like(weights)


chunked.defvjp(_chunked_forward, _chunked_backward)


def predictions(
    hidden: Float[Array, "tokens embed"], table: Float[Array, "vocab embed"], bias: Float[Array, " vocab"] | None = None
) -> Int[Array, " tokens"]:
    """The most probable id at each position, a chunk of tokens at a time."""
    parts = jax.lax.map(
        lambda part: jnp.argmax(logits(part[0], table, bias), axis=-1).astype(jnp.int32), _split(hidden)
    )
    return parts.reshape(-1)[: hidden.shape[0]]


def logits(
    hidden: Float[Array, "*rows embed"],
    table: Float[Array, "vocab embed"],
    bias: Float[Array, " vocab"] | None = None,
    softcap: float | None = None,
) -> Float[Array, "*rows vocab"]:
    """Logits in float32."""
    values = jnp.einsum("...e,ve->...v", hidden, table, preferred_element_type=jnp.float32)
    if bias is not None:
        values += bias.astype(jnp.float32).reshape((1,) * (values.ndim - 1) + bias.shape)
    return values if softcap is None else softcap * jnp.tanh(values / softcap)


def _nothing() -> Losses:
    return Losses(*(jnp.zeros((), jnp.float32) for _ in range(3)))


def _at(values: Array, targets: Array) -> Array:
    return jnp.take_along_axis(values, targets[:, None], axis=-1)[:, 0]


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

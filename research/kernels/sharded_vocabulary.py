"""The vocabulary head with its loss over a mesh: tokens over the axes of rows and positions, the table's rows over
`tensor`; loss and gradients from one pass over chunks of tokens, never `[tokens, vocab]`.

What is sent is written here: the table is gathered once, over the axes that split its width, in the type of the
products; its gradient is added up once and each device keeps its own part; over `tensor` travel a few
numbers a token (the softmax's maximum and sum, the target's logit) and the gradient of the hidden states.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.kernels.layout import Axes, Layout, index, spec
from research.kernels.vocabulary import PLAIN, Form, Losses, logits

CHUNK = 2**26  # logits that a device holds at a time


@dataclasses.dataclass(frozen=True)
class ShardedVocabulary:
    """`kernels.vocabulary` on every device of a mesh.

    Attributes:
      layout: the mesh.
      chunk: logits that a device holds at a time.
    """

    layout: Layout
    chunk: int = CHUNK

    def __call__(
        self,
        hidden: Float[Array, "tokens embed"],
        table: Float[Array, "vocab embed"],
        bias: Float[Array, " vocab"] | None,
        targets: Int[Array, " tokens"],
        weights: Float[Array, " tokens"],
        form: Form = PLAIN,
    ) -> Losses:
        """The sums; the weights are constants of the batch, their gradient is zero."""
        layout = self.layout
        missing = -hidden.shape[0] % layout.size(*layout.batch, layout.sequence)
        if missing:  # tokens of weight zero, so that every device has as many
            hidden = jnp.pad(hidden, ((0, missing), (0, 0)))
            targets, weights = (jnp.pad(array, (0, missing)) for array in (targets, weights))
        return _loss(_Static(layout, form, self.chunk), hidden, table, bias, targets, weights)


@dataclasses.dataclass(frozen=True)
class _Static:
    layout: Layout
    form: Form
    chunk: int


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(static: _Static, hidden: Array, table: Array, bias: Array | None, targets: Array, weights: Array) -> Losses:
    return _mapped(static, False, hidden, table, bias, targets, weights)[0]


def _forward(
    static: _Static, hidden: Array, table: Array, bias: Array | None, targets: Array, weights: Array
) -> tuple[Losses, tuple[tuple[Array, Array, Array | None], Array]]:
    losses, gradients = _mapped(static, True, hidden, table, bias, targets, weights)
    assert gradients is not None
    return losses, (gradients, weights)


def _backward(static: _Static, kept: tuple, cotangent: Losses) -> tuple:
    del static
    gradients, weights = kept
    scaled = jax.tree.map(lambda part: part * cotangent.total.astype(part.dtype), gradients)
    return *scaled, None, jnp.zeros_like(weights)


_loss.defvjp(_forward, _backward)


def _mapped(
    static: _Static,
    differentiated: bool,
    hidden: Array,
    table: Array,
    bias: Array | None,
    targets: Array,
    weights: Array,
) -> tuple[Losses, tuple[Array, Array, Array | None] | None]:
    layout = static.layout
    rows = layout.split((*layout.batch, layout.sequence), hidden.shape[0])
    ids = layout.split((layout.tensor,), table.shape[0])
    width = tuple(axis for axis in layout.stored(table.shape, ("vocab", "embed"))[1] if axis not in ids)

    def local(hidden: Array, table: Array, bias: Array | None, targets: Array, weights: Array) -> tuple:
        for axis in reversed(width):
            table = jax.lax.all_gather(table, axis, axis=1, tiled=True)
        sums, gradients = _chunks(static, differentiated, ids, hidden, table, bias, targets, weights)
        sums = jax.lax.psum(sums, rows) if rows else sums
        if gradients is None:
            return sums, None
        of_hidden, of_table, of_bias = gradients
        for axis in width:
            if axis in rows:
                of_table = jax.lax.psum_scatter(of_table, axis, scatter_dimension=1, tiled=True)
            else:
                size = of_table.shape[1] // layout.size(axis)
                of_table = jax.lax.dynamic_slice_in_dim(of_table, jax.lax.axis_index(axis) * size, size, axis=1)
        if remaining := tuple(axis for axis in rows if axis not in width):
            of_table = jax.lax.psum(of_table, remaining)
        if of_bias is not None and bias is not None:
            of_bias = (jax.lax.psum(of_bias, rows) if rows else of_bias).astype(bias.dtype)
        # Before the backward pass of the body goes on: a whole float32 table must not live through it.
        of_hidden, of_table = jax.lax.optimization_barrier((of_hidden, of_table.astype(table.dtype)))
        return sums, (of_hidden, of_table, of_bias)

    given = (spec(rows, ()), spec(ids, width), spec(ids), spec(rows), spec(rows))
    gradients = (spec(rows, ()), spec(ids, width), spec(ids)) if differentiated else None
    return jax.shard_map(local, mesh=layout.mesh, in_specs=given, out_specs=(spec(), gradients), check_vma=False)(
        hidden, table, bias, targets, weights
    )


def _chunks(
    static: _Static,
    differentiated: bool,
    axes: Axes,
    hidden: Array,
    table: Array,
    bias: Array | None,
    targets: Array,
    weights: Array,
) -> tuple[Losses, tuple[Array, Array, Array | None] | None]:
    """The sums of a device's tokens and their gradients, a chunk of tokens at a time."""
    tokens, embed = hidden.shape
    count = min(-(-tokens * table.shape[0] // static.chunk), tokens)
    missing = -tokens % count
    parts = []
    for array in (hidden, targets, weights):
        padded = jnp.pad(array, ((0, missing),) + ((0, 0),) * (array.ndim - 1)) if missing else array
        parts.append(padded.reshape(count, -1, *array.shape[1:]))
    first = index(static.layout, axes) * table.shape[0]

    def step(carry: tuple, part: tuple[Array, ...]) -> tuple[tuple, Array | None]:
        sums, of_table, of_bias = carry
        found, error = _chunk(static, axes, first, table, bias, *part)
        sums = jax.tree.map(jnp.add, sums, found)
        if not differentiated:
            return (sums, of_table, of_bias), None
        if of_bias is not None:
            of_bias += jnp.sum(error, axis=0)
        error = error.astype(hidden.dtype)
        of_table += jax.lax.dot_general(error, part[0], (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        of_hidden = jnp.matmul(error, table, preferred_element_type=jnp.float32)
        of_hidden = jax.lax.psum(of_hidden, axes) if axes else of_hidden
        return (sums, of_table, of_bias), of_hidden.astype(hidden.dtype)

    zero = jnp.zeros((), jnp.float32)
    empty = jnp.zeros(table.shape if differentiated else (), jnp.float32)
    start = (Losses(zero, zero, zero), empty, None if bias is None else jnp.zeros(bias.shape, jnp.float32))
    (sums, of_table, of_bias), of_hidden = jax.lax.scan(step, start, tuple(parts))
    if of_hidden is None:
        return sums, None
    return sums, (of_hidden.reshape(-1, embed)[:tokens], of_table, of_bias)


def _chunk(
    static: _Static,
    axes: Axes,
    first: Array | int,
    table: Array,
    bias: Array | None,
    hidden: Array,
    targets: Array,
    weights: Array,
) -> tuple[Losses, Array]:
    """The sums of a chunk, and the gradient of its logits `[tokens, rows of the table that are here]`."""
    form = static.form
    vocab = table.shape[0] * static.layout.size(*axes)

    def added(array: Array) -> Array:
        return jax.lax.psum(array, axes) if axes else array

    values = logits(hidden, table, bias, form.softcap)
    largest = jnp.max(values, axis=-1)
    largest = jax.lax.pmax(largest, axes) if axes else largest
    exponentials = jnp.exp(values - largest[:, None])
    hot = (targets - first)[:, None] == jnp.arange(table.shape[0])[None, :]
    total = added(jnp.sum(exponentials, axis=-1))
    chosen = added(jnp.sum(jnp.where(hot, values, 0.0), axis=-1))
    normaliser = jnp.log(total) + largest
    cross_entropy, z = jnp.sum(weights * (normaliser - chosen)), jnp.sum(weights * normaliser**2)
    loss = cross_entropy
    if form.smoothing:
        mean = added(jnp.sum(values, axis=-1)) / vocab
        loss = (1.0 - form.smoothing) * loss + form.smoothing * jnp.sum(weights * (normaliser - mean))
    loss += form.z_loss * z
    pull = weights * (1.0 + 2.0 * form.z_loss * normaliser)
    error = exponentials * (pull / total)[:, None] - jnp.where(hot, (weights * (1.0 - form.smoothing))[:, None], 0.0)
    if form.smoothing:
        error -= weights[:, None] * (form.smoothing / vocab)
    if form.softcap is not None:
        error *= 1.0 - (values / form.softcap) ** 2
    return Losses(loss, cross_entropy, z), error

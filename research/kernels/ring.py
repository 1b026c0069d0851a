"""Ring attention (Liu et al. 2023): keys and values travel around the devices that share a sequence.

Each device keeps its queries. In each of as many steps as there are devices it attends to the keys that it holds at the
moment and hands them on, so that no device ever holds all keys. The softmax is put together from its parts (Milakov &
Gimelshein 2018); the backward pass sends keys around again, and their gradients with them.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from research.kernels.attention import HIDDEN, KEPT, Form, Operands
from research.kernels.layout import Layout, spec


@dataclasses.dataclass(frozen=True)
class Around:
    """The static part: the mesh axis, its size, and what is computed."""

    axis: str
    size: int
    form: Form


class _Parts(NamedTuple):
    """What travels, and the place of the device that it comes from."""

    key: Array
    value: Array
    segments: Array
    prefix: Array | None


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def ring(around: Around, operands: Operands) -> tuple[Float[Array, "batch query heads head_dim"], Float[Array, ""]]:
    """Attention of this device's queries to the keys of all devices, and the largest visible logit of real positions.

    Runs in a function that is mapped over `around.axis`, each device with its part of a sequence: equally many queries,
    equally many keys, and of the bias the columns of all keys. The offset of the operands is not read.
    """
    return _forward(around, operands)[:2]


def _forward(around: Around, of: Operands) -> tuple[Array, Array, Array, Array]:
    batch, length, heads, width = of.query.shape
    grouped = (batch, of.key.shape[2], heads // of.key.shape[2], length)

    def attend(carry: tuple[Array, ...], parts: _Parts, source: Array) -> tuple[Array, ...]:
        most, total, sums, largest = carry
        logits, visible = _logits(around, of, parts, source, of.query, parts.key, of.bias)
        real = visible & (of.query_segments > 0)[:, None, None, :, None]
        largest = jnp.maximum(largest, jnp.max(logits, initial=HIDDEN, where=real))
        higher = jnp.maximum(most, jnp.max(logits, axis=-1))
        weights, fading = jnp.exp(logits - higher[..., None]), jnp.exp(most - higher)
        products = jnp.einsum(
            "bghqk,bkgd->bghqd", weights.astype(parts.value.dtype), parts.value, preferred_element_type=jnp.float32
        )
        total = total * fading + jnp.sum(weights, axis=-1)
        return higher, total, sums * fading[..., None] + products, largest

    def step(carry: Any, number: Array) -> tuple[Any, None]:
        found, parts = carry
        source = (jax.lax.axis_index(around.axis) - number) % around.size
        found = jax.lax.cond(_seen(around, of, source), lambda c: attend(c, parts, source), lambda c: c, found)
        return (found, _passed_on(around, parts)), None

    # `HIDDEN` twice, so that a position that has seen nothing yet fades to nothing when it sees something.
    start = (
        jnp.full(grouped, 2 * HIDDEN, jnp.float32),
        jnp.zeros(grouped, jnp.float32),
        jnp.zeros((*grouped, width), jnp.float32),
        jnp.full((), HIDDEN, jnp.float32),
    )
    parts = _Parts(of.key, of.value, of.key_segments, of.key_prefix)
    ((most, total, sums, largest), _), _ = jax.lax.scan(step, (start, parts), jnp.arange(around.size))
    out = jnp.moveaxis(sums / total[..., None], 3, 1).reshape(of.query.shape).astype(of.query.dtype)
    return out, jax.lax.pmax(largest, around.axis), most, total


def _ring_forward(around: Around, of: Operands) -> tuple[tuple[Array, Array], tuple[Operands, Array, Array, Array]]:
    out, largest, *sums = _forward(around, of)
    out, most, total = (checkpoint_name(array, KEPT) for array in (out, *sums))
    return (out, largest), (of, out, most, total)


def _ring_backward(
    around: Around, kept: tuple[Operands, Array, Array, Array], cotangents: tuple[Array, Array]
) -> tuple[Operands]:
    of, out, most, total = kept
    pull = cotangents[0].astype(jnp.float32)
    mean = jnp.sum(pull * out.astype(jnp.float32), axis=-1)
    batch, length, heads, width = of.query.shape
    groups = of.key.shape[2]
    pull = pull.reshape(batch, length, groups, heads // groups, width)
    mean = jnp.moveaxis(mean.reshape(batch, length, groups, heads // groups), 1, 3)

    def pulled(query: Array, key: Array, value: Array, bias: Array | None, parts: _Parts, source: Array) -> Array:
        """A scalar whose gradients are those of attention (Dao et al. 2022, appendix B.2), the normaliser fixed."""
        logits, _ = _logits(around, of, parts, source, query, key, bias)
        along = jnp.einsum("bqghd,bkgd->bghqk", pull, value.astype(jnp.float32)) - mean[..., None]
        return jnp.sum(jnp.exp(logits - most[..., None]) * (along / total[..., None]))

    def attend(carry: tuple, parts: _Parts, source: Array) -> tuple:
        given = (of.query, parts.key, parts.value, of.bias)
        found = jax.grad(pulled, argnums=(0, 1, 2, 3) if of.bias is not None else (0, 1, 2))(*given, parts, source)
        return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), carry, tuple(found))

    def step(carry: tuple, number: Array) -> tuple[tuple, None]:
        own, travelling, parts = carry
        source = (jax.lax.axis_index(around.axis) - number) % around.size
        before = (own[0], *travelling, *own[1:])
        after = jax.lax.cond(_seen(around, of, source), lambda c: attend(c, parts, source), lambda c: c, before)
        own, travelling = (after[0], *after[3:]), after[1:3]
        return (own, *_passed_on(around, (travelling, parts))), None

    def nothing(array: Array) -> Array:
        return jnp.zeros(array.shape, jnp.float32)

    own = (nothing(of.query),) + (() if of.bias is None else (nothing(of.bias),))
    parts = _Parts(of.key, of.value, of.key_segments, of.key_prefix)
    start = (own, (nothing(of.key), nothing(of.value)), parts)
    (own, (key, value), _), _ = jax.lax.scan(step, start, jnp.arange(around.size))
    bias = own[1].astype(of.bias.dtype) if of.bias is not None else None
    gradients = (own[0].astype(of.query.dtype), key.astype(of.key.dtype), value.astype(of.value.dtype))
    return (Operands(*gradients, None, None, None, None, bias),)  # type: ignore[arg-type]


ring.defvjp(_ring_forward, _ring_backward)


def _passed_on(around: Around, parts: tuple) -> tuple:
    """What the neighbour before held."""
    pairs = [(device, (device + 1) % around.size) for device in range(around.size)]
    return jax.tree.map(lambda array: jax.lax.ppermute(array, around.axis, pairs), parts)


def _seen(around: Around, of: Operands, source: Array) -> Array:
    """Whether any query of this device can see any key of another, by their places alone."""
    queries, keys = of.query.shape[1], of.key.shape[1]
    first = jax.lax.axis_index(around.axis) * queries - source * keys
    seen = jnp.ones((), bool)
    pattern = around.form.pattern
    if pattern.causal and not pattern.prefix:
        seen &= first + queries - 1 >= 0
    if pattern.window is not None:
        seen &= (first + queries - 1 >= -pattern.window) & (first - (keys - 1) <= pattern.window)
    return seen


def _logits(
    around: Around, of: Operands, parts: _Parts, source: Array, query: Array, key: Array, bias: Array | None
) -> tuple[Array, Array]:
    """Logits `[batch, groups, heads of a group, query, key]` of the keys that are here, and which are visible."""
    batch, length, heads, width = query.shape
    keys, groups = key.shape[1], key.shape[2]
    grouped = query.reshape(batch, length, groups, heads // groups, width)
    logits = jnp.einsum("bqghd,bkgd->bghqk", grouped, key, preferred_element_type=jnp.float32)
    form = around.form
    logits *= form.factor(width)
    if form.softcap is not None:
        logits = form.softcap * jnp.tanh(logits / form.softcap)
    if bias is not None:
        columns = jax.lax.dynamic_slice_in_dim(bias, source * keys, keys, axis=2).astype(jnp.float32)
        logits += columns.reshape(1, groups, heads // groups, length, keys)
    offset = jax.lax.axis_index(around.axis) * length - source * keys
    visible = form.pattern.visible(of.query_segments, parts.segments, offset, parts.prefix)[:, None, None]
    return jnp.where(visible, logits, HIDDEN), visible


@dataclasses.dataclass(frozen=True)
class Alone:
    """A ring of one device: what a plan traces, whose shapes are those of a device's own part.

    Attributes:
      layout: a mesh of one device.
    """

    layout: Layout

    def __call__(self, of: Operands, form: Form) -> tuple[Float[Array, "batch query heads head_dim"], Float[Array, ""]]:
        """See `kernels.attention`."""
        parts = {name: array for name, array in of._asdict().items() if isinstance(array, jax.Array)}
        around = Around(self.layout.sequence, 1, form)
        mapped = jax.shard_map(
            lambda own: ring(around, Operands(**own)),
            mesh=self.layout.mesh,
            in_specs=(spec(),),
            out_specs=(spec(), spec()),
            check_vma=False,
        )
        return mapped(parts)

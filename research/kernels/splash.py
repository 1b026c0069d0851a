"""Splash attention, Pallas' blockwise attention for TPUs: what a pattern hides is neither loaded nor computed.

It knows causal and bidirectional patterns, windows, segments, grouped heads, caps and scales. What it does not know is
left to blocked attention and said once in the log: biases, prefixes, cached keys, lengths that 128 does not divide.
"""

import dataclasses
import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float

from research.kernels import attention
from research.kernels.attention import Form, Operands
from research.kernels.layout import Layout, spec
from research.kernels.patterns import Pattern
from research.kernels.sharded_attention import ShardedAttention, cut, gathered

LANES = 128
QUERY_BLOCK, KEY_BLOCK = 512, 1024

log = logging.getLogger("isoflop")


@functools.cache
def _say(reason: str) -> None:
    log.warning("splash attention is replaced by blocked attention in a layer: %s", reason)


def unsupported(
    pattern: Pattern, queries: int, keys: int, *, known: bool, biased: bool, parts: tuple[int, int] = (1, 1)
) -> str | None:
    """Why a call cannot be a splash kernel; none: it can.

    Args:
      pattern: who sees whom.
      queries: positions that ask.
      keys: positions that are asked.
      known: the first query stands at the first key.
      biased: something is added to the logits.
      parts: into how many the mesh cuts the queries, and the keys.
    """
    if biased:
        return "the kernel adds no bias to the logits (position=relative and alibi)"
    if pattern.prefix:
        return "the kernel's mask is static, a prefix is data"
    if not known:
        return "the place of the first query is known at run time alone"
    if (pattern.causal or pattern.window is not None) and queries != keys:
        return f"{queries} queries and {keys} keys under a mask that counts distances"
    for length, count in ((queries, parts[0]), (keys, parts[1])):
        if length % (LANES * count):
            return f"a length of {length} in {count} parts is no multiple of {LANES}"
    if parts[0] > 1 and queries % parts[0] ** 2:
        return f"a length of {queries} is not divisible by the square of its {parts[0]} parts"
    return None


@dataclasses.dataclass(frozen=True)
class Splash:
    """Splash attention of one device, or of each device of a mesh on its rows, heads and queries.

    Attributes:
      layout: the mesh; none: one device.
      interpret: runs the kernel step by step on any platform, for tests.
      query_block: most queries of a block.
      key_block: most keys of a block; it is computed in parts of `query_block`.
    """

    layout: Layout | None = None
    interpret: bool = False
    query_block: int = QUERY_BLOCK
    key_block: int = KEY_BLOCK

    def __call__(
        self, of: Operands, form: Form
    ) -> tuple[Float[Array, "batch query heads head_dim"], Float[Array, ""] | None]:
        """See `kernels.attention`; the largest logit is not known."""
        layout, pattern, query, key = self.layout, form.pattern, of.query, of.key
        split = None if layout is None else cut(layout, query, key)
        parts = (1, 1) if layout is None or split is None else (layout.size(*split.queries), layout.size(*split.keys))
        known = isinstance(of.query_offset, int) and of.query_offset == 0
        reason = unsupported(
            pattern, query.shape[1], key.shape[1], known=known, biased=of.bias is not None, parts=parts
        )
        if reason is not None:
            _say(reason)
            other = attention.blocked if layout is None else ShardedAttention(attention.blocked, layout)
            return other(of, form)
        factor = form.factor(query.shape[3])
        heads = 1 if layout is None or split is None else layout.size(*split.heads)
        # A mask that hides nothing is the same for every part of the queries.
        placed = pattern.causal or pattern.window is not None
        count, length = (parts[0], query.shape[1]) if placed else (1, query.shape[1] // parts[0])
        blocks = (self.query_block, self.key_block)
        static = _Kernel(
            pattern, length, key.shape[1], query.shape[2], heads, count, form.softcap, blocks, self.interpret
        )
        kernel = static.made()
        given = (query, key, of.value, of.query_segments, of.key_segments)
        if layout is None or split is None:
            return _attend(kernel, factor, *given), None

        def local(kernel: Any, query: Array, *of_keys_and_segments: Array) -> Array:
            key, value, query_segments, key_segments = of_keys_and_segments
            if split.keys:
                key, value, key_segments = (gathered(a, layout.sequence) for a in (key, value, key_segments))
            return _attend(kernel, factor, query, key, value, query_segments, key_segments)

        table = spec(split.heads, split.queries if placed else ())
        masked = kernel.manual_sharding_spec(jax.sharding.NamedSharding(layout.mesh, table))
        named = tuple(split.of(names) for names in ("rqh-", "rkh-", "rkh-", "rq", "rk"))
        mapped = jax.shard_map(
            local, mesh=layout.mesh, in_specs=(masked, *named), out_specs=split.of("rqh-"), check_vma=False
        )
        return mapped(kernel, *given), None


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """What a kernel is compiled for; `shards` are those of heads and of queries."""

    pattern: Pattern
    queries: int
    keys: int
    heads: int
    head_shards: int
    query_shards: int
    softcap: float | None
    most: tuple[int, int]
    interpret: bool

    def made(self) -> Any:
        """The kernel, with its tables of visible blocks computed now, not in the program."""
        with jax.ensure_compile_time_eval(), jax.numpy_dtype_promotion("standard"):
            return _made(self)

    def mask(self) -> Any:
        """Who sees whom by place alone."""
        shape, pattern, shards = (self.queries, self.keys), self.pattern, self.query_shards
        if pattern.window is not None:
            ahead = 0 if pattern.causal else pattern.window
            return masks.LocalMask(shape, (pattern.window, ahead), 0, shard_count=shards)
        return masks.CausalMask(shape, shard_count=shards) if pattern.causal else masks.FullMask(shape)


@functools.lru_cache(maxsize=64)
def _made(of: _Kernel) -> Any:
    query, key = _block(of.queries // of.query_shards, of.most[0]), _block(of.keys, of.most[1])
    inner = _block(key, of.most[0])
    sizes = splash_attention.BlockSizes(
        block_q=query,
        block_kv=key,
        block_kv_compute=inner,
        block_q_dkv=query,
        block_kv_dkv=key,
        block_kv_dkv_compute=inner,
        block_q_dq=query,
        block_kv_dq=key,
    )
    return splash_attention.make_splash_mha(
        masks.MultiHeadMask([of.mask()] * of.heads),
        block_sizes=sizes,
        head_shards=of.head_shards,
        q_seq_shards=of.query_shards,
        attn_logits_soft_cap=of.softcap,
        residual_checkpoint_name=attention.KEPT,
        interpret=of.interpret,
    )


def _block(length: int, most: int) -> int:
    """The largest multiple of 128 up to `most` that divides the length."""
    return next(size for size in range(most, 0, -LANES) if length % size == 0)


def _attend(
    kernel: Any, scale: float, query: Array, key: Array, value: Array, query_segments: Array, key_segments: Array
) -> Array:
    """`kernel` over a device's rows; heads are padded to what the matrix units want."""
    width, dtype = query.shape[3], query.dtype
    query = (query.astype(jnp.float32) * scale).astype(dtype)
    query, key, value = (_padded(array.swapaxes(1, 2)) for array in (query, key, value))

    def row(query: Array, key: Array, value: Array, query_segments: Array, key_segments: Array) -> Array:
        return kernel(query, key, value, segment_ids=splash_attention.SegmentIds(query_segments, key_segments))

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        out = jax.vmap(row)(query, key, value, query_segments, key_segments)
    return out[..., :width].swapaxes(1, 2).astype(dtype)


def _padded(array: Array) -> Array:
    """Zeros behind a head's own width, up to a multiple of 128: they change neither logits nor outputs."""
    missing = -array.shape[-1] % LANES
    return jnp.pad(array, ((0, 0),) * 3 + ((0, missing),)) if missing else array

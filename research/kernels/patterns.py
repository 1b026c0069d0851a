"""Which positions may see which: the static part of attention, as a value."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@dataclasses.dataclass(frozen=True)
class Pattern:
    """What attention may see, besides staying within a segment.

    Attributes:
      causal: a position sees itself and what stands before it.
      window: farthest distance that is seen, in positions; none: any.
      prefix: positions that are flagged as a prefix are seen by all of their segment, also from before. No flags make
        it causal, all flags bidirectional, so that rows of several objectives can share a program.
    """

    causal: bool
    window: int | None = None
    prefix: bool = False

    def visible(
        self,
        query_segments: Int[Array, "batch query"],
        key_segments: Int[Array, "batch key"],
        query_offset: Int[Array, ""] | int = 0,
        key_prefix: Int[Array, "batch key"] | None = None,
    ) -> Bool[Array, "batch query key"]:
        """Whether each query sees each key; query `i` stands at place `query_offset + i` of the keys.

        Padding is segment 0 and sees padding alone, so that no row is empty. `key_prefix` is 1 for keys of a prefix.
        """
        seen = query_segments[:, :, None] == key_segments[:, None, :]
        distance = distances(query_segments.shape[1], key_segments.shape[1], query_offset)
        if self.causal:
            backward = (distance >= 0)[None]
            seen &= backward | (key_prefix[:, None, :] > 0) if self.prefix and key_prefix is not None else backward
        if self.window is not None:
            seen &= (jnp.abs(distance) <= self.window)[None]
        return seen

    def within(self, window: int | None) -> "Pattern":
        """The pattern that also keeps to a window."""
        if window is None or (self.window is not None and self.window <= window):
            return self
        return dataclasses.replace(self, window=window)


def distances(queries: int, keys: int, query_offset: Int[Array, ""] | int = 0) -> Int[Array, "query key"]:
    """How far before each query each key stands; negative behind it."""
    return (query_offset + jnp.arange(queries))[:, None] - jnp.arange(keys)[None, :]

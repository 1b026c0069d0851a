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
    """

    causal: bool
    window: int | None = None

    def visible(
        self,
        query_segments: Int[Array, "batch query"],
        key_segments: Int[Array, "batch key"],
        query_offset: Int[Array, ""] | int = 0,
    ) -> Bool[Array, "batch query key"]:
        """Whether each query sees each key; query `i` stands at place `query_offset + i` of the keys.

        Padding is segment 0 and sees padding alone, so that no row is empty.
        """
        seen = query_segments[:, :, None] == key_segments[:, None, :]
        query = query_offset + jnp.arange(query_segments.shape[1])
        distance = query[:, None] - jnp.arange(key_segments.shape[1])[None, :]
        if self.causal:
            seen &= (distance >= 0)[None]
        if self.window is not None:
            seen &= (jnp.abs(distance) <= self.window)[None]
        return seen

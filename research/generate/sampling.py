"""How the next token is chosen from the logits."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """A way to choose.

    Attributes:
      temperature: divides the logits; 0 takes the most probable token.
      top_k: only the k most probable tokens; none: all.
      top_p: only the most probable tokens that together reach this probability (Holtzman et al. 2020); 1: all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0.0:
            raise UserError(f"temperature={self.temperature}: must be at least 0 (0 is greedy)")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k={self.top_k}: must be at least 1")
        if not 0.0 < self.top_p <= 1.0:
            raise UserError(f"top_p={self.top_p}: must lie above 0 and at most at 1")

    def choose(self, logits: Float[Array, "batch vocab"], key: Array) -> Int[Array, " batch"]:
        """One id a row."""
        if self.temperature == 0.0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return jax.random.categorical(key, self.restrict(logits)).astype(jnp.int32)

    def restrict(self, logits: Float[Array, "batch vocab"]) -> Float[Array, "batch vocab"]:
        """The logits that are sampled from; excluded tokens have minus infinity."""
        logits = logits / max(self.temperature, 1e-6)
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = jax.lax.top_k(logits, self.top_k)[0][:, -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        if self.top_p < 1.0:
            ordered = jnp.sort(logits, axis=-1, descending=True)
            probabilities = jax.nn.softmax(ordered, axis=-1)
            before = jnp.cumsum(probabilities, axis=-1) - probabilities
            least = jnp.min(jnp.where(before < self.top_p, ordered, jnp.inf), axis=-1, keepdims=True)
            logits = jnp.where(logits < least, -jnp.inf, logits)
        return logits

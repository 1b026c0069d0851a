"""A model for notebooks and other people's code: token ids to logits, without settings and patterns."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from research.data.tokenizer import Tokenizer
from research.errors import UserError
from research.interop.family import HEAD, Family
from research.kernels import Pattern
from research.models import EncoderDecoder, Model
from research.settings.objective import MASKED

Tokens = Int[Array | np.ndarray, "batch seq"]
OtherTokens = Int[Array | np.ndarray, "batch other"]


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """A model whose methods are pure functions of weights and token ids, and can be jitted.

    Attributes:
      core: the model; its interface is `research.models.Model`.
      family: the model type of `transformers` that it is.
      parts: what it has beside its body.
      objective: what it was trained on.
      config: the config.json that it was loaded from; empty where it was made here.
      tokenizer: its tokenizer, or the directory that it lies in.
    """

    core: Model
    family: Family
    parts: frozenset[str]
    objective: str
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: Path | Tokenizer | None = None

    @property
    def architecture(self) -> str:
        """The class of `transformers` that it is."""
        return self.family.architecture(self.parts)

    @property
    def pattern(self) -> Pattern:
        """What attention may see: everything for a masked model, else what stands before."""
        return Pattern(causal=self.objective not in MASKED)

    def apply(
        self,
        params: Mapping[str, Any],
        tokens: Tokens,
        segment_ids: Tokens | None = None,
        positions: Tokens | None = None,
        attention_mask: Shaped[Array | np.ndarray, "batch seq"] | None = None,
        types: Tokens | None = None,
        *,
        decoder_tokens: OtherTokens | None = None,
        decoder_segment_ids: OtherTokens | None = None,
        decoder_positions: OtherTokens | None = None,
    ) -> Float[Array, "batch place last"]:
        """Logits, float32 `[batch, seq, vocab]`, where the architecture has a head, else what `hidden` gives.

        Args:
          params: the weights.
          tokens: token ids; of the encoder where there is one, and then `decoder_tokens` are what the logits are of.
          segment_ids: documents of a packed row, 1, 2, ...; 0 is padding. Positions begin anew in each.
          positions: places of the tokens in their document; none: counted.
          attention_mask: 0 (or false) for padding, as `transformers` has it.
          types: token types (sentence A, sentence B); none: all 0.
          decoder_tokens: token ids of the decoder.
          decoder_segment_ids: their documents; each sees the encoder's document of the same number.
          decoder_positions: their places.

        Raises:
          UserError: more tokens than the model has positions for, or the decoder's tokens are missing.
        """
        given = (decoder_tokens, decoder_segment_ids, decoder_positions)
        inputs = self.inputs(tokens, segment_ids, positions, attention_mask, types, *given)
        hidden = self.core.apply(params, inputs, pattern=self.pattern).hidden
        return self.core.unembed(params, hidden) if HEAD in self.parts else hidden

    def hidden(
        self, params: Mapping[str, Any], tokens: Tokens, *arguments: Any, **named: Any
    ) -> Float[Array, "batch place embed"]:
        """Hidden states before the head, `[batch, seq, embed]`; arguments as those of `apply`."""
        return self.core.apply(params, self.inputs(tokens, *arguments, **named), pattern=self.pattern).hidden

    def inputs(
        self,
        tokens: Tokens,
        segment_ids: Tokens | None = None,
        positions: Tokens | None = None,
        attention_mask: Shaped[Array | np.ndarray, "batch seq"] | None = None,
        types: Tokens | None = None,
        decoder_tokens: OtherTokens | None = None,
        decoder_segment_ids: OtherTokens | None = None,
        decoder_positions: OtherTokens | None = None,
    ) -> dict[str, Array]:
        """The arrays that the core takes; arguments as those of `apply`."""
        side = self._side(tokens, segment_ids, positions, attention_mask)
        if not isinstance(self.core, EncoderDecoder):
            return side if types is None else side | {"types": jnp.asarray(types, jnp.int32)}
        if decoder_tokens is None:
            raise UserError(f"{self.architecture} has an encoder and a decoder: give decoder_tokens as well")
        encoder = {f"encoder_{name}": array for name, array in side.items()}
        return encoder | self._side(decoder_tokens, decoder_segment_ids, decoder_positions, None)

    def _side(self, tokens: Any, segment_ids: Any, positions: Any, attention_mask: Any) -> dict[str, Array]:
        tokens = jnp.asarray(tokens)
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise UserError(
                f"tokens are {tokens.dtype}{list(tokens.shape)}: give integers [batch, seq]; tokens[None] is one row"
            )
        tokens = tokens.astype(jnp.int32)
        if self.core.settings.position == "learned" and tokens.shape[1] > self.core.max_positions:
            raise UserError(
                f"{tokens.shape[1]} tokens are more than the {self.core.max_positions} positions of the model: "
                "cut the text"
            )
        segments = jnp.ones_like(tokens) if segment_ids is None else jnp.asarray(segment_ids, jnp.int32)
        if attention_mask is not None:
            segments = jnp.where(jnp.asarray(attention_mask).astype(bool), segments, 0)
        if positions is None:
            packed = segment_ids is not None or self.core.settings.position_offset > 0
            positions = (
                places(segments) if packed else jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
            )
        return {"tokens": tokens, "segment_ids": segments, "positions": jnp.asarray(positions, jnp.int32)}


def places(segment_ids: Int[Array, "batch seq"]) -> Int[Array, "batch seq"]:
    """The place of each token in its document, from 0."""
    count = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)[None]
    changed = jnp.concatenate(
        [jnp.ones_like(segment_ids[:, :1], bool), segment_ids[:, 1:] != segment_ids[:, :-1]], axis=1
    )
    starts = jnp.where(changed, jnp.broadcast_to(count, segment_ids.shape), 0)
    return count - jax.lax.cummax(starts, axis=1)

"""What a frozen model makes of a document: means of its hidden states, read in the model's own way."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int32, Int64

from research.evaluate.rows import over_rows
from research.models import EncoderDecoder, Model
from research.objectives import Objective

FINAL, MIDDLE, LAST = "final layer, mean", "middle layer, mean", "final layer, last token"


@dataclasses.dataclass(frozen=True)
class Texts:
    """Beginnings of documents.

    Attributes:
      tokens: without special tokens; anything behind the end.
      lengths: tokens of each, at least one.
    """

    tokens: Int32[np.ndarray, "documents seq"]
    lengths: Int64[np.ndarray, " documents"]


def shown(objective: Objective, texts: Texts, encoder: bool) -> dict[str, np.ndarray]:
    """The inputs of a model that reads whole texts, and `text`, which is one at the places of their tokens.

    An encoder and a model that attends to both sides are shown the text; one that continues texts is shown `bos` and
    the text, all of it as a prefix where it knows prefixes. Nothing is hidden and nothing added.
    """
    vocabulary, pattern = objective.vocabulary, objective.pattern
    count, length = texts.tokens.shape
    begins = pattern.causal and not encoder
    columns, ends = np.arange(length + begins)[None], texts.lengths[:, None] + begins
    real = columns < ends
    tokens = texts.tokens
    if begins:
        tokens = np.concatenate([np.full((count, 1), vocabulary.bos, np.int32), tokens], axis=1)
    side = "encoder_" if encoder else ""
    made = {
        f"{side}tokens": np.where(real, tokens, np.int32(vocabulary.pad)).astype(np.int32),
        f"{side}segment_ids": real.astype(np.int32),
        f"{side}positions": np.where(real, columns, 0).astype(np.int32),
        "text": (real & (columns >= int(begins))).astype(np.float32),
    }
    if pattern.prefix and not encoder:
        made["prefix"] = real.astype(np.int32)
    return made


def features(
    model: Model, objective: Objective, params: Any, texts: Texts, size: int, mesh: Mesh
) -> dict[str, Float32[np.ndarray, "documents embed"]]:
    """Features of each text by name: `FINAL`, `MIDDLE` where there are two layers, `LAST` of a causal model.

    The middle is what the first half of the layers makes of the text, behind the model's final norm. Of an encoder and
    a decoder the encoder is asked.

    Args:
      model: any.
      objective: gives the pattern, and the tokens that stand around a text.
      params: weights.
      texts: what is read; no longer than the model's sequences.
      size: rows of a call.
      mesh: devices.
    """
    pattern, encoder = objective.pattern, isinstance(model, EncoderDecoder)
    last = pattern.causal and not pattern.prefix and not encoder

    def hidden(model: Model, params: Any, rows: Mapping[str, Array]) -> Float[Array, "rows seq embed"]:
        if isinstance(model, EncoderDecoder):
            return model.encode(params, rows).hidden.astype(jnp.float32)
        return model.apply(params, rows, pattern=pattern).hidden.astype(jnp.float32)

    def read(params: Any, rows: Mapping[str, Array]) -> dict[str, Float[Array, "rows embed"]]:
        text = rows["text"]
        shares = text / jnp.maximum(jnp.sum(text, axis=1, keepdims=True), 1.0)
        final = hidden(model, params, rows)
        found = {FINAL: jnp.einsum("bs,bse->be", shares, final)}
        if (half := lower_half(model, params)) is not None:
            found[MIDDLE] = jnp.einsum("bs,bse->be", shares, hidden(*half, rows))
        if last:
            end = jnp.argmax(jnp.cumsum(text, axis=1), axis=1)
            found[LAST] = jnp.take_along_axis(final, end[:, None, None], axis=1)[:, 0]
        return found

    return over_rows(read, params, shown(objective, texts, encoder), size, mesh)


def lower_half(model: Model, params: Mapping[str, Any]) -> tuple[Model, dict[str, Any]] | None:
    """The model of the first half of the layers (of an encoder's, where there is one); none where that is no layer."""
    settings = model.settings
    count = settings.encoder_layers if isinstance(model, EncoderDecoder) else settings.num_layers
    if count < 2:
        return None

    def cut(stack: Mapping[str, Any]) -> dict[str, Any]:
        # A norm that the first layer lacks has a row fewer than there are layers.
        return {**stack, "layers": jax.tree.map(lambda leaf: leaf[: len(leaf) - (count - count // 2)], stack["layers"])}

    if isinstance(model, EncoderDecoder):
        half = dataclasses.replace(settings, num_encoder_layers=count // 2)
        return dataclasses.replace(model, settings=half), {**params, "encoder": cut(params["encoder"])}
    half = dataclasses.replace(settings, num_layers=count // 2)
    return dataclasses.replace(model, settings=half), cut(params)

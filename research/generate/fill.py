"""Ranked candidates for the masks of a text, by a masked model."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.errors import UserError
from research.kernels import Pattern
from research.models import Model
from research.vocabulary import Vocabulary


class Candidate(NamedTuple):
    """A token for a mask, and its probability."""

    token: int
    probability: float


def fill_masks(
    model: Model,
    params: Mapping[str, Any],
    vocabulary: Vocabulary,
    tokens: Sequence[int],
    *,
    num_candidates: int = 5,
) -> list[list[Candidate]]:
    """For each mask in `tokens`, from left to right, the most probable ordinary tokens.

    Raises:
      UserError: no mask, or more tokens than the context that the model was trained on.
    """
    ids = np.asarray(tokens, np.int32)
    places = np.flatnonzero(ids == vocabulary.mask)
    if not len(places):
        raise UserError("the prompt has no [MASK]: a masked model fills masks, so write [MASK] where a word is wanted")
    if len(ids) > model.max_positions:
        raise UserError(
            f"the prompt has {len(ids)} tokens, the model's context {model.max_positions}: shorten the prompt"
        )
    inputs = {
        "tokens": jnp.asarray(ids)[None],
        "segment_ids": jnp.ones((1, len(ids)), jnp.int32),
        "positions": jnp.arange(len(ids), dtype=jnp.int32)[None],
    }
    hidden = model.apply(params, inputs, pattern=Pattern(causal=False)).hidden[:, places]
    logits = np.array(model.unembed(params, hidden)[0])
    logits[:, list(vocabulary.special)] = -np.inf
    logits[:, vocabulary.size :] = -np.inf
    probabilities = np.asarray(jax.nn.softmax(logits, axis=-1))
    best = np.argsort(-probabilities, axis=-1, kind="stable")[:, :num_candidates]
    return [
        [Candidate(int(token), float(row[token])) for token in order]
        for row, order in zip(probabilities, best, strict=True)
    ]

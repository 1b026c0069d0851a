"""Autoregressive generation with a cache: one pass over the prompts, then a token a step."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from research.errors import UserError
from research.generate.sampling import Sampling
from research.kernels import Pattern
from research.models import Cache, Transformer
from research.vocabulary import Vocabulary

CAUSAL = Pattern(causal=True)
PLAIN = Sampling()
PROMPT_STEP = 32  # prompts are padded to multiples, so that few lengths are compiled


def generate(
    model: Transformer,
    params: Mapping[str, Any],
    vocabulary: Vocabulary,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampling: Sampling = PLAIN,
    seed: int = 0,
    stop: Collection[int] = (),
) -> Iterator[np.ndarray]:
    """Yields the next token of every prompt, int32 `[batch]`, until all have stopped or `max_tokens` were made.

    A prompt begins its document: `bos` is put before it. A row that has met `eos` or a token of `stop` yields that
    token and then `pad`. Row `i` of the same prompts and seed is the same whatever else is in the batch.

    Raises:
      UserError: prompt and new tokens do not fit into the context that the model was trained on.
    """
    longest = max(len(prompt) for prompt in prompts) + 1
    if max_tokens < 1:
        raise UserError(f"--tokens={max_tokens}: at least one token must be generated")
    if longest + max_tokens - 1 > model.max_positions:
        raise UserError(
            f"a prompt of {longest - 1} tokens and {max_tokens} new ones do not fit into the model's context of "
            f"{model.max_positions} tokens: shorten the prompt or ask for fewer"
        )
    padded = -(-longest // PROMPT_STEP) * PROMPT_STEP
    tokens = np.full((len(prompts), padded), vocabulary.pad, np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[padded - len(prompt) - 1 :] = [vocabulary.bos, *prompt]
    lengths = np.asarray([len(prompt) + 1 for prompt in prompts], np.int32)

    cache = model.init_cache(len(prompts), padded + -(-max_tokens // PROMPT_STEP) * PROMPT_STEP)
    key = jax.random.key(seed)
    never = tuple(token for token in vocabulary.special if token != vocabulary.eos)
    advance = partial(_advance, model, sampling, never, params)
    own = jax.random.fold_in(key, 0)
    chosen, cache = advance(cache, jnp.asarray(tokens), jnp.asarray(lengths), own)
    stopped = np.zeros(len(prompts), bool)
    ends = np.asarray([vocabulary.eos, *stop])
    for made in range(1, max_tokens + 1):
        new = np.where(stopped, vocabulary.pad, np.asarray(chosen)).astype(np.int32)
        yield new
        stopped |= np.isin(new, ends)
        if made == max_tokens or stopped.all():
            return
        own = jax.random.fold_in(key, made)
        chosen, cache = advance(cache, chosen[:, None], jnp.asarray(lengths + made), own)


@partial(jax.jit, static_argnames=("model", "sampling", "never"), donate_argnames=("cache",))
def _advance(
    model: Transformer,
    sampling: Sampling,
    never: tuple[int, ...],
    params: Mapping[str, Any],
    cache: Cache,
    tokens: Array,
    lengths: Array,
    key: Array,
) -> tuple[Array, Cache]:
    """The tokens after `tokens` `[batch, seq]`, right-aligned; each row is `lengths` long including what is cached.

    The tokens of `never` (padding, masks) are not text and are not chosen.
    """
    places = lengths[:, None] - jnp.arange(tokens.shape[1] - 1, -1, -1, dtype=jnp.int32)[None, :] - 1
    inputs = {"tokens": tokens, "segment_ids": (places >= 0).astype(jnp.int32), "positions": jnp.maximum(places, 0)}
    hidden, cache = model.decode(params, cache, inputs, pattern=CAUSAL)
    logits = model.unembed(params, hidden[:, -1:])[:, 0].at[:, list(never)].set(-jnp.inf)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(logits.shape[0]))
    chosen = jax.vmap(lambda row, own: sampling.choose(row[None, :], own)[0])(logits, keys)
    return chosen, cache

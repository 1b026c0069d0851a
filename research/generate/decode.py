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
from research.models import EncoderDecoder, Model
from research.vocabulary import Vocabulary

PLAIN = Sampling()
PROMPT_STEP = 32  # prompts are padded to multiples, so that few lengths are compiled


def generate(
    model: Model,
    params: Mapping[str, Any],
    vocabulary: Vocabulary,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampling: Sampling = PLAIN,
    seed: int = 0,
    stop: Collection[int] = (),
    prefix: bool = False,
    wanted: Collection[int] = (),
) -> Iterator[np.ndarray]:
    """Yields the next token of every prompt, int32 `[batch]`, until all have stopped or `max_tokens` were made.

    A prompt begins its document: `bos` is put before it, unless the tokenizer has another convention. An encoder reads
    the prompts, where the model has one, and the decoder begins. A row that has met `eos` or a token of `stop` yields
    that token and then `pad`. Row `i` of the same prompts and seed is the same whatever else is in the batch.

    Args:
      model: the model.
      params: its weights.
      vocabulary: of the tokenizer, with what the objective adds; special ids and those that it does not know are never
        generated.
      prompts: token ids.
      max_tokens: new tokens at most.
      sampling: how they are chosen.
      seed: of the choice.
      stop: ids that end a row.
      prefix: the prompt is a prefix that is seen from both sides.
      wanted: special ids that may be generated all the same.

    Raises:
      UserError: prompt and new tokens do not fit into the context that the model was trained on.
    """
    if max_tokens < 1:
        raise UserError(f"--tokens={max_tokens}: at least one token must be generated")
    encoded = isinstance(model, EncoderDecoder)
    begin = [vocabulary.bos] if vocabulary.begins else []
    # A model without `bos` still needs something to begin with.
    rows = [[vocabulary.decoder_start] if encoded else [*begin, *prompt] or [vocabulary.bos] for prompt in prompts]
    longest = max(map(len, rows))
    _check_context(model, max(map(len, prompts)), max(longest - 1, 0), max_tokens)
    padded = _padded(longest)
    tokens = np.full((len(prompts), padded), vocabulary.pad, np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[padded - len(ids) :] = ids
    lengths = np.asarray([len(ids) for ids in rows], np.int32)

    cache = _empty_cache(model, params, vocabulary, prompts, padded + _padded(max_tokens))
    key = jax.random.key(seed)
    never = jnp.asarray(_never(vocabulary, model.vocab_size, wanted))
    advance = partial(_advance, model, sampling, prefix, params, never)
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


def _padded(length: int) -> int:
    return -(-length // PROMPT_STEP) * PROMPT_STEP


def _check_context(model: Model, prompt: int, before: int, new: int) -> None:
    """Raises where either side is longer than what the model was trained on."""
    encoded = isinstance(model, EncoderDecoder)
    if max(prompt, new) > model.max_positions if encoded else before + new > model.max_positions:
        raise UserError(
            f"a prompt of {prompt} tokens and {new} new ones do not fit into the model's context of "
            f"{model.max_positions} tokens{' on either side' if encoded else ''}: shorten the prompt or ask for fewer"
        )


def _never(vocabulary: Vocabulary, size: int, wanted: Collection[int]) -> np.ndarray:
    """bool [size]: padding, masks and the like, and rows of the embedding that no token has."""
    never = np.arange(size) >= vocabulary.size
    never[[token for token in vocabulary.special if token != vocabulary.eos]] = True
    never[list(wanted)] = False
    return never


def _empty_cache(
    model: Model, params: Mapping[str, Any], vocabulary: Vocabulary, prompts: Sequence[Sequence[int]], length: int
) -> Any:
    """A cache for `length` places; an encoder has read the prompts."""
    if not isinstance(model, EncoderDecoder):
        return model.init_cache(len(prompts), length)
    memory = _padded(max(1, *map(len, prompts)))
    tokens = np.full((len(prompts), memory), vocabulary.pad, np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    counts = np.asarray([[len(prompt)] for prompt in prompts])
    places = np.arange(memory, dtype=np.int32)[None, :]
    inputs = {
        "encoder_tokens": jnp.asarray(tokens),
        "encoder_segment_ids": jnp.asarray((places < counts).astype(np.int32)),
        "encoder_positions": jnp.asarray(places * (places < counts)),
    }
    return _remember(model, params, model.init_cache(len(prompts), length, memory), inputs)


@partial(jax.jit, static_argnames=("model",))
def _remember(model: EncoderDecoder, params: Mapping[str, Any], cache: Any, inputs: Mapping[str, Array]) -> Any:
    return model.remember(params, cache, inputs)


@partial(jax.jit, static_argnames=("model", "sampling", "prefix"), donate_argnames=("cache",))
def _advance(
    model: Model,
    sampling: Sampling,
    prefix: bool,
    params: Mapping[str, Any],
    never: Array,
    cache: Any,
    tokens: Array,
    lengths: Array,
    key: Array,
) -> tuple[Array, Any]:
    """The tokens after `tokens` `[batch, seq]`, right-aligned; each row is `lengths` long including what is cached.

    Ids where `never` holds (padding, masks) are not text and are not chosen.
    """
    places = lengths[:, None] - jnp.arange(tokens.shape[1] - 1, -1, -1, dtype=jnp.int32)[None, :] - 1
    real = (places >= 0).astype(jnp.int32)
    inputs = {"tokens": tokens, "segment_ids": real, "positions": jnp.maximum(places, 0)}
    if prefix:
        inputs["prefix"] = real  # what comes later, one by one, is seen by itself alone in any case
    hidden, cache = model.decode(params, cache, inputs, pattern=Pattern(causal=True, prefix=prefix))
    logits = jnp.where(never[None, :], -jnp.inf, model.unembed(params, hidden[:, -1:])[:, 0])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(logits.shape[0]))
    chosen = jax.vmap(lambda row, own: sampling.choose(row[None, :], own)[0])(logits, keys)
    return chosen, cache

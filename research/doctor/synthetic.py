"""Text, weights and windows that were made up: random, but such that no law holds by accident."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Int32

from research import trees
from research.data import tokenizer
from research.data.sentencepieces import BOS, EOS, MASK, PAD, UNKNOWN
from research.data.shards import ShardReader, ShardWriter, token_dtype
from research.models import Model
from research.settings import Settings
from research.vocabulary import Vocabulary

# Special tokens are five of these, so that a corruption which draws or chooses them does so at once.
SMALL_VOCABULARY = 40


def vocabulary_of(settings: Settings) -> Vocabulary:
    """The ids of the given tokenizer, or of one that `prepare` would train; no tokenizer is trained."""
    if settings.tokenizer.path:
        return tokenizer.load(Path(settings.tokenizer.path)).vocabulary
    return made_up_vocabulary(settings.tokenizer.vocab_size)


def made_up_vocabulary(size: int) -> Vocabulary:
    """Our own special ids, and words that begin at every other id."""
    starts = tuple(token > MASK and token % 2 == 0 for token in range(size))
    return Vocabulary(size, PAD, UNKNOWN, BOS, EOS, MASK, starts)


def special_of(vocabulary: Vocabulary) -> Int[np.ndarray, " ids"]:
    """Ids of the tokenizer that are no text; counted here anew: what the objectives count is under examination."""
    roles = (vocabulary.pad, vocabulary.unknown, vocabulary.bos, vocabulary.eos, vocabulary.mask)
    return np.unique([token for token in (*roles, *vocabulary.sentinels) if 0 <= token < vocabulary.size])


def ordinary_of(vocabulary: Vocabulary) -> Int[np.ndarray, " ids"]:
    """Ids of the tokenizer that are text."""
    return np.setdiff1d(np.arange(vocabulary.size), special_of(vocabulary))


def corpus(
    directory: Path, vocabulary: Vocabulary, raw_length: int, num_windows: int, *, skewed: bool = False
) -> ShardReader:
    """Documents of random ordinary tokens, from one token to two thirds of a window, as a split on disk.

    All tokens are alike, or `skewed`, as in text: the n-th has a probability proportional to 1/n.
    """
    rng = np.random.default_rng(0)
    ordinary, documents, total = ordinary_of(vocabulary), [], 0
    shares = None
    if skewed:
        shares = 1.0 / np.arange(1, len(ordinary) + 1)
        shares /= shares.sum()
    while total < num_windows * raw_length:
        length = int(rng.integers(1, max(3, 2 * raw_length // 3)))
        text = rng.choice(ordinary, length, p=shares).astype(np.int32)
        documents.append(np.append(text, np.int32(vocabulary.eos)))
        total += length + 1
    directory.mkdir(parents=True)
    writer = ShardWriter(directory, "train", token_dtype(vocabulary.size))
    writer.write(documents, np.array([len(document) for document in documents], np.int64))
    return ShardReader(directory, "train", writer.close())


def random_weights(model: Model, seed: int) -> dict[str, Any]:
    """Weights of which no bias is zero, no scale one and no residual branch small, with logits of order one."""
    rng = np.random.default_rng(seed)
    settings = model.settings
    leaves = {}
    for path, parameter in model.parameters().items():
        if parameter.kind == "embedding":
            std = settings.embed_dim**-0.5
        elif parameter.kind in {"kernel", "head"}:
            std = parameter.fan_in**-0.5
        else:
            std = 0.3
        if path.endswith("attention/query") and settings.attention_scale is not None:
            std /= settings.attention_scale * settings.head_width**0.5
        leaf = parameter.mean + std * rng.normal(size=parameter.shape)
        leaves[path] = jnp.asarray(leaf, settings.parameter_dtype)
    return trees.unflatten(leaves)


def with_special_tokens(
    vocabulary: Vocabulary, tokens: Int32[np.ndarray, "batch raw"], segment_ids: Int32[np.ndarray, "batch raw"]
) -> Int32[np.ndarray, "batch raw"]:
    """The tokens with a special one here and there, but none that ends a document. Text never has them."""
    rng = np.random.default_rng(1)
    roles = (vocabulary.unknown, vocabulary.bos, vocabulary.mask)
    kinds = np.array([token for token in roles if token >= 0 and token != vocabulary.eos], np.int32)
    if not len(kinds):
        return tokens
    places = (rng.random(tokens.shape) < 0.1) & (segment_ids > 0) & (tokens != vocabulary.eos)
    return np.where(places, rng.choice(kinds, tokens.shape), tokens).astype(np.int32)


def without_extras(vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary of the tokenizer alone."""
    return dataclasses.replace(vocabulary, sentinels=(), marks=())

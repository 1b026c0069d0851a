"""What counting reaches on the same held-out text, from the same training tokens."""

import math
from collections.abc import Iterable, Mapping

import numpy as np

from research.data.loader import Heldout, Loader
from research.data.prepare import Prepared
from research.evaluate import ngrams

Arrays = Mapping[str, np.ndarray]
COUNTED_WINDOWS = 2**15
TOGETHER = 256


def ngram_bits_per_byte(prepared: Prepared, loader: Loader, heldout: Heldout, num_steps: int) -> dict[str, float]:
    """Bits per byte of interpolated n-gram models, counted over the distinct tokens of the first `num_steps` updates.

    The held-out targets and bytes are those that the model is evaluated on.
    """
    train, held = prepared.train, prepared.heldout
    seen = ngrams.covered(train.num_tokens, *loader.tokens_of(loader.windows_seen(num_steps)))
    chosen = ngrams.covered(held.num_tokens, *heldout.tokens_of(np.arange(heldout.num_windows)))
    counted = ngrams.fit(train.read(0, train.num_tokens), seen, prepared.tokenizer.vocabulary)
    totals = counted.evaluate(held.read(0, held.num_tokens), chosen)
    names = {1: "unigram", 2: "bigram", 3: "trigram"}
    return {
        f"{names[order]}_bits_per_byte": total.nats / math.log(2) / heldout.num_bytes for order, total in totals.items()
    }


def counted_updates(num_steps: int, batch_size: int) -> list[list[int]]:
    """The updates whose targets are counted: all of a run, or evenly spaced ones of `COUNTED_WINDOWS` windows.

    They come in lists of about `TOGETHER` windows, since a few windows at a time take longer.
    """
    most, count = min(num_steps, max(1, COUNTED_WINDOWS // batch_size)), max(1, TOGETHER // batch_size)
    updates = sorted(set(np.linspace(0, num_steps - 1, most).round().astype(int).tolist()))
    return [updates[first : first + count] for first in range(0, len(updates), count)]


def unigram(training: Iterable[Arrays], heldout: Iterable[Arrays], size: int) -> dict[str, float]:
    """What the frequencies of an objective's own targets reach on its held-out targets.

    Every id counts once more than it occurred, so that none is impossible.

    Args:
      training: batches of training, with `targets` and `weights`.
      heldout: held-out batches.
      size: ids that can be a target.

    Returns:
      `unigram_loss`, cross entropy in nats a target, and `unigram_accuracy`, share of the most frequent target.
    """
    counts = np.zeros(size, np.int64)
    for batch in training:
        counts += np.bincount(_targets(batch), minlength=size)
    nats = -np.log((counts + 1) / (counts.sum() + size))
    asked = np.concatenate([_targets(batch) for batch in heldout])
    return {"unigram_loss": float(nats[asked].mean()), "unigram_accuracy": ngrams.unigram_accuracy(counts, asked)}


def _targets(batch: Arrays) -> np.ndarray:
    return batch["targets"][batch["weights"] > 0]


def unigram_accuracy(prepared: Prepared, loader: Loader, heldout: Heldout, num_steps: int) -> float:
    """Share of the held-out targets that equal the most frequent ordinary token seen in `num_steps` updates."""
    train, vocabulary = prepared.train, prepared.tokenizer.vocabulary
    seen = ngrams.covered(train.num_tokens, *loader.tokens_of(loader.windows_seen(num_steps)))
    counts = np.bincount(train.read(0, train.num_tokens)[seen], minlength=vocabulary.size)
    counts[list(vocabulary.special)] = 0
    targets = [_targets(heldout.batch(index)) for index in range(heldout.num_batches)]
    return ngrams.unigram_accuracy(counts, np.concatenate(targets))

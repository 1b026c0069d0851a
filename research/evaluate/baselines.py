"""What counting reaches on the same held-out text, from the same training tokens."""

import math

import numpy as np

from research.data.loader import Heldout, Loader
from research.data.prepare import Prepared
from research.evaluate import ngrams


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


def unigram_accuracy(prepared: Prepared, loader: Loader, heldout: Heldout, num_steps: int) -> float:
    """Share of the held-out targets that equal the most frequent ordinary token seen in `num_steps` updates."""
    train, vocabulary = prepared.train, prepared.tokenizer.vocabulary
    seen = ngrams.covered(train.num_tokens, *loader.tokens_of(loader.windows_seen(num_steps)))
    counts = np.bincount(train.read(0, train.num_tokens)[seen], minlength=vocabulary.size)
    counts[list(vocabulary.special)] = 0
    targets = [batch["targets"][batch["weights"] > 0] for batch in map(heldout.batch, range(heldout.num_batches))]
    return ngrams.unigram_accuracy(counts, np.concatenate(targets))

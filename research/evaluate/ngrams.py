"""N-gram baselines: what counting alone reaches on the tokens that a model was trained on.

Interpolated absolute discounting (Ney, Essen & Kneser 1994, "On structuring probabilistic dependences in stochastic
language modelling", section 4): with c counts over the seen targets, h a context, and h' the same one token shorter,

    p(w | h) = (max(c(h w) - D, 0) + D * types(h) * p(w | h')) / c(h)

where types(h) is the number of distinct tokens that followed h, and D = n1 / (n1 + 2 n2) for each order from the
numbers n1 and n2 of n-grams that occur once and twice. A context that never occurred leaves the word to h'. Below the
unigram stands the uniform distribution, so that nothing has probability zero.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from research.errors import UserError
from research.vocabulary import Vocabulary

MAX_ORDER = 3


@dataclasses.dataclass(frozen=True)
class Total:
    """Negative log-likelihood of evaluated targets: `nats` in all, over `count` targets."""

    nats: float
    count: int

    @property
    def mean(self) -> float:
        """Nats a token."""
        return self.nats / self.count


@dataclasses.dataclass(frozen=True)
class Order:
    """Counts of one order: sorted codes, so that a look-up is a binary search.

    Attributes:
      contexts: codes of the contexts that occurred, sorted.
      totals: how often each occurred.
      types: number of distinct tokens that followed each.
      grams: `rank of the context * vocabulary size + token` of the n-grams that occurred, sorted.
      counts: how often each occurred.
      discount: D.
    """

    contexts: Int[np.ndarray, " contexts"]
    totals: Int[np.ndarray, " contexts"]
    types: Int[np.ndarray, " contexts"]
    grams: Int[np.ndarray, " grams"]
    counts: Int[np.ndarray, " grams"]
    discount: float


@dataclasses.dataclass(frozen=True)
class NgramModel:
    """Orders 1 to `len(orders)` of one vocabulary; made by `fit`."""

    vocabulary: Vocabulary
    orders: tuple[Order, ...]

    def probabilities(
        self, targets: Integer[np.ndarray, " n"], previous: Integer[np.ndarray, " n"], before: Integer[np.ndarray, " n"]
    ) -> Float[np.ndarray, "orders n"]:
        """Probability of each target after its two tokens of left context `before previous`, by each order."""
        size = self.vocabulary.size
        lower = np.full(len(targets), 1.0 / size)
        rows = []
        for order, context in zip(self.orders, _codes(previous, before, size), strict=False):
            rank, known = _find(order.contexts, context)
            gram, occurred = _find(order.grams, rank * size + targets)
            count = np.where(occurred & known, order.counts[gram], 0)
            kept = np.maximum(count - order.discount, 0.0)
            shared = order.discount * order.types[rank] * lower
            lower = np.where(known, (kept + shared) / order.totals[rank], lower)
            rows.append(lower)
        return np.stack(rows)

    def evaluate(
        self, tokens: Integer[np.ndarray, " length"], chosen: Bool[np.ndarray, " length"] | None = None
    ) -> dict[int, Total]:
        """Total nats of the chosen targets of a held-out stream (none: all), by order."""
        probabilities = self.probabilities(*_with_context(tokens, chosen, self.vocabulary))
        return {order: Total(float(-np.log(row).sum()), len(row)) for order, row in enumerate(probabilities, 1)}


def fit(
    tokens: Integer[np.ndarray, " length"],
    seen: Bool[np.ndarray, " length"] | None,
    vocabulary: Vocabulary,
    *,
    max_order: int = MAX_ORDER,
) -> NgramModel:
    """Counts the seen targets of a token stream, each position once.

    Args:
      tokens: documents laid end to end, each ended by `vocabulary.eos`; before its first token stands `vocabulary.bos`.
      seen: which positions were targets in training (none: all). Their left context is the stream's own.
      vocabulary: gives the number of ids and the ids of bos and eos.
      max_order: 1, 2 or 3.

    Raises:
      UserError: no position was seen.
    """
    assert 1 <= max_order <= MAX_ORDER
    targets, previous, before = _with_context(tokens, seen, vocabulary)
    if not len(targets):
        raise UserError("the n-gram baseline has no training tokens to count: train for more than 0 steps")
    codes = _codes(previous, before, vocabulary.size)
    return NgramModel(vocabulary, tuple(_count(context, targets, vocabulary.size) for context in codes[:max_order]))


def covered(
    length: int, starts: Integer[np.ndarray, " spans"], lengths: Integer[np.ndarray, " spans"]
) -> Bool[np.ndarray, " length"]:
    """Mask of the positions that lie in any of the spans `[start, start + length)`; overlaps are allowed."""
    starts = starts.astype(np.int64)
    ends = np.minimum(starts + lengths.astype(np.int64), length)
    edges = np.bincount(starts, minlength=length + 1)[: length + 1] - np.bincount(ends, minlength=length + 1)
    return np.cumsum(edges[:length]) > 0


def unigram_accuracy(counts: Integer[np.ndarray, " vocab"], targets: Integer[np.ndarray, " n"]) -> float:
    """Share of the targets that equal the most frequent token: what a masked model reaches without looking.

    `counts` are the training tokens by id; ids that are never a target (special ones) must count 0 there.
    """
    return float(np.mean(targets == np.argmax(counts))) if len(targets) else float("nan")


def _with_context(
    tokens: np.ndarray, chosen: np.ndarray | None, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The chosen targets, the token before each and the one before that, as int64; bos stands before a document."""
    positions = np.arange(len(tokens)) if chosen is None else np.flatnonzero(chosen)

    def at(offset: int) -> np.ndarray:
        return np.where(positions >= offset, tokens[np.maximum(positions - offset, 0)], vocabulary.eos).astype(np.int64)

    previous, before = at(1), at(2)
    first = previous == vocabulary.eos
    second = before == vocabulary.eos
    return at(0), np.where(first, vocabulary.bos, previous), np.where(first | second, vocabulary.bos, before)


def _codes(previous: np.ndarray, before: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
    """Integer codes of the contexts of orders 1, 2 and 3; below 2^40 for the largest vocabulary."""
    previous = previous.astype(np.int64)
    return np.zeros_like(previous), previous, before.astype(np.int64) * size + previous


def _count(context: np.ndarray, targets: np.ndarray, size: int) -> Order:
    """Counts of one order. A context is coded by its rank, so that a gram's code stays below `len(targets) * size`."""
    contexts, rank, totals = np.unique(context, return_inverse=True, return_counts=True)
    grams, counts = np.unique(rank * size + targets, return_counts=True)
    types = np.bincount(grams // size, minlength=len(contexts))
    once, twice = int(np.sum(counts == 1)), int(np.sum(counts == 2))
    # Without n-grams that occur once the estimate is 0, which would leave unseen words nothing.
    discount = once / (once + 2 * twice) if once else 0.5
    return Order(contexts, totals, types, grams, counts, discount)


def _find(table: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each code would stand in the sorted table, and whether it does."""
    place = np.minimum(np.searchsorted(table, codes), len(table) - 1)
    return place, table[place] == codes

from collections import Counter, defaultdict

import numpy as np
import pytest

from research.errors import UserError
from research.evaluate import ngrams
from research.vocabulary import Vocabulary

PAD, UNKNOWN, BOS, EOS, MASK = range(5)


def vocabulary(size: int) -> Vocabulary:
    return Vocabulary(size, PAD, UNKNOWN, BOS, EOS, MASK)


def stream(rng: np.random.Generator, length: int, size: int) -> np.ndarray:
    """Documents of Zipf-like tokens, each ended by eos."""
    tokens = (5 + (size - 5) * rng.random(length) ** 3).astype(np.uint32)
    tokens[rng.random(length) < 0.05] = EOS
    tokens[-1] = EOS
    return tokens


def grams(tokens: np.ndarray, seen: np.ndarray) -> list[tuple[int, int, int]]:
    """`(before, previous, target)` of the seen positions, document by document, in plain Python."""
    found, document = [], [BOS, BOS]
    for token, is_seen in zip(tokens.tolist(), seen.tolist(), strict=True):
        if is_seen:
            found.append((document[-2], document[-1], token))
        document = [BOS, BOS] if token == EOS else [*document, token]
    return found


class Slow:
    """The same model from its formula, with dictionaries."""

    def __init__(self, tokens: np.ndarray, seen: np.ndarray, size: int) -> None:
        self.size = size
        self.counts = [Counter(gram[2 - order :] for gram in grams(tokens, seen)) for order in range(3)]
        self.totals: list[dict] = [defaultdict(int) for _ in range(3)]
        self.types: list[dict] = [defaultdict(int) for _ in range(3)]
        self.discounts = []
        for order, counts in enumerate(self.counts):
            for gram, count in counts.items():
                self.totals[order][gram[:-1]] += count
                self.types[order][gram[:-1]] += 1
            frequencies = Counter(counts.values())
            once, twice = frequencies[1], frequencies[2]
            self.discounts.append(once / (once + 2 * twice) if once else 0.5)

    def probability(self, gram: tuple[int, ...]) -> float:
        if not gram:
            return 1 / self.size
        order, context, lower = len(gram) - 1, gram[:-1], self.probability(gram[1:])
        if not self.totals[order][context]:
            return lower
        discount = self.discounts[order]
        kept = max(self.counts[order][gram] - discount, 0)
        return (kept + discount * self.types[order][context] * lower) / self.totals[order][context]


def test_a_toy_stream_by_hand() -> None:
    tokens = np.array([5, 6, 5, 6, EOS, 5, 7, EOS])
    model = ngrams.fit(tokens, None, vocabulary(8))
    # Unigrams: 5 three times, 6 and eos twice, 7 once: n1 = 1, n2 = 2, D = 1/5, uniform 1/8.
    # Bigrams: bos 5 and 5 6 twice, 6 5, 6 eos, 5 7 and 7 eos once: n1 = 4, n2 = 2, D = 1/2.
    # Trigrams: bos bos 5 twice; bos 5 6, bos 5 7, 5 6 5, 6 5 6, 5 6 eos, 5 7 eos once: n1 = 6, n2 = 1, D = 3/4.
    unigram = (2 - 1 / 5 + 1 / 5 * 4 / 8) / 8
    bigram = (2 - 1 / 2 + 1 / 2 * 2 * unigram) / 3
    trigram = (1 - 3 / 4 + 3 / 4 * 2 * bigram) / 2
    probabilities = model.probabilities(np.array([6]), np.array([5]), np.array([BOS]))
    np.testing.assert_allclose(probabilities[:, 0], [unigram, bigram, trigram], rtol=1e-12)
    total = model.evaluate(np.array([5, 6, EOS]), np.array([False, True, False]))
    assert total[3].count == 1
    assert total[3].nats == total[3].mean == pytest.approx(-np.log(trigram), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
def test_equals_a_slow_dictionary(dtype: type) -> None:
    rng = np.random.default_rng(1)
    tokens, heldout = stream(rng, 3000, 40).astype(dtype), stream(rng, 500, 40).astype(dtype)
    seen, chosen = rng.random(3000) < 0.6, rng.random(500) < 0.7
    totals = ngrams.fit(tokens, seen, vocabulary(40)).evaluate(heldout, chosen)
    slow = Slow(tokens, seen, 40)
    for order in (1, 2, 3):
        nats = [-np.log(slow.probability(gram[3 - order :])) for gram in grams(heldout, chosen)]
        assert totals[order].count == len(nats) == chosen.sum()
        np.testing.assert_allclose(totals[order].nats, sum(nats), rtol=1e-12)


@pytest.mark.parametrize("size", [6, 30, 300])
def test_probabilities_over_the_vocabulary_sum_to_one(size: int) -> None:
    rng = np.random.default_rng(size)
    tokens = stream(rng, 2000, size)
    model = ngrams.fit(tokens, None, vocabulary(size))
    places = rng.integers(1, 2000, 20)
    contexts = [
        *zip(tokens[places - 1].tolist(), tokens[places].tolist(), strict=True),  # seen
        *rng.integers(0, size, (20, 2)).tolist(),  # mostly unseen
        (BOS, BOS),
        (MASK, MASK),
        (int(tokens[0]), MASK),
    ]
    targets = np.arange(size)
    for before, previous in contexts:
        probabilities = model.probabilities(targets, np.full(size, previous), np.full(size, before))
        np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-12)
        assert probabilities.min() > 0


def test_tokens_that_occur_evenly_leave_room_for_unseen_ones() -> None:
    model = ngrams.fit(np.array([5, 6, 7, EOS] * 3), None, vocabulary(10))
    total = model.evaluate(np.array([9, 8, EOS]))
    assert all(np.isfinite(total[order].nats) for order in (1, 2, 3))


def test_codes_do_not_overflow_the_largest_vocabulary() -> None:
    size = 2**20
    rng = np.random.default_rng(0)
    tokens = rng.integers(size - 3, size, 4000)
    tokens[::40] = EOS
    small = np.where(tokens == EOS, EOS, tokens - (size - 3) + 5)
    big = ngrams.fit(tokens, None, vocabulary(size)).evaluate(tokens)
    same = ngrams.fit(small, None, vocabulary(8)).evaluate(small)
    # Only the uniform share under the unigram knows the size; it is small where everything was seen.
    for order in (1, 2, 3):
        np.testing.assert_allclose(big[order].mean, same[order].mean, rtol=1e-3)
    codes = ngrams._codes(np.array([size - 1]), np.array([size - 1]), size)
    assert codes[2][0] == size**2 - 1


def test_context_stops_at_a_document() -> None:
    tokens = np.array([5, 6, EOS, 7, 8, 9, EOS])
    targets, previous, before = ngrams._with_context(tokens, None, vocabulary(10))
    assert targets.tolist() == tokens.tolist()
    assert previous.tolist() == [BOS, 5, 6, BOS, 7, 8, 9]
    assert before.tolist() == [BOS, BOS, 5, BOS, BOS, 7, 8]


def test_a_position_is_counted_once_and_unseen_text_not_at_all() -> None:
    rng = np.random.default_rng(3)
    tokens = stream(rng, 1000, 50)
    seen = ngrams.covered(1000, np.array([0, 100, 300]), np.array([200, 150, 10]))
    assert np.flatnonzero(seen).tolist() == [*range(250), *range(300, 310)]
    changed = np.where(np.arange(1000) > 310, 7, tokens)
    assert ngrams.fit(tokens, seen, vocabulary(50)).evaluate(tokens) == ngrams.fit(
        changed, seen, vocabulary(50)
    ).evaluate(tokens)


def test_spans_may_end_at_or_beyond_the_stream() -> None:
    seen = ngrams.covered(5, np.array([3, 5], np.uint32), np.array([9, 0], np.uint16))
    assert seen.tolist() == [False, False, False, True, True]
    assert not ngrams.covered(4, np.array([], np.int64), np.array([], np.int64)).any()


def test_more_order_knows_more_of_its_training_text() -> None:
    tokens = stream(np.random.default_rng(5), 5000, 30)
    total = ngrams.fit(tokens, None, vocabulary(30)).evaluate(tokens)
    assert total[3].nats < total[2].nats < total[1].nats
    assert set(ngrams.fit(tokens, None, vocabulary(30), max_order=2).evaluate(tokens)) == {1, 2}


def test_nothing_seen_is_said() -> None:
    with pytest.raises(UserError, match="no training tokens"):
        ngrams.fit(np.array([5, EOS]), np.array([False, False]), vocabulary(10))


def test_unigram_accuracy() -> None:
    assert ngrams.unigram_accuracy(np.array([0, 2, 7, 1]), np.array([2, 2, 1, 3])) == 0.5

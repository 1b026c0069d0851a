"""Random numbers as pure functions of what they belong to: no state, no order, no host."""

import dataclasses
import hashlib

import numpy as np
from jaxtyping import Float64, Int64, UInt64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 8


@dataclasses.dataclass(frozen=True)
class Draws:
    """Uniform numbers for the windows of a batch, keyed by (seed, epoch, window id, name, position).

    A window gets the same numbers in every batch, on every host, in every order.

    Attributes:
      seed: the run's seed (or the fixed one of evaluation).
      epochs: how often the pool was used up before.
      ids: window ids.
      progress: share of the run that is done, 0 in the first update and 1 in the last; none: held-out text, 1.
    """

    seed: int
    epochs: Int64[np.ndarray, "batch"]
    ids: Int64[np.ndarray, "batch"]
    progress: Float64[np.ndarray, "batch"] | None = None

    def uniform(self, name: str, length: int) -> Float64[np.ndarray, "batch length"]:
        """Independent uniform numbers in [0, 1), `length` a window; each `name` is a stream of its own."""
        stream = np.uint64(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little"))
        key = _mix(_mix(_unsigned(self.seed) + _GOLDEN) ^ stream)
        key = _mix(_mix(key ^ _mix(_unsigned(self.epochs) + _GOLDEN)) + _unsigned(self.ids) * _GOLDEN)
        counter = np.arange(1, length + 1, dtype=np.uint64) * _GOLDEN
        return (_mix(key[:, None] + counter) >> np.uint64(11)) * 2.0**-53

    def rows(self, places: Int64[np.ndarray, "chosen"]) -> "Draws":
        """Those of some rows of the batch."""
        progress = None if self.progress is None else self.progress[places]
        return Draws(self.seed, self.epochs[places], self.ids[places], progress)


def keyed_hash(values: UInt64[np.ndarray, "..."], seed: int) -> UInt64[np.ndarray, "..."]:
    """A seeded bijection of 64-bit words, elementwise; sorting by it shuffles."""
    return _mix(_mix(values ^ _mix(_unsigned(seed) + _GOLDEN)) + _GOLDEN)


def permute(indices: Int64[np.ndarray, "*shape"], size: int, key: tuple[int, ...]) -> Int64[np.ndarray, "*shape"]:
    """Where a seeded permutation of range(size) sends each index, without a table of the permutation.

    A Feistel network over the bits of `size - 1`, walked until it lands inside the range (Black and Rogaway 2002,
    "Ciphers with Arbitrary Finite Domains", section 3).

    Args:
      indices: each in range(size).
      size: number of elements.
      key: integers that name the permutation.
    """
    values = indices.astype(np.uint64)
    assert size > 0 and bool(np.all(values < np.uint64(size))), (size, indices)
    bits = max(2, (size - 1).bit_length())
    state = np.zeros(1, dtype=np.uint64)
    for part in key:
        state = _mix(state ^ _mix(_unsigned(part) + _GOLDEN))
    keys = _mix(state + np.arange(1, _ROUNDS + 1, dtype=np.uint64) * _GOLDEN)
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], bits, keys)
        outside = values >= np.uint64(size)
    return values.astype(np.int64)


def _feistel(values: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """One bijection of range(2 ** bits): each round changes one half by a keyed function of the other."""
    low_bits = np.uint64(bits // 2)
    low_mask, high_mask = np.uint64((1 << (bits // 2)) - 1), np.uint64((1 << (bits - bits // 2)) - 1)
    low, high = values & low_mask, values >> low_bits
    for number, key in enumerate(keys):
        if number % 2:
            low = low ^ (_mix(high ^ key) & low_mask)
        else:
            high = high ^ (_mix(low ^ key) & high_mask)
    return (high << low_bits) | low


def _unsigned(values: int | np.ndarray) -> np.ndarray:
    """Integers as uint64 arrays of at least one dimension (NumPy warns of overflow in scalars, not in arrays)."""
    if isinstance(values, int):
        return np.array([values % 2**64], dtype=np.uint64)
    return values.astype(np.uint64)


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014, figure 13): a bijection of 64-bit words."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))

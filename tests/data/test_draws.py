import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.data.draws import Draws, keyed_hash, permute


def draw(seed: int, epochs: list[int], ids: list[int], name: str = "mask", length: int = 16) -> np.ndarray:
    return Draws(seed, np.array(epochs, np.int64), np.array(ids, np.int64)).uniform(name, length)


def test_a_window_draws_the_same_in_every_batch() -> None:
    together = draw(3, [0, 1, 0], [5, 6, 7])
    for row, (epoch, window) in enumerate([(0, 5), (1, 6), (0, 7)]):
        np.testing.assert_array_equal(together[row], draw(3, [epoch], [window])[0])


def test_a_longer_draw_continues_a_shorter_one() -> None:
    np.testing.assert_array_equal(draw(0, [0], [1], length=8), draw(0, [0], [1], length=64)[:, :8])


@pytest.mark.parametrize("other", [(1, 0, 0, "mask"), (0, 1, 0, "mask"), (0, 0, 1, "mask"), (0, 0, 0, "token")])
def test_seed_epoch_window_and_name_each_give_other_numbers(other: tuple[int, int, int, str]) -> None:
    seed, epoch, window, name = other
    assert not np.intersect1d(draw(0, [0], [0], length=1000), draw(seed, [epoch], [window], name, 1000)).size


def test_draws_are_uniform_and_uncorrelated() -> None:
    numbers = draw(0, [0] * 400, list(range(400)), length=1000)
    assert numbers.dtype == np.float64 and numbers.min() >= 0.0 and numbers.max() < 1.0
    counts, _ = np.histogram(numbers, bins=100, range=(0, 1))
    assert ((counts - 4000) ** 2 / 4000).sum() < 160  # chi-squared with 99 degrees: beyond it once in 10,000 seeds
    assert abs(np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.01


def test_draws_are_the_same_for_ever() -> None:
    np.testing.assert_allclose(
        draw(0, [0], [0], length=3)[0], [0.7813501448625442, 0.711154793173511, 0.5918194513696361], rtol=0, atol=1e-15
    )


@given(st.integers(1, 3000), st.integers(0, 2**31), st.integers(0, 5))
def test_permute_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    assert sorted(permute(np.arange(size), size, (seed, epoch)).tolist()) == list(range(size))


@given(st.integers(1, 2**50), st.data())
def test_permute_is_elementwise_and_stays_in_range(size: int, data: st.DataObject) -> None:
    indices = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=5)))
    together = permute(indices, size, (1, 2))
    assert together.min() >= 0 and together.max() < size
    assert together.tolist() == [int(permute(np.array([i]), size, (1, 2))[0]) for i in indices]


def test_permute_moves_every_index_about_evenly() -> None:
    where = np.array([permute(np.arange(10), 10, (seed, 0)) for seed in range(2000)])
    for place in range(10):
        counts = np.bincount(where[:, place], minlength=10)
        assert counts.min() > 140 and counts.max() < 260


def test_permute_has_another_order_in_each_epoch_and_seed() -> None:
    orders = {tuple(permute(np.arange(50), 50, key)) for key in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    assert len(orders) == 4


def test_keyed_hash_is_a_bijection_that_depends_on_the_seed() -> None:
    values = np.arange(1000, dtype=np.uint64)
    assert len(np.unique(keyed_hash(values, 0))) == 1000
    assert not np.array_equal(np.argsort(keyed_hash(values, 0)), np.argsort(keyed_hash(values, 1)))

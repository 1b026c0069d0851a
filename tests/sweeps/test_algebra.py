"""The laws of the algebra of points."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.errors import UserError
from research.sweeps.algebra import (
    canonical,
    chain,
    changed,
    derived,
    merged,
    only,
    over,
    product,
    sample,
    seeds,
    where,
    zipped,
)

VALUES = st.one_of(st.integers(-5, 5), st.booleans(), st.none(), st.floats(0.0, 1.0), st.sampled_from(["a", "b"]))


def factor(keys: list[str]) -> st.SearchStrategy[tuple[dict[str, Any], ...]]:
    points = st.dictionaries(st.sampled_from(keys), VALUES, max_size=len(keys))
    return st.lists(points, max_size=4).map(tuple)


# Keys of their own, so that no two factors contradict each other.
THREE = st.tuples(factor(["a.x", "a.y"]), factor(["b.x", "b.y"]), factor(["c"]))
quick = settings(max_examples=60, deadline=None)


@quick
@given(THREE)
def test_product_is_associative_and_has_a_unit(factors: Any) -> None:
    one, two, three = factors
    assert product(product(one, two), three) == product(one, product(two, three)) == product(one, two, three)
    assert product(one, only({})) == product(only({}), one) == product(one) == one
    assert len(product(one, two)) == len(one) * len(two)


@quick
@given(THREE)
def test_product_distributes_over_chain(factors: Any) -> None:
    one, two, three = factors
    assert set(map(canonical, product(chain(one, two), three))) == set(
        map(canonical, chain(product(one, three), product(two, three)))
    )


@quick
@given(THREE)
def test_chain_is_associative_idempotent_and_has_a_unit(factors: Any) -> None:
    one, two, three = factors
    assert chain(chain(one, two), three) == chain(one, chain(two, three))
    assert chain(one, one) == chain(one) == chain(one, ()) == chain((), one)
    assert len({canonical(point) for point in chain(one, two)}) == len(chain(one, two))


@quick
@given(factor(["a", "b"]), factor(["a", "b"]))
def test_where_splits_a_chain(one: Any, two: Any) -> None:
    def some(point: Any) -> bool:
        return len(canonical(point)) % 2 == 0

    whole = chain(one, two)
    assert chain(where(one, some), where(two, some)) == where(whole, some)
    parts = where(whole, some) + where(whole, lambda point: not some(point))
    assert sorted(map(canonical, parts)) == sorted(map(canonical, whole))
    assert where(where(whole, some), some) == where(whole, some)


@quick
@given(factor(["a", "b", "c"]), st.integers(0, 5), st.randoms())
def test_a_sample_is_of_the_points_alone(points: Any, seed: int, random: Any) -> None:
    points = chain(points)
    shuffled = list(points)
    random.shuffle(shuffled)
    for count in range(len(points) + 1):
        drawn = sample(points, count, seed)
        assert len(drawn) == count and drawn == where(points, lambda point, drawn=drawn: point in drawn)
        assert sorted(map(canonical, drawn)) == sorted(map(canonical, sample(shuffled, count, seed)))
        assert drawn == sample(points, count, seed)
        if count:
            assert set(map(canonical, sample(points, count - 1, seed))) < set(map(canonical, drawn))
    with pytest.raises(UserError, match="sample"):
        sample(points, len(points) + 1, seed)


def test_another_seed_draws_others() -> None:
    points = over("optimizer.learning_rate", [n / 100 for n in range(40)])
    assert sample(points, 8, seed=0) != sample(points, 8, seed=1)


@quick
@given(st.integers(0, 4), st.integers(0, 4))
def test_zipped_takes_equal_lengths(one: int, two: int) -> None:
    rows = over("a", range(one)), over("b", range(two))
    if one == two:
        assert zipped(*rows) == tuple({"a": n, "b": n} for n in range(one))
    else:
        with pytest.raises(UserError, match=f"{one}, {two}"):
            zipped(*rows)


def test_factors_that_contradict_each_other_are_refused() -> None:
    assert product(over("seed", [1]), only({"seed": 1})) == ({"seed": 1},)
    with pytest.raises(UserError, match=r"seed is given both 1 and 2"):
        product(over("seed", [1]), over("seed", [2]))
    with pytest.raises(UserError, match="no JSON"):
        canonical({"a": {1, 2}})
    with pytest.raises(UserError, match="no JSON"):
        canonical({"a": float("nan")})


def test_keys_that_follow() -> None:
    points = product(over("model.embed_dim", [32, 64]), seeds(2))
    rated = derived(points, lambda point: {"optimizer.learning_rate": 1 / point["model.embed_dim"]})
    assert [point["optimizer.learning_rate"] for point in rated] == [1 / 32, 1 / 32, 1 / 64, 1 / 64]
    with pytest.raises(UserError, match="seed"):
        derived(points, lambda point: {"seed": 7})
    assert [point["seed"] for point in changed(points, {"seed": 7})] == [7] * 4
    assert merged({"a": 1}, {"b": 2}) == {"a": 1, "b": 2}
    assert seeds([3, 5]) == ({"seed": 3}, {"seed": 5})

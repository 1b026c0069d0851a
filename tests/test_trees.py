import re
from typing import NamedTuple

import jax
import numpy as np
import pytest

from research import trees


class Pair(NamedTuple):
    left: dict
    right: tuple


TREE = {"a": {"x": np.zeros((2, 3)), "y": np.zeros(4)}, "b": {"c": {"z": np.zeros(())}}}


def test_unflatten_inverts_flatten() -> None:
    flat = trees.flatten(TREE)
    assert list(flat) == ["a/x", "a/y", "b/c/z"]
    again = trees.unflatten(flat)
    assert jax.tree.structure(again) == jax.tree.structure(TREE)
    assert all(a is b for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(TREE), strict=True))


def test_paths_name_keys_positions_and_attributes() -> None:
    assert list(trees.flatten(Pair({"w": 1}, (2, [3])))) == ["left/w", "right/0", "right/1/0"]


def test_map_with_path_gives_each_leaf_its_path_and_its_partners() -> None:
    found = trees.map_with_path(lambda path, leaf, other: (path, leaf.size + other.size), TREE, TREE)
    assert trees.flatten(found) == {
        "a/x/0": "a/x",
        "a/x/1": 12,
        "a/y/0": "a/y",
        "a/y/1": 8,
        "b/c/z/0": "b/c/z",
        "b/c/z/1": 2,
    }


def test_the_first_rule_wins_and_a_path_without_a_rule_raises() -> None:
    rules = [("x$", 1), ("^a/", 2), ("z", 3)]
    assert dict(trees.first_match(rules, trees.flatten(TREE))) == {"a/x": 1, "a/y": 2, "b/c/z": 3}
    with pytest.raises(KeyError, match=re.escape("b/c/z")):
        dict(trees.first_match(rules[:2], trees.flatten(TREE)))


def test_count_is_the_number_of_scalars_and_does_not_overflow() -> None:
    assert trees.count(TREE) == 2 * 3 + 4 + 1
    assert trees.count({"large": jax.ShapeDtypeStruct((2**17, 2**17, 4), np.float32)}) == 2**36

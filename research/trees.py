"""Nested dictionaries of arrays by path: `layers/attention/query`."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

T = TypeVar("T")


def path_string(path: Iterable[Any]) -> str:
    """The path of a leaf as `a/b/c`, for dictionary keys, sequence positions and attribute names alike."""
    return "/".join(str(getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry)))) for entry in path)


def flatten(tree: Any) -> dict[str, Any]:
    """`{path: leaf}` in the order of the tree."""
    return {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dictionary whose paths are given."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def map_with_path(function: Callable[..., T], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` whose function gets the path string first."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(path_string(path), *leaves), tree, *rest)


def first_match(rules: Iterable[tuple[str, T]], paths: Iterable[str]) -> Iterator[tuple[str, T]]:
    """For each path the value of the first rule whose regular expression is found in it.

    Raises:
      KeyError: a path that no rule covers.
    """
    compiled = [(re.compile(pattern), value) for pattern, value in rules]
    for path in paths:
        for pattern, value in compiled:
            if pattern.search(path):
                yield path, value
                break
        else:
            raise KeyError(f"no rule matches the parameter {path}")


def count(tree: Any) -> int:
    """Number of scalars in all leaves (arrays or shapes)."""
    return sum(int(np.prod(leaf.shape, dtype=np.int64)) for leaf in jax.tree.leaves(tree))

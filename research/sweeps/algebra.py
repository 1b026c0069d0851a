"""A small algebra of points: which keys of a recipe take which values, in which combinations.

A point maps dotted keys to values; points are tuples of them, in order. Everything here is a pure function:

    product(over("model.embed_dim", [64, 128]), seeds(3))        # 6 points
    zipped(over("model.embed_dim", [64, 128]), over("model.num_layers", [2, 4]))    # 2 points
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from research.errors import UserError

Point = Mapping[str, Any]
Points = tuple[Point, ...]


def only(overrides: Mapping[str, Any]) -> Points:
    """One point; `only({})` is the unit of `product`, `()` that of `chain`."""
    return (dict(overrides),)


def over(key: str, values: Iterable[Any]) -> Points:
    """A point for each value of a key."""
    return tuple({key: value} for value in values)


def seeds(which: int | Iterable[int]) -> Points:
    """So many seeds from 0, or these."""
    return over("seed", range(which) if isinstance(which, int) else which)


def product(*factors: Sequence[Point]) -> Points:
    """Every combination, the last factor turning fastest.

    Raises:
      UserError: two factors give one key different values.
    """
    return tuple(merged(*parts) for parts in itertools.product(*factors))


def zipped(*rows: Sequence[Point]) -> Points:
    """First with first, second with second, and so on.

    Raises:
      UserError: the lengths differ, or two give one key different values.
    """
    lengths = [len(row) for row in rows]
    if len(set(lengths)) > 1:
        raise UserError(
            f"zipped() needs as many points from each, and got {', '.join(map(str, lengths))}: use product() for all "
            "combinations"
        )
    return tuple(merged(*parts) for parts in zip(*rows, strict=True))


def chain(*parts: Sequence[Point]) -> Points:
    """One after the other; a point that came before is left out."""
    found = {canonical(point): point for part in reversed(parts) for point in reversed(part)}
    order = dict.fromkeys(canonical(point) for part in parts for point in part)
    return tuple(found[text] for text in order)


def where(points: Sequence[Point], keep: Callable[[Point], bool]) -> Points:
    """The points for which `keep` is true."""
    return tuple(point for point in points if keep(point))


def derived(points: Sequence[Point], rule: Callable[[Point], Mapping[str, Any]]) -> Points:
    """Each point with keys that follow from it (a learning rate from a width, say).

    Raises:
      UserError: the rule gives a key of the point another value.
    """
    return tuple(merged(point, rule(point)) for point in points)


def changed(points: Sequence[Point], overrides: Mapping[str, Any]) -> Points:
    """Each point with keys set anew."""
    return tuple({**point, **overrides} for point in points)


def sample(points: Sequence[Point], count: int, seed: int = 0) -> Points:
    """So many of the points, in their order.

    Which ones is a function of the seed and of each point alone: neither the order of the points nor the process
    changes it, and a larger sample contains the smaller one.

    Raises:
      UserError: there are fewer.
    """
    if not 0 <= count <= len(points):
        raise UserError(f"sample(count={count}) of {len(points)} points: ask for at most that many")
    drawn = sorted(range(len(points)), key=lambda place: (_digest(points[place], seed), place))[:count]
    return tuple(points[place] for place in sorted(drawn))


def merged(*points: Point) -> Point:
    """All keys of all points.

    Raises:
      UserError: two give one key different values.
    """
    found: dict[str, Any] = {}
    for point in points:
        for key, value in point.items():
            if key in found and found[key] != value:
                raise UserError(f"{key} is given both {found[key]!r} and {value!r}: let one factor of the sweep set it")
            found[key] = value
    return found


def canonical(point: Point) -> str:
    """A point as text that is the same for the same point, whatever the order of its keys.

    Raises:
      UserError: a value that is no JSON.
    """
    try:
        return json.dumps(point, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"a point holds a value that is no JSON ({error}): use numbers, text, booleans, none"
        ) from error


def _digest(point: Point, seed: int) -> str:
    return hashlib.sha256(f"{seed} {canonical(point)}".encode()).hexdigest()

"""Cells of a sweep over learning rates as series: what grows, what goes along with it, what tells series apart.

The size is the first of `SIZES` that is not the same in all cells. Keys whose value follows from the size (a width
brings the width of its MLP) belong to it. What is left, apart from the learning rate and the seed, tells series apart:
the objective, the parametrisation, the optimizer. Of keys that tell the same apart the one with the fewest values is
named.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RATE, SEED = "optimizer.learning_rate", "seed"
SIZES = {
    "model.embed_dim": "width",
    "model.num_layers": "depth",
    "train.batch_size": "batch size",
    "data.sequence_length": "length of sequences",
    "train.num_steps": "number of updates",
}
# Parametrisations under which a model of the base size is the standard one, with the keys that they need.
WIDTH = ("model.parametrisation", "model.base_width", "model.base_head_dim")
DEPTH = ("model.depth_scaling", "model.base_depth")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Series:
    """Cells among which only the size, what follows from it, the learning rate and the seed are different.

    Attributes:
      name: what tells it from the others, `parametrisation=mup`; nothing where it is the only one.
      cells: rows.
      shared: how many of them stand for another series as well, since at the base size both are one model.
    """

    name: str
    cells: tuple[Row, ...]
    shared: int = 0


class Points:
    """Settings of rows by dotted key: what a point says, or else the recipe."""

    def __init__(self, rows: Sequence[Row], recipe: Mapping[str, Any]) -> None:
        self.rows, self.recipe = rows, recipe

    def get(self, row: Row, key: str) -> Any:
        """The value of a key; none where neither says one."""
        if key == "objective":
            return row.get("objective")
        return row["point"].get(key, self.recipe.get(key))

    def text(self, row: Row, key: str) -> str:
        """The value as text, so that any two can be compared."""
        return json.dumps(self.get(row, key), sort_keys=True)

    def varied(self) -> list[str]:
        """Keys that are not the same in all rows."""
        keys = dict.fromkeys(["objective", *(key for row in self.rows for key in row["point"])])
        return [key for key in keys if len({self.text(row, key) for row in self.rows}) > 1]

    def follows(self, key: str, others: Sequence[str]) -> bool:
        """Whether the value of a key follows from those of others."""
        found: dict[tuple[str, ...], str] = {}
        return all(
            found.setdefault(tuple(self.text(row, other) for other in others), text) == text
            for row, text in ((row, self.text(row, key)) for row in self.rows)
        )


def size_of(rows: Sequence[Row], recipe: Mapping[str, Any]) -> str | None:
    """The key that grows; none where every cell has one size."""
    varied = Points(rows, recipe).varied()
    return next((key for key in SIZES if key in varied), None)


def tries_rates(rows: Sequence[Row], recipe: Mapping[str, Any]) -> bool:
    """Whether cells that are equal otherwise have different learning rates, so that one is the best."""
    points = Points(rows, recipe)
    return RATE in points.varied() and not points.follows(RATE, [key for key in points.varied() if key != RATE])


def series_of(rows: Sequence[Row], size: str | None, recipe: Mapping[str, Any]) -> list[Series]:
    """The series, in the order of their first cells.

    A series that begins above its base size, where its parametrisation is the standard one, takes the standard cells
    of that size.

    Args:
      rows: with `point` and `objective`.
      size: of `size_of`; none: all have one.
      recipe: settings by dotted key, of what points do not say.
    """
    points = Points(rows, recipe)
    keys: list[str] = []
    candidates = [key for key in points.varied() if key not in (RATE, SEED, size)]
    for key in sorted(candidates, key=lambda key: (len({points.text(row, key) for row in rows}), key not in _HEADS)):
        if not points.follows(key, [*([size] if size else []), *keys]):
            keys.append(key)
    for key in list(keys):  # one that was taken early may follow from a later one
        if points.follows(key, [*([size] if size else []), *(other for other in keys if other != key)]):
            keys.remove(key)
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(points.text(row, key) for key in keys), []).append(row)
    names = {values: _name(points, own[0], keys) for values, own in found.items()}
    return [_whole(points, names[values], own, list(found.values()), size, keys) for values, own in found.items()]


_HEADS = ("objective", WIDTH[0], DEPTH[0])  # named rather than what they need


def _name(points: Points, row: Row, keys: Sequence[str]) -> str:
    values = [points.get(row, key) for key in keys]
    texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
    return ", ".join(
        text if key in _HEADS or key.endswith(".name") else f"{key.removeprefix('model.').rsplit('.', 1)[-1]}={text}"
        for key, text in zip(keys, texts, strict=True)
    )


def _whole(
    points: Points, name: str, own: list[Row], all_series: list[list[Row]], size: str | None, keys: Sequence[str]
) -> Series:
    """A series with the cells of its base size, if it has none and another's are the same models."""
    scaling = {"model.embed_dim": WIDTH, "model.num_layers": DEPTH}.get(size or "")
    base = None if scaling is None else points.get(own[0], scaling[1])
    if size is None or scaling is None or base is None or any(points.get(row, size) == base for row in own):
        return Series(name, tuple(own))
    rest = [key for key in keys if key not in scaling]
    for others in all_series:
        plain = all(points.get(row, scaling[0]) in (None, "standard", "none") for row in others)
        alike = all(points.text(others[0], key) == points.text(own[0], key) for key in rest)
        cells = [row for row in others if points.get(row, size) == base and _heads_agree(points, own[0], row)]
        if plain and alike and cells:
            return Series(name, (*cells, *own), len(cells))
    return Series(name, tuple(own))


def _heads_agree(points: Points, own: Row, base: Row) -> bool:
    """Whether a head of the base is as wide as the one that rates were tuned at, so that nothing is scaled there."""
    tuned, heads = points.get(own, WIDTH[2]), points.get(base, "model.num_heads")
    wide = points.get(base, "model.head_dim") or (heads and points.get(base, "model.embed_dim") // heads)
    return points.get(own, WIDTH[0]) != "mup" or tuned is None or wide is None or tuned == wide

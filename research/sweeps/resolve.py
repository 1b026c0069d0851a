"""A recipe and a point make settings."""

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research import config
from research.errors import UserError
from research.settings import Settings, check_value
from research.sweeps.algebra import Point

# Keys of a point that are no keys of a run: a branch begins with the weights that its trunk had after `FROM_STEP`
# updates, and `TRUNK` is what the trunk has instead of the branch's keys.
FROM_STEP, TRUNK = "branch.from_step", "branch.trunk"
ROOT = Path(config.__file__).parents[1]


def located(recipe: str) -> str:
    """A recipe's name with a path that exists: from here, or from where Isoflop's own recipes are."""
    file = recipe.partition(":")[0]
    own = ROOT / recipe
    return str(own) if not Path(file).exists() and (ROOT / file).exists() else recipe


@functools.cache
def _loaded(recipe: str) -> dict[str, Any]:
    values: dict[str, Any] = config.load_recipe(located(recipe)).to_dict()
    return values


def base_record(recipe: str) -> dict[str, Any]:
    """What a recipe gives, as JSON with its schema version; alone it need not be valid.

    Raises:
      UserError: there is no such recipe.
    """
    return {"schema_version": config.SCHEMA_VERSION, "settings": copy.deepcopy(_loaded(recipe))}


def keys_of(point: Point) -> dict[str, Any]:
    """The keys of a point that are keys of a run."""
    return {name: value for name, value in point.items() if name not in (FROM_STEP, TRUNK)}


def trunk_of(point: Point) -> Point | None:
    """The point of the trunk that a branch begins on; none: it is no branch."""
    return {**keys_of(point), **point[TRUNK]} if TRUNK in point else None


def resolved(base: Mapping[str, Any], point: Point) -> Settings:
    """The settings of a point over a recipe's record.

    Raises:
      UserError: unknown key, wrong type, value out of bounds, or keys that contradict each other.
    """
    values = copy.deepcopy(base["settings"])
    for name, value in keys_of(point).items():
        if name not in config.KEYS:
            raise config.unknown_key(name)
        *rooms, last = name.split(".")
        node = values
        for room in rooms:
            node = node[room]
        node[last] = check_value(config.KEYS[name], value)
    return config.from_record({**base, "settings": values})


def settings_of(recipe: str, point: Point) -> Settings:
    """The settings of a point over a recipe.

    Raises:
      UserError: as `resolved`, naming the point.
    """
    try:
        return resolved(base_record(recipe), point)
    except UserError as error:
        raise UserError(f"the point {dict(point)} over {recipe} cannot be: {error}") from error

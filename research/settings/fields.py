"""How a settings key is declared: default, meaning, unit and bounds in one place."""

import dataclasses
import math
import typing
from collections.abc import Iterator
from types import MappingProxyType, UnionType
from typing import Any

from research.errors import UserError


def setting(
    default: Any,
    meaning: str,
    *,
    unit: str = "",
    choices: tuple[str, ...] = (),
    minimum: int | float | None = None,
    maximum: int | float | None = None,
    execution: bool = False,
    resumable: bool = False,
    since: int = 1,
) -> Any:
    """A field of a settings dataclass.

    Args:
      default: the only place where the default stands.
      meaning: one phrase, shown by `--help`.
      unit: what the number counts.
      choices: the allowed strings.
      minimum: smallest allowed number.
      maximum: largest allowed number.
      execution: the key decides how a run is executed, not what it computes: it is left out of the scientific hash
        and may change when a run is resumed.
      resumable: a scientific key that may still change when a run is resumed (its length, for example).
      since: schema version that introduced the key; a later key at its default leaves older hashes unchanged.
    """
    metadata = {
        "meaning": meaning,
        "unit": unit,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "execution": execution,
        "resumable": resumable or execution,
        "since": since,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of the settings: `train.num_steps`, its type, default and metadata."""

    name: str
    types: tuple[type, ...]
    default: Any
    metadata: MappingProxyType[str, Any]

    @property
    def type_name(self) -> str:
        """The type as a reader would write it: `int or none`."""
        names = {bool: "true or false", int: "integer", float: "number", str: "text", type(None): "none"}
        return " or ".join(names[kind] for kind in self.types)


def keys(room: type, prefix: str = "") -> Iterator[Key]:
    """All keys below a settings dataclass, in the order of their declaration."""
    hints = typing.get_type_hints(room)
    for field in dataclasses.fields(room):
        hint, name = hints[field.name], prefix + field.name
        if dataclasses.is_dataclass(hint):
            yield from keys(typing.cast(type, hint), name + ".")
        else:
            union = typing.get_origin(hint) in (typing.Union, UnionType)
            yield Key(name, typing.get_args(hint) if union else (hint,), field.default, field.metadata)


def check_value(key: Key, value: Any) -> Any:
    """The value with its exact type, or a `UserError` that names the key, the value and what is expected."""
    if type(value) not in key.types:
        if float in key.types and type(value) is int:
            value = float(value)
        else:
            raise UserError(f"{key.name}={value!r}: expected {key.type_name}")
    metadata = key.metadata
    if metadata["choices"] and isinstance(value, str) and value not in metadata["choices"]:
        raise UserError(f"{key.name}={value!r}: choose one of {', '.join(metadata['choices'])}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        unit = f" ({metadata['unit']})" if metadata["unit"] else ""
        if not math.isfinite(value):
            raise UserError(f"{key.name}={value!r}: expected a finite number{unit}")
        if metadata["minimum"] is not None and value < metadata["minimum"]:
            raise UserError(f"{key.name}={value!r}: must be at least {metadata['minimum']}{unit}")
        if metadata["maximum"] is not None and value > metadata["maximum"]:
            raise UserError(f"{key.name}={value!r}: must be at most {metadata['maximum']}{unit}")
    return value

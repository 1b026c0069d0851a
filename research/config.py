"""Recipes, overrides and saved records, and the typed settings that they become.

Config files are Python: they run with your rights, so read what you run. Resuming, evaluating and generating use the
JSON record alone.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import importlib.util
import inspect
import json
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_collections
from ml_collections.config_dict import config_dict

from research.errors import UserError
from research.settings import Key, Settings, check_value, keys

SCHEMA_VERSION = 4

# From version n to n + 1, over the nested dictionary of settings.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    # The keys that came with versions 2 to 4 have defaults that leave older runs as they were.
    1: lambda values: values,
    2: lambda values: values,
    3: lambda values: values,
}

KEYS: dict[str, Key] = {key.name: key for key in keys(Settings)}


def unknown_key(name: str) -> UserError:
    """The sentence for a key that does not exist, with the nearest that does."""
    near = difflib.get_close_matches(name, KEYS, n=1, cutoff=0.6)
    if not near:
        last = name.rsplit(".", 1)[-1]
        near = [known for known in KEYS if difflib.get_close_matches(last, [known.rsplit(".", 1)[-1]], cutoff=0.75)][:1]
    hint = f"did you mean {near[0]}?" if near else "`isoflop train --help` lists the keys"
    return UserError(f"unknown key {name}: {hint}")


# --- settings and nested dictionaries ---------------------------------------------------------------------------------


def to_record(settings: Settings) -> dict[str, Any]:
    """The settings as plain JSON, with the schema version."""
    return {"schema_version": SCHEMA_VERSION, "settings": _nested({name: settings[name] for name in KEYS})}


def from_record(record: Any, migrations: Mapping[int, Callable[..., Any]] = MIGRATIONS) -> Settings:
    """The settings of a saved record of this or an older schema version.

    Raises:
      UserError: the record is newer than this program, damaged, or has keys that do not exist.
    """
    fields = record if isinstance(record, Mapping) else {}
    version, values = fields.get("schema_version"), fields.get("settings")
    if not isinstance(version, int) or version < 1 or not isinstance(values, dict):
        raise UserError("the saved config is not a record of Isoflop: schema_version or settings is missing")
    if version > SCHEMA_VERSION:
        raise UserError(
            f"the saved config has schema version {version}, this Isoflop knows {SCHEMA_VERSION}: update Isoflop"
        )
    while version < SCHEMA_VERSION:
        values, version = migrations[version](values), version + 1
    return from_nested(values)


def from_nested(values: Mapping[str, Any]) -> Settings:
    """Settings from a nested dictionary; keys that are absent get their default.

    Raises:
      UserError: unknown key, wrong type, value out of bounds, or keys that contradict each other.
    """
    flat = _flat(values)
    for name in flat:
        if name not in KEYS:
            raise unknown_key(name)
    return _build(Settings, {name: check_value(KEYS[name], value) for name, value in flat.items()}, "")


def _build(room: type, flat: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(room)
    arguments = {}
    for field in dataclasses.fields(room):
        name = prefix + field.name
        if dataclasses.is_dataclass(hints[field.name]):
            arguments[field.name] = _build(hints[field.name], flat, name + ".")
        elif name in flat:
            arguments[field.name] = flat[name]
    return room(**arguments)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *rooms, last = name.split(".")
        node = nested
        for room in rooms:
            node = node.setdefault(room, {})
        node[last] = value
    return nested


# --- recipes and overrides --------------------------------------------------------------------------------------------


def default_config() -> ml_collections.ConfigDict:
    """All keys at their defaults, as the ConfigDict that recipes edit; it is locked against misspelt names."""
    config = ml_collections.ConfigDict(_nested({key.name: _placeholder(key) for key in KEYS.values()}))
    return config.lock()


def _placeholder(key: Key) -> Any:
    kinds = [kind for kind in key.types if kind is not type(None)]
    return config_dict.placeholder(kinds[0]) if key.default is None else key.default


def load_recipe(name: str) -> ml_collections.ConfigDict:
    """The config of `FILE.py`, `FILE.py:ARGUMENT`, or of a saved `config.json`.

    Raises:
      UserError: no such file, no such argument, or a recipe that sets keys which do not exist or have other types.
    """
    file, _, argument = name.partition(".py:") if ".py:" in name else (name.removesuffix(".py"), "", "")
    path = Path(name) if name.endswith(".json") else Path(file + ".py")
    if not path.is_file():
        known = ", ".join(sorted(str(p) for p in Path("configs").glob("*.py") if "get_config(size" in p.read_text()))
        raise UserError(f"--config={name}: there is no file {path}" + (f"; recipes here: {known}" if known else ""))
    if path.suffix == ".json":
        config = default_config()
        config.update(to_record(from_record(read_json(path)))["settings"])
        return config
    spec = importlib.util.spec_from_file_location(f"isoflop_recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"--config={name}: {path} is not Python: {error.msg} in line {error.lineno}") from error
    recipe = getattr(module, "get_config", None)
    if recipe is None:
        raise UserError(f"--config={name}: {path} has no function get_config")
    if argument and not inspect.signature(recipe).parameters:
        raise UserError(f"--config={name}: this recipe takes no argument, drop `:{argument}`")
    try:
        config = recipe(argument) if argument else recipe()
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"--config={name}: {_translated(error)}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f"--config={name}: get_config gives {type(config).__name__}, not a ConfigDict: return the config"
        )
    return config


def _translated(error: Exception) -> str:
    """What a ConfigDict says of a recipe's mistake, as one sentence."""
    message = str(error.args[0] if error.args else error).strip("'\"")
    if missing := re.search(r'Key "(.+?)" does not exist', message) or re.fullmatch(
        r"\W*(\w+)(\W+n?Did you mean .*)?\W*", message
    ):
        return str(unknown_key(missing[1]))
    if wrong := re.search(r"field '(.+?)'.*?\. (.*) is of original type .* to type <class '(.+?)'>", message):
        return f"{wrong[1]}={wrong[2]}: expected {wrong[3]}"
    return message.split("\n", 1)[0]


def read_json(path: Path) -> Any:
    """The content of a JSON file, or a `UserError` that says why there is none."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: not valid JSON ({error})") from error


def override(config: ml_collections.ConfigDict, name: str, text: str) -> None:
    """Sets the key `name` from what was typed on the command line."""
    if name not in KEYS:
        raise unknown_key(name)
    *rooms, last = name.split(".")
    node = config
    for room in rooms:
        node = node[room]
    value = check_value(KEYS[name], parse_value(KEYS[name], text))
    with node.ignore_type():
        node[last] = value


def parse_value(key: Key, text: str) -> Any:
    """The typed value of what was typed; `1e4` is an integer, `none` is none, `true` and `false` are themselves."""
    lowered = text.strip().lower()
    if type(None) in key.types and lowered in {"none", "null"}:
        return None
    if bool in key.types:
        if lowered in {"true", "false"}:
            return lowered == "true"
    elif str in key.types:
        return text
    else:
        with contextlib.suppress(ValueError):
            return float(lowered) if float in key.types else int(lowered)
        with contextlib.suppress(ValueError):
            number = float(lowered)
            if number.is_integer() and abs(number) < 2**53:
                return int(number)
    raise UserError(f"{key.name}={text}: expected {key.type_name}")


def to_settings(config: ml_collections.ConfigDict) -> Settings:
    """The typed, validated settings of a config."""
    return from_nested(config.to_dict())


# --- identity ---------------------------------------------------------------------------------------------------------


def scientific_hash(settings: Settings) -> str:
    """16 hexadecimal digits that name what a run computes, whatever it is executed on.

    Execution keys are left out, and so are keys that came with a later schema version while they are at their default,
    so that older runs keep their names.
    """
    return _hash(
        {
            name: check_value(key, settings[name])
            for name, key in KEYS.items()
            if not key.metadata["execution"] and not (key.metadata["since"] > 1 and settings[name] == key.default)
        }
    )


def execution_hash(settings: Settings) -> str:
    """16 hexadecimal digits of the keys that the scientific hash leaves out, but for the number of this process."""
    own = "parallel.process_id"
    return _hash({name: settings[name] for name, key in KEYS.items() if key.metadata["execution"] and name != own})


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def differences(old: Settings, new: Settings) -> dict[str, tuple[Any, Any]]:
    """`{key: (old value, new value)}` of all keys that differ."""
    return {name: (old[name], new[name]) for name in KEYS if old[name] != new[name]}


def check_resume(old: Settings, new: Settings, reached: int = 0) -> None:
    """Raises `UserError` where a run that has `reached` updates may not go on with the new settings.

    Execution keys may change. The length may change where it does not bend what was done: under a constant schedule,
    and under warm-up-stable-decay before the decay of either length has begun, with the same warm-up; not where the
    mask rate changes in the course of the run.
    """
    changed = differences(old, new)
    refused = {name: values for name, values in changed.items() if not KEYS[name].metadata["resumable"]}
    before, after = old.train.num_steps, new.train.num_steps
    warmup = old.optimizer.warmup(before)
    if warmup == new.optimizer.warmup(after):
        refused.pop("optimizer.warmup_steps", None)
    if before != after and not refused:
        schedule = new.optimizer.schedule
        if after < reached:
            raise UserError(f"train.num_steps={after}, but this run has {reached} updates already: use a new --workdir")
        if schedule not in {"constant", "wsd"} or new.objective.mask_rate_start is not None:
            refused["train.num_steps"] = (before, after)
        elif warmup != new.optimizer.warmup(after):
            raise UserError(
                f"train.num_steps was {before}, now {after}, which would change the warm-up of this run: "
                f"set optimizer.warmup_steps={warmup}, as it was"
            )
        elif schedule == "wsd" and reached > min(
            before - old.optimizer.decay(before), after - new.optimizer.decay(after)
        ):
            raise UserError(
                f"train.num_steps was {before}, now {after}, but after {reached} updates the final decay of one "
                "of them has begun: use a new --workdir"
            )
    if refused:
        listed = "; ".join(f"{name} was {was!r}, now {now!r}" for name, (was, now) in refused.items())
        raise UserError(f"this run was started with other settings ({listed}): set them back, or use a new --workdir")

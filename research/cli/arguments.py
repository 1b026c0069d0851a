"""Arguments that verbs share: recipes, overrides of keys, run directories."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from research import config
from research.errors import UserError
from research.settings import Settings

Overrides = list[tuple[str, str]]


def add_config(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """`--config`, which brings `--config.key=value` with it."""
    parser.add_argument(
        "--config",
        required=required,
        metavar="FILE[:SIZE]",
        help="recipe, with a size of the ladder; or a saved config.json. Any key below: --config.KEY=VALUE",
    )


def add_workdir(parser: argparse.ArgumentParser, meaning: str) -> None:
    """`--workdir`."""
    parser.add_argument("--workdir", required=True, type=absolute, metavar="DIR", help=meaning)


def absolute(text: str) -> Path:
    """A path of an argument, whatever the process later makes its directory."""
    return Path(text).expanduser().absolute()


def overrides(rest: Iterable[str]) -> Overrides:
    """`(key, text)` of each `--config.key=value`, `--config.key value` and `--config.flag`.

    Raises:
      UserError: an argument that is none of these.
    """
    found: Overrides = []
    waiting: str | None = None
    for argument in rest:
        if argument.startswith("--config.") or argument.startswith("--noconfig."):
            if waiting is not None:
                found.append((waiting, "true"))
            name, equals, text = argument.split(".", 1)[1].partition("=")
            waiting = None
            if argument.startswith("--no"):
                found.append((name, "false"))
            elif equals:
                found.append((name, text))
            else:
                waiting = name
        elif waiting is not None and not argument.startswith("--"):
            found.append((waiting, argument))
            waiting = None
        else:
            raise UserError(
                f"unknown argument {argument}: `--help` shows what there is, keys are written --config.KEY=VALUE"
            )
    if waiting is not None:
        found.append((waiting, "true"))
    return found


def settings(recipe: str, changes: Sequence[tuple[str, str]]) -> Settings:
    """The settings of a recipe with overrides."""
    loaded = config.load_recipe(recipe)
    for name, text in changes:
        config.override(loaded, name, text)
    return config.to_settings(loaded)


def changed(base: Settings, changes: Sequence[tuple[str, str]]) -> Settings:
    """A saved run's settings with overrides of execution keys, for verbs that only read the run.

    Raises:
      UserError: a key that would make it another run.
    """
    record = config.to_record(base)["settings"]
    loaded = config.default_config()
    loaded.update(record)
    for name, text in changes:
        if name in config.KEYS and not config.KEYS[name].metadata["execution"]:
            raise UserError(
                f"--config.{name}: a trained run keeps this key; only keys of execution can be changed here"
            )
        config.override(loaded, name, text)
    return config.to_settings(loaded)


def console(options: argparse.Namespace) -> Console:
    """Where a person reads: standard error where standard output carries the machine's object."""
    return Console(stderr=options.json, highlight=False)


def keys_table() -> str:
    """All keys, for `--help`."""
    lines = ["keys (--config.KEY=VALUE):"]
    for key in config.KEYS.values():
        default = (
            "none"
            if key.default is None
            else str(key.default).lower()
            if isinstance(key.default, bool)
            else key.default
        )
        unit = f" [{key.metadata['unit']}]" if key.metadata["unit"] else ""
        choices = f" ({', '.join(key.metadata['choices'])})" if key.metadata["choices"] else ""
        lines.append(f"  {key.name}={default!s}\n      {key.metadata['meaning']}{choices}{unit}")
    return "\n".join(lines)


Result = tuple[int, dict[str, Any]]

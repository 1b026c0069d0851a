"""A cell as a recipe: its settings, with its command, what it cost and what it gave."""

from pathlib import Path
from typing import Any

from research import config
from research.errors import UserError
from research.sweeps.folder import Folder
from research.sweeps.sweep import Cell
from research.train.metrics import write_text
from research.train.report import quantity


def promote(folder: Folder, cell: Cell, row: dict[str, Any], path: Path) -> None:
    """Writes the recipe of a cell, whose row says what it measured.

    Raises:
      UserError: the file is there already, or is no Python file.
    """
    if path.suffix != ".py":
        raise UserError(f"--output={path}: a recipe is a Python file, name it so")
    if path.exists():
        raise UserError(f"--output={path} is there already: choose another name, or remove it")
    write_text(path, recipe_text(folder, cell, row, path))
    written = config.to_settings(config.load_recipe(str(path)))
    assert config.scientific_hash(written) == config.scientific_hash(cell.settings), config.differences(
        written, cell.settings
    )


def recipe_text(folder: Folder, cell: Cell, row: dict[str, Any], path: Path) -> str:
    """A recipe whose header says its command, what it cost and what it gave."""
    content = folder.content
    fact = folder.fact(cell.id)
    cost = f"{quantity(fact['plan']['tokens'])} tokens, {fact['plan']['flops']:.2e} model FLOPs"
    if row["training_seconds"]:
        cost += f", {row['training_seconds']:,.0f} seconds of training on {content['host']}"
    found = [
        f"{row[name]:.4f} {text}"
        for name, text in (("bits_per_byte", "held-out bits per byte"), ("heldout_loss", "nats a held-out target"))
        if row[name] is not None
    ]
    header = [
        f'"""{_plain(content["question"])}',
        "",
        f"    isoflop train --config={_as_given(path)} --workdir=runs/{path.stem}",
        "",
        f"Cost: {cost}.",
        f"Result: {', '.join(found) or 'not run yet'}.",
        f"The cell {cell.id} ({_plain(cell.name)}) of a sweep over {_plain(content['recipe'])}, promoted;",
        f"commit {content['commit'][:20]}, data {fact['data_hash']}.",
        '"""',
    ]
    rooms: dict[str, dict[str, Any]] = {}
    for name, key in config.KEYS.items():
        if cell.settings[name] != key.default and name != "train.keep_every":
            room, _, last = name.rpartition(".")
            rooms.setdefault(room, {})[last] = cell.settings[name]
    lines = ["    config = base.get_config()"]
    for room, values in rooms.items():
        given = ", ".join(f"{name}={value!r}" for name, value in values.items())
        lines.append(f"    config.{room}.update({given})" if room else f"    config.{given.replace('=', ' = ')}")
    body = ["def get_config() -> ml_collections.ConfigDict:", '    """The recipe."""', *lines, "    return config"]
    return "\n".join([*header, "", "import ml_collections", "", "from configs import base", "", "", *body]) + "\n"


def _as_given(path: Path) -> str:
    """From the folder where the command was given, where the file lies in it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _plain(text: str) -> str:
    return text.replace("\\", "/").replace('"', "'")

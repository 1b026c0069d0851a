"""Turn text into a tokenizer and token shards, once.

Prepared data lies in one cache (ISOFLOP_CACHE, by default in the user's cache folder) under the hash of its content, so
that every run of the same data and tokenizer shares it. `isoflop train` prepares by itself what is not there.

examples:
  isoflop prepare --config=configs/causal.py:tiny
  isoflop prepare --config=configs/causal.py:15m --config.data.source=text --config.data.path='books/*.txt'
"""

import argparse

from research.cli.arguments import Result, add_config, console, keys_table, settings
from research.cli.progress import Progress
from research.data import prepare


def epilog() -> str | None:
    """What `--help` ends with."""
    return keys_table()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_config(parser)


def run(options: argparse.Namespace) -> Result:
    """Prepares and shows the data card."""
    chosen = settings(options.config, options.overrides)
    shown = console(options)
    with Progress(0, 0, 1, shown) as progress:
        prepared = prepare.prepare(chosen, progress.stage)
    shown.print((prepared.directory / "card.md").read_text(encoding="utf-8"), markup=False)
    shown.print(f"prepared: {prepared.directory}", soft_wrap=True)
    return 0, {
        "directory": str(prepared.directory),
        "data_hash": prepared.data_hash,
        "splits": prepared.manifest["splits"],
    }

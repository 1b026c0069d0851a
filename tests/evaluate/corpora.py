"""A small corpus with origins, prepared with tokenizers of several sizes."""

from pathlib import Path

import numpy as np
import pytest

from research.data import sources
from research.data.prepare import Prepared, prepare
from research.data.sources import Document
from research.settings import DataSettings, Settings, TokenizerSettings

SUBJECTS = {
    "numpy": ["array", "shape", "axis", "dtype", "the sum of elements", "broadcast"],
    "rich": ["console", "style", "colour", "the table of text", "render", "padding"],
    "optax": ["gradient", "update", "the learning rate", "momentum", "schedule", "decay"],
}


def documents(count: int = 240) -> list[Document]:
    """Texts whose words say which package they are of, mostly; a few of a fourth package."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        package = list(SUBJECTS)[number % 3]
        words = [*SUBJECTS[package], "a", "of", "and", "returns", "if", "é", "the value"]
        text = " ".join(rng.choice(words, size=rng.integers(6, 40)))
        origin = "rarely" if number % 60 == 59 else package
        made.append(Document(f"{text} {number}.", f"{origin}/module.py:f{number}"))
    return made


def corpus(
    monkeypatch: pytest.MonkeyPatch, cache: Path, vocab_size: int = 300, kind: str = "bpe", fraction: float = 0.2
) -> Prepared:
    """The documents as documentation strings, in a cache of their own: there they stand for the real ones."""
    monkeypatch.setenv("ISOFLOP_CACHE", str(cache))
    monkeypatch.setattr(sources.Source, "documents", lambda self: iter(documents()))
    data = DataSettings(source="docstrings", validation_fraction=fraction)
    return prepare(Settings(data=data, tokenizer=TokenizerSettings(vocab_size=vocab_size, kind=kind)))

"""Small corpora for the tests of `research/data`."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from research.data.shards import ShardReader, ShardWriter, token_dtype
from research.settings import DataSettings, Settings, TokenizerSettings
from research.vocabulary import Vocabulary

VOCABULARY = Vocabulary(size=500, pad=0, unknown=1, bos=2, eos=3, mask=4)

WORDS = [
    "the",
    "model",
    "reads",
    "a",
    "window",
    "of",
    "tokens",
    "and",
    "predicts",
    "what",
    "comes",
    "next",
    "every",
    "document",
]


def documents(number: int, seed: int = 0, longest: int = 60) -> list[str]:
    """Distinct texts of 1 to `longest` words, with line ends and letters of several bytes."""
    random = np.random.default_rng(seed)
    texts = []
    for index in range(number):
        words = random.choice(WORDS, size=random.integers(1, longest + 1))
        texts.append(f"{index:03d} café {' '.join(words)}.\n\n    次 {words[0]}")
    return texts


def write_texts(folder: Path, texts: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, text in enumerate(texts):
        (folder / f"{index:04d}.txt").write_bytes(text.encode())
    return folder


def text_settings(path: Path, vocab_size: int = 320, **data: object) -> Settings:
    room = DataSettings(source="text", path=str(path))
    return Settings(
        data=dataclasses.replace(room, **{"validation_fraction": 0.1} | data),  # type: ignore[arg-type]
        tokenizer=TokenizerSettings(vocab_size=vocab_size),
    )


def tree_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def token_reader(folder: Path, lengths: list[int], shard_bytes: int = 64, vocab_size: int = 500) -> ShardReader:
    """A split of random documents with so many tokens each, `eos` included, in many small shard files."""
    random = np.random.default_rng(0)
    writer = ShardWriter(folder, "train", token_dtype(vocab_size), shard_bytes)
    for length in lengths:
        ids = random.integers(5, vocab_size, size=length - 1)
        writer.write([np.append(ids, VOCABULARY.eos).astype(np.int32)], num_bytes=np.array([2 * (length - 1)]))
    return ShardReader(folder, "train", writer.close())

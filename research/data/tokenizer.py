"""Text to ids and back: one interface, whoever made the tokenizer and whichever engine runs it."""

import abc
import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64

from research.errors import UserError
from research.vocabulary import Vocabulary

# What careless tokenizers lose: runs of spaces, controls, ligatures, accents, sentencepiece's own letter for a space.
PROBE = " a  B\n\n\tc\x00 \ufb01\uff21e\u0301\u4e2d\U0001f600\u2581<mask> "
JSON, CONFIG = "tokenizer.json", "tokenizer_config.json"
# How sentencepiece models are called, ours first.
MODELS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")

_SENTINEL = re.compile(r"<extra_id_(\d+)>")


class Tokenizer(abc.ABC):
    """Text to ids and back.

    Attributes:
      files: what it consists of, contents by name, the main file first; beside the others `load` reads it again.
      vocabulary: what the rest of the program needs to know of the ids.
      byte_lengths: int64 [vocab_size], UTF-8 bytes of text that each id stands for; 0 for special ids.
    """

    files: dict[str, bytes]
    vocabulary: Vocabulary
    byte_lengths: Int64[np.ndarray, "vocab"]

    def __init__(self, files: Mapping[str, bytes], vocabulary: Vocabulary, pieces: Sequence[str], texts: list[bytes]):
        """Keeps what every kind has.

        Args:
          files: contents by name, the main file first.
          vocabulary: without `word_starts`: a piece that begins with white space begins a word.
          pieces: the name of each id.
          texts: the bytes that each id stands for, none for special ids.
        """
        starts = tuple(bool(text[:1].isspace()) for text in texts)
        self.files, self.vocabulary = dict(files), dataclasses.replace(vocabulary, word_starts=starts)
        self.byte_lengths = np.array([len(text) for text in texts], dtype=np.int64)
        self._pieces, self._bytes = list(pieces), texts

    @abc.abstractmethod
    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, int32, with all cores."""

    def encode(self, text: str) -> Int32[np.ndarray, "tokens"]:
        """The ids of a text, without `bos` and `eos`; names of special tokens in it are plain text."""
        return self.encode_many([text])[0]

    def decode_bytes(self, ids: Iterable[int | np.integer]) -> bytes:
        """The UTF-8 bytes that ids stand for; a character may begin in one id and end in the next."""
        return b"".join([self._bytes[i] for i in ids])

    def decode(self, ids: Iterable[int | np.integer]) -> str:
        """The text of ids without the special ones; bytes that are no character become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def name_of(self, token: int | np.integer) -> str:
        """The name of an id in the tokenizer's files."""
        return self._pieces[token]

    def piece(self, token: int | np.integer) -> str:
        """One id as a reader would write it: `▁the`, `<0x0A>`, `\\n`."""
        return self._pieces[token].replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")

    @property
    def file_name(self) -> str:
        """Name of the main file."""
        return next(iter(self.files))

    @cached_property
    def hash(self) -> str:
        """SHA-256 of its file, or of the hashes of its files, hexadecimal."""
        hashes = [hashlib.sha256(content).hexdigest() for content in self.files.values()]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()

    @cached_property
    def exact(self) -> bool:
        """`decode(encode(text)) == text`, tried on a text of what tokenizers tend to lose."""
        return self.decode(self.encode(PROBE)) == PROBE


def load(path: str | Path) -> Tokenizer:
    """The tokenizer in a sentencepiece model, a `tokenizer.json` or a directory of Hugging Face.

    Roles of special tokens of a `tokenizer.json` are read from the files beside it.

    Raises:
      UserError: no such file, or not a tokenizer that Isoflop can use; the sentence names the file.
    """
    from research.data import sentencepieces, tokenizer_json  # Both are made of this module's class.

    path = Path(path)
    if path.is_dir():
        names = [name for name in (JSON, *MODELS) if (path / name).is_file()]
        if not names:
            raise UserError(f"tokenizer.path={path}: the folder has neither {JSON} nor {', '.join(MODELS)}")
        path = path / names[0]
    try:
        if path.suffix == ".json":
            return tokenizer_json.open_json(path)
        return sentencepieces.SentencepieceTokenizer(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"tokenizer.path={path}: {error.strerror}; give a sentencepiece model, a tokenizer.json or a folder of "
            "Hugging Face that has one, or leave it empty"
        ) from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def first_role(*candidates: int | None) -> int:
    """The first id that there is, or -1: roles that a tokenizer lacks fall to its other special tokens."""
    return next((token for token in candidates if token is not None and token >= 0), -1)


def sentinels_of(ids: Mapping[str, int]) -> tuple[int, ...]:
    """The special tokens `<extra_id_0>`, `<extra_id_1>`, ... of T5, by their number."""
    numbers = {int(found[1]): token for content, token in ids.items() if (found := _SENTINEL.fullmatch(content))}
    return tuple(numbers[i] for i in range(len(numbers)) if i in numbers)

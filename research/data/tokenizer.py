"""Sentencepiece models whose round trip is exact: `decode(encode(text)) == text` for every string."""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece
from jaxtyping import Int32

from research.errors import UserError
from research.settings import TokenizerSettings
from research.vocabulary import Vocabulary

PAD, UNKNOWN, BOS, EOS, MASK = range(5)
_SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
_SPACE = "\u2581"  # sentencepiece's own letter for a space; where it stands in a text it is encoded as its three bytes
_PROBE = " a  B\n\n\tc\x00 \ufb01\uff21e\u0301\u4e2d\U0001f600" + _SPACE + "<mask> "
# Words of more than 65,535 characters abort sentencepiece's training; text without spaces can be one word.
_TRAINING_CHARACTERS = 10_000
# Sums of the unigram model depend on how many threads share them: a fixed number gives the same model everywhere.
_TRAINING_THREADS = 4


class Tokenizer:
    """Text to ids and back.

    Attributes:
      model: the bytes of the sentencepiece model.
      hash: SHA-256 of the model, hexadecimal.
      byte_lengths: int64 [vocab_size], UTF-8 bytes of text that each id stands for; 0 for special ids.
    """

    def __init__(self, model: bytes):
        """Loads a model.

        Raises:
          UserError: not a sentencepiece model, or one without the special ids or the exact round trip.
        """
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, OSError) as error:
            raise UserError("the tokenizer is damaged: it is not a sentencepiece model; give another one") from error
        self.model = model
        self.hash = hashlib.sha256(model).hexdigest()
        self._pieces: list[str] = [self._processor.id_to_piece(i) for i in range(self._processor.vocab_size())]
        ids = tuple(self._pieces[: len(_SPECIAL)])
        if ids != _SPECIAL or not all(self._processor.is_control(i) for i in (PAD, BOS, EOS, MASK)):
            raise UserError(
                f"the tokenizer begins with {', '.join(ids)}: it must have the special ids {', '.join(_SPECIAL)} in "
                "this order, as the tokenizers that `isoflop prepare` trains"
            )
        self._bytes = [self._bytes_of(i) for i in range(len(self._pieces))]
        self.byte_lengths = np.array([len(text) for text in self._bytes], dtype=np.int64)
        if self.decode(self.encode(_PROBE)) != _PROBE:
            raise UserError(
                "the tokenizer does not give back every text that it encodes: train it with identity normalisation, "
                "byte fallback, no dummy prefix and no removal of spaces, or leave tokenizer.path empty"
            )

    def _bytes_of(self, token: int) -> bytes:
        if self._processor.is_control(token) or self._processor.is_unknown(token):
            return b""
        piece = self._pieces[token]
        if self._processor.is_byte(token):
            return bytes([int(piece[3:-1], 16)])
        return piece.replace(_SPACE, " ").encode()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What the rest of the program needs to know of the ids; a piece that begins with white space begins a word."""
        starts = tuple(bool(text[:1].isspace()) for text in self._bytes)
        return Vocabulary(len(self._pieces), PAD, UNKNOWN, BOS, EOS, MASK, starts)

    def encode(self, text: str) -> Int32[np.ndarray, "tokens"]:
        """The ids of a text, without `bos` and `eos`; names of special tokens in it are plain text."""
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, with all cores."""
        plain = self._processor.encode(list(texts), num_threads=-1)
        return [
            self._encode_parts(text) if _SPACE in text else np.array(ids, dtype=np.int32)
            for text, ids in zip(texts, plain, strict=True)
        ]

    def _encode_parts(self, text: str) -> np.ndarray:
        first_byte = self._processor.piece_to_id("<0x00>")
        ids: list[int] = []
        for number, part in enumerate(text.split(_SPACE)):
            if number:
                ids += [first_byte + byte for byte in _SPACE.encode()]
            ids += self._processor.encode(part)
        return np.array(ids, dtype=np.int32)

    def decode_bytes(self, ids: Iterable[int | np.integer]) -> bytes:
        """The UTF-8 bytes that ids stand for; a character may begin in one id and end in the next."""
        return b"".join([self._bytes[i] for i in ids])

    def decode(self, ids: Iterable[int | np.integer]) -> str:
        """The text of ids without the special ones; bytes that are no character become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def piece(self, token: int | np.integer) -> str:
        """One id as a reader would write it: `▁the`, `<0x0A>`, `\\n`."""
        return self._pieces[token].replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")


def load(path: str | Path) -> Tokenizer:
    """The tokenizer in a file.

    Raises:
      UserError: no such file, or not a model that Isoflop can use; the sentence names the file.
    """
    try:
        return Tokenizer(Path(path).read_bytes())
    except OSError as error:
        raise UserError(
            f"tokenizer.path={path}: {error.strerror}; give a sentencepiece model or leave it empty"
        ) from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def train(texts: Iterable[str], settings: TokenizerSettings) -> bytes:
    """Trains a sentencepiece model on texts; the same texts give the same bytes.

    Line ends and indentation are ordinary characters, from which pieces such as `.\\n` and runs of spaces are learned.

    Raises:
      UserError: `tokenizer.vocab_size` is too large or too small for the texts.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=model,
            model_type=settings.kind,
            vocab_size=settings.vocab_size,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            max_sentence_length=2**30,
            pad_id=PAD,
            unk_id=UNKNOWN,
            bos_id=BOS,
            eos_id=EOS,
            pad_piece=_SPECIAL[PAD],
            unk_piece=_SPECIAL[UNKNOWN],
            bos_piece=_SPECIAL[BOS],
            eos_piece=_SPECIAL[EOS],
            control_symbols=[_SPECIAL[MASK]],
            num_threads=_TRAINING_THREADS,
            minloglevel=4,
        )
    except RuntimeError as error:
        raise _training_error(str(error), settings) from error
    return model.getvalue()


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), _TRAINING_CHARACTERS):
            yield text[start : start + _TRAINING_CHARACTERS]


def _training_error(message: str, settings: TokenizerSettings) -> Exception:
    """The sentence for what sentencepiece refused; what is not the user's mistake stays as it is."""
    asked = f"tokenizer.vocab_size={settings.vocab_size}"
    if largest := re.search(r"Vocabulary size too high .*<= (\d+)", message):
        return UserError(
            f"{asked} is more than this text can fill: the largest possible is {largest[1]}, or use more text"
        )
    if smallest := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return UserError(f"{asked} does not hold the characters of this text: use at least {smallest[1]}")
    if "sentences_.empty()" in message:
        return UserError("the corpus has no text to train a tokenizer on: use another data.path")
    return RuntimeError(message)

"""Sentencepiece models: those that Isoflop trains, whose round trip is exact, and those of others."""

import io
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import sentencepiece

from research.data.tokenizer import MODELS, Tokenizer, first_role, sentinels_of
from research.errors import UserError
from research.settings import TokenizerSettings
from research.vocabulary import Vocabulary

PAD, UNKNOWN, BOS, EOS, MASK = range(5)
_SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
_SPACE = "\u2581"  # sentencepiece's own letter for a space; our models encode it as its three bytes
# Words of more than 65,535 characters abort sentencepiece's training; text without spaces can be one word.
_TRAINING_CHARACTERS = 10_000
# Sums of the unigram model depend on how many threads share them: a fixed number gives the same model everywhere.
_TRAINING_THREADS = 4


class SentencepieceTokenizer(Tokenizer):
    """A sentencepiece model.

    Models that begin with Isoflop's five special ids give back every text. Others, as of Llama and T5, have special ids
    elsewhere and their own normalisation, and may put a space before a text.

    Attributes:
      model: the bytes of the model.
      trained_here: it has the special ids of the models that `isoflop prepare` trains.
      space_before: a space is put before every text.
    """

    def __init__(self, model: bytes):
        """Loads a model.

        Raises:
          UserError: not a sentencepiece model, one without an end of text, or one of ours that changes texts.
        """
        try:
            self._processor = processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, OSError) as error:
            raise UserError("the tokenizer is damaged: it is not a sentencepiece model; give another one") from error
        self.model = model
        pieces: list[str] = [processor.id_to_piece(i) for i in range(processor.vocab_size())]
        self.trained_here = tuple(pieces[: len(_SPECIAL)]) == _SPECIAL and all(
            processor.is_control(i) for i in (PAD, BOS, EOS, MASK)
        )
        texts = [self._text_of(i, piece) for i, piece in enumerate(pieces)]
        super().__init__({MODELS[0]: model}, self._roles(pieces), pieces, texts)
        self.space_before = self.decode_bytes(processor.encode("a"))[:1] == b" "
        if self.trained_here and not self.exact:
            raise UserError(
                "the tokenizer does not give back every text that it encodes: train it with identity normalisation, "
                "byte fallback, no dummy prefix and no removal of spaces, or leave tokenizer.path empty"
            )

    def _text_of(self, token: int, piece: str) -> bytes:
        if self._processor.is_control(token) or self._processor.is_unknown(token):
            return b""
        return bytes([int(piece[3:-1], 16)]) if self._processor.is_byte(token) else piece.replace(_SPACE, " ").encode()

    def _roles(self, pieces: list[str]) -> Vocabulary:
        processor, size = self._processor, len(pieces)
        if self.trained_here:
            return Vocabulary(size, PAD, UNKNOWN, BOS, EOS, MASK)
        controls = {piece: i for i, piece in enumerate(pieces) if processor.is_control(i)}
        eos = first_role(processor.eos_id(), controls.get("[SEP]"))
        if eos < 0:
            raise UserError(
                "the tokenizer has no token that ends a text (eos): give another sentencepiece model, or leave "
                "tokenizer.path empty"
            )
        bos = first_role(processor.bos_id(), controls.get("[CLS]"))
        pad = first_role(processor.pad_id(), controls.get("<pad>"))
        mask = first_role(controls.get("<mask>"), controls.get("[MASK]"))
        return Vocabulary(
            size,
            pad=first_role(pad, eos),
            unknown=processor.unk_id(),
            bos=first_role(bos, pad, eos),
            eos=eos,
            mask=mask,
            begins=bos >= 0,
            sentinels=sentinels_of(controls),
        )

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, int32, with all cores."""
        plain = self._processor.encode(list(texts), num_threads=-1)
        return [
            self._encode_parts(text) if self.trained_here and _SPACE in text else np.array(ids, dtype=np.int32)
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

    def decode(self, ids: Iterable[int | np.integer]) -> str:
        """The text of ids without the special ones, and without the space before it where one is put there."""
        text = super().decode(ids)
        return text.removeprefix(" ") if self.space_before else text


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

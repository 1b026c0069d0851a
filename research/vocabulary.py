"""What objectives, data and models need to know of a tokenizer, without the tokenizer."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Sizes and special ids of a tokenizer.

    Attributes:
      size: number of ids, special ones included; every token id is below it.
      pad: fills positions that carry no token.
      unknown: what the tokenizer cannot express (never produced with byte fallback).
      bos: stands before the first token of a document.
      eos: ends a document; it is predicted like any other token.
      mask: replaces a token that a masked model must restore.
      word_starts: for each id whether the piece begins a word, as a tuple of `size` flags.
      begins: a text that a model continues has `bos` before it by the tokenizer's own convention.
      sentinels: ids that stand for spans that were taken out: the first, second, ... of a document.
      marks: names and ids of what else an objective writes between tokens.

    An imported tokenizer may have one id for several roles (`bos`, `eos` and `pad` of GPT-2), and -1 for `unknown` or
    `mask` where it has none.
    """

    size: int
    pad: int
    unknown: int
    bos: int
    eos: int
    mask: int
    word_starts: tuple[bool, ...] = ()
    begins: bool = True
    sentinels: tuple[int, ...] = ()
    marks: tuple[tuple[str, int], ...] = ()

    @property
    def special(self) -> tuple[int, ...]:
        """Ids that no corruption may choose and no sampler of random tokens may draw."""
        roles = (self.pad, self.unknown, self.bos, self.eos, self.mask, *self.sentinels, *self.ids_of_marks)
        return tuple(dict.fromkeys(token for token in roles if token >= 0))

    @property
    def ids_of_marks(self) -> tuple[int, ...]:
        """The ids of all marks."""
        return tuple(token for _, token in self.marks)

    @property
    def num_rows(self) -> int:
        """Rows that an embedding needs for the tokenizer's ids and those above them."""
        return max(self.size, *(token + 1 for token in self.special))

    @property
    def decoder_start(self) -> int:
        """The first input of a decoder: `bos`, or `pad` as T5 has it, whose tokenizer brings sentinels."""
        own = bool(self.sentinels) and self.sentinels[0] < self.size
        return self.pad if own or self.bos < 0 else self.bos

    def mark(self, name: str) -> int:
        """The id of a mark."""
        return dict(self.marks)[name]

    def extended(self, num_sentinels: int, marks: Sequence[str]) -> "Vocabulary":
        """With sentinels, unless the tokenizer brings its own, and with marks, on the ids above the tokenizer's."""
        sentinels = self.sentinels or tuple(range(self.size, self.size + num_sentinels))
        first = max(self.size, *(token + 1 for token in sentinels)) if sentinels else self.size
        named = tuple((name, first + number) for number, name in enumerate(marks))
        return dataclasses.replace(self, sentinels=sentinels, marks=named)

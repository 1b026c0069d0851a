"""What objectives, data and models need to know of a tokenizer, without the tokenizer."""

import dataclasses


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
    """

    size: int
    pad: int
    unknown: int
    bos: int
    eos: int
    mask: int
    word_starts: tuple[bool, ...] = ()

    @property
    def special(self) -> tuple[int, ...]:
        """Ids that no corruption may choose and no sampler of random tokens may draw."""
        return (self.pad, self.unknown, self.bos, self.eos, self.mask)

"""The shapes that are measured."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shape:
    """A decoder and its batch: widths, counts, tokens and sequences."""

    embed: int
    layers: int
    heads: int
    mlp: int
    vocabulary: int
    sequence: int
    batch: int

    @property
    def tokens(self) -> int:
        """Tokens of one update."""
        return self.batch * self.sequence


SHAPES = {
    "S": Shape(embed=256, layers=4, heads=4, mlp=1024, vocabulary=8192, sequence=256, batch=16),
    "M": Shape(embed=512, layers=8, heads=8, mlp=2048, vocabulary=32000, sequence=512, batch=4),
}

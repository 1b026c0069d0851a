"""The shapes that are measured."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model and its batch.

    Attributes:
      embed: width of the residual stream.
      layers: blocks; of the encoder and of the decoder, where there are both.
      heads: attention heads.
      mlp: hidden width of the MLP.
      vocabulary: token ids.
      sequence: positions that a row has, or that the encoder reads.
      batch: rows of an update.
      decoder: positions of the decoder, where there is an encoder.
      family: what the model is like, see `FAMILIES`.
      objective: what it is asked, see `OBJECTIVES`; none: what its family is.
    """

    embed: int
    layers: int
    heads: int
    mlp: int
    vocabulary: int
    sequence: int
    batch: int
    decoder: int = 64
    family: str = "gpt"
    objective: str = ""

    @property
    def asks(self) -> str:
        """The objective."""
        return self.objective or OBJECTIVES[self.family][0]

    @property
    def with_encoder(self) -> bool:
        """An encoder reads the sequence, and a decoder predicts."""
        return self.family == "t5"

    @property
    def tokens(self) -> int:
        """Tokens of one update, those of the encoder and of the decoder."""
        return self.batch * (self.sequence + (self.decoder if self.with_encoder else 0))


# gpt: LayerNorm before the sublayers, GELU, learned positions, a tied head. llama: RMSNorm, rotary positions, SwiGLU, a
# head of its own. bert: LayerNorm after the sums, token types, a head with a transform. t5: version 1.1.
FAMILIES = ("gpt", "llama", "bert", "t5")
# What each family can be asked, its own first.
OBJECTIVES = {
    "gpt": ("causal", "masked"),
    "llama": ("causal", "masked"),
    "bert": ("masked", "causal"),
    "t5": ("seq2seq",),
}

SHAPES = {
    "S": Shape(embed=256, layers=4, heads=4, mlp=1024, vocabulary=8192, sequence=256, batch=16),
    "M": Shape(embed=512, layers=8, heads=8, mlp=2048, vocabulary=32000, sequence=512, batch=4, decoder=128),
}

# What `make benchmark` measures: shape and family.
DEFAULT = (("S", "gpt"), ("M", "gpt"), ("S", "bert"), ("S", "llama"), ("S", "t5"))

"""Parameters and floating-point operations, counted from the declared weights.

A multiply-add is two operations; the backward pass costs twice the forward pass. Counted are matrix products: the
projections, the head, and attention's two products. `model` FLOPs take attention in full and the head at every
position, whatever is masked or skipped (Chowdhery et al. 2022, appendix B): the figure for utilisation and for scaling
fits. `required` FLOPs leave out what the pattern hides and positions without a target.
"""

import dataclasses

from research.models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class Count:
    """Figures of a model at a sequence length.

    Attributes:
      parameters: all weights.
      non_embedding_parameters: without token and position embeddings and without an untied head.
      model_flops: training operations a token, attention in full.
      required_flops: training operations a token that the objective needs.
    """

    parameters: int
    non_embedding_parameters: int
    model_flops: float
    required_flops: float


def count(model: Transformer, sequence_length: int, *, causal: bool, head_share: float = 1.0) -> Count:
    """Parameters, and operations a token of one update at `sequence_length`.

    Args:
      model: the model.
      sequence_length: tokens a sequence.
      causal: a position sees only what stands before it.
      head_share: share of the positions that are predicted (a masked model: the mask rate).
    """
    settings = model.settings
    declared = model.parameters().values()
    total = sum(parameter.size for parameter in declared)
    outside = sum(parameter.size for parameter in declared if parameter.kind in {"embedding", "head"})
    products = sum(parameter.size for parameter in declared if parameter.kind == "kernel")
    head = model.vocab_size * settings.embed_dim
    width = settings.num_heads * settings.head_width
    attention = 2 * settings.num_layers * sequence_length * width  # scores and weighted values, multiply-adds a token
    seen = (sequence_length + 1) / (2 * sequence_length) if causal else 1.0
    return Count(
        parameters=total,
        non_embedding_parameters=total - outside,
        model_flops=6.0 * (products + head + attention),
        required_flops=6.0 * (products + head * head_share + attention * seen),
    )

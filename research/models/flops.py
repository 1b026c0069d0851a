"""Parameters and floating-point operations, counted from the declared weights.

A multiply-add is two operations; the backward pass costs twice the forward pass. Counted are matrix products: the
projections, the head, and attention's two products. `model` FLOPs take attention in full and the head at every
position, whatever is masked or skipped (Chowdhery et al. 2022, appendix B): the figure for scaling fits. `required`
FLOPs leave out what pattern, windows and documents hide, positions without a target, and tokens that find no place in
their experts: what no implementation can do without, the figure for utilisation. Of experts, those that a token is sent
to count.
"""

import dataclasses
import math
from collections.abc import Sequence

from research.kernels import Pattern
from research.models.model import Model
from research.parameters import Parameter


@dataclasses.dataclass(frozen=True)
class Work:
    """What a sequence asks of a model.

    Attributes:
      positions: length of the sequence (of the decoder, where there is an encoder).
      pattern: what its attention may see.
      encoder_positions: length of what the encoder reads.
      targets: positions that are predicted; none: all.
      prefix: share of a document that is a bidirectional prefix, where the pattern has one.
      documents: lengths of the documents that share the sequence; none: one fills it.
      pairs: the heads of a sentence pair are computed.
    """

    positions: int
    pattern: Pattern
    encoder_positions: int = 0
    targets: float | None = None
    prefix: float = 0.0
    documents: Sequence[int] | None = None
    pairs: bool = False


@dataclasses.dataclass(frozen=True)
class Count:
    """Figures of a model.

    Attributes:
      parameters: all weights.
      non_embedding_parameters: without token, position and type embeddings and without an untied head's table.
      active_parameters: what one token passes through: of the experts, those that it is sent to.
      model_flops: training operations a sequence, attention in full.
      required_flops: training operations a sequence that the objective needs.
    """

    parameters: int
    non_embedding_parameters: int
    active_parameters: int
    model_flops: float
    required_flops: float

    def per(self, tokens: int) -> "Count":
        """The operations a token of a sequence that stands for `tokens` of them."""
        return dataclasses.replace(
            self, model_flops=self.model_flops / tokens, required_flops=self.required_flops / tokens
        )


def count(model: Model, work: Work) -> Count:
    """Parameters, and operations of one update a sequence."""
    declared = list(model.parameters().values())
    total = sum(parameter.size for parameter in declared)
    outside = sum(parameter.size for parameter in declared if parameter.kind in {"embedding", "head"})
    active = sum(parameter.size * _share(model, parameter) for parameter in declared)
    targets = work.positions if work.targets is None else work.targets
    products = sum(_multiply_adds(model, parameter, work) for parameter in declared)
    placed = min(1.0, model.settings.expert_capacity or 1.0)
    lost = sum(
        (1.0 - placed) * _multiply_adds(model, parameter, work)
        for parameter in declared
        if "experts" in parameter.dimensions
    )
    head = model.vocab_size * model.settings.embed_dim
    head += sum(parameter.size for parameter in declared if parameter.path == "head/transform")
    full, seen = attention(model, work)
    return Count(
        parameters=total,
        non_embedding_parameters=total - outside,
        active_parameters=round(active),
        model_flops=6.0 * (products + head * work.positions + full),
        required_flops=6.0 * (products - lost + head * targets + seen),
    )


def _share(model: Model, parameter: Parameter) -> float:
    """The share of a weight that one token passes through."""
    settings = model.settings
    return settings.experts_per_token / settings.num_experts if "experts" in parameter.dimensions else 1.0


def _multiply_adds(model: Model, parameter: Parameter, work: Work) -> float:
    """Of one weight over a sequence, without the vocabulary head."""
    if parameter.kind != "kernel" or parameter.path.startswith("head/"):
        return 0.0
    if parameter.path.startswith(("pooler/", "pair_head/")):
        return float(parameter.size) if work.pairs else 0.0
    crosses = parameter.path.endswith(("cross_attention/key", "cross_attention/value"))
    read = crosses or parameter.path.startswith("encoder/")
    return parameter.size * _share(model, parameter) * (work.encoder_positions if read else work.positions)


def attention(model: Model, work: Work) -> tuple[float, float]:
    """Multiply-adds of scores and weighted values over a sequence: in full, and of what is seen."""
    settings = model.settings
    length, memory = work.positions, work.encoder_positions
    if settings.architecture == "lstm":
        return 0.0, 0.0
    if settings.architecture == "mlp":  # one product, whose mask needs no gradient: two thirds of 6 FLOPs
        pairs = visible_pairs(work, length, None)
        return (2 / 3) * settings.embed_dim * length**2, (2 / 3) * settings.embed_dim * pairs
    width = 2.0 * settings.num_heads * settings.head_width
    period = settings.attention_period
    full = seen = 0.0
    for layer in range(settings.num_layers):
        window = settings.attention_window if period[layer % len(period)] == "l" else None
        full += width * (length**2 + length * memory)
        seen += width * (visible_pairs(work, length, window) + length * memory)
    both = dataclasses.replace(work, pattern=Pattern(causal=False), documents=None)
    for layer in range(settings.encoder_layers):
        window = settings.attention_window if period[layer % len(period)] == "l" else None
        full += width * memory**2
        seen += width * visible_pairs(both, memory, window)
    return full, seen


def visible_pairs(work: Work, length: int, window: int | None) -> float:
    """How many pairs of query and key a sequence of documents lets attention see."""
    pattern = work.pattern.within(window)
    return sum(_pairs(pattern, work.prefix, size) for size in work.documents or (length,))


def _pairs(pattern: Pattern, prefix: float, length: int) -> float:
    """Of one document: a row of the mask sees at most `window` keys on each side that is open to it."""
    reach = length - 1 if pattern.window is None else min(pattern.window, length - 1)
    before = reach * (reach + 1) // 2 + (length - 1 - reach) * reach  # keys strictly before their query
    if not pattern.causal:
        return length + 2.0 * before
    if not pattern.prefix:
        return float(length + before)
    known = math.floor(prefix * length)
    return length + before + max(known, 0) * max(known - 1, 0) / 2.0

"""The implementations that a run uses, chosen once by platform, mesh or name; each choice has its reason."""

import dataclasses

from research.errors import UserError
from research.kernels import attention, embedding, experts, grouped_experts, products, vocabulary
from research.kernels.embedding import ShardedEmbedding
from research.kernels.experts import Experts
from research.kernels.fused import Fused
from research.kernels.layout import Layout
from research.kernels.sharded_attention import ShardedAttention
from research.kernels.sharded_experts import ShardedCapacity, ShardedExperts
from research.kernels.sharded_vocabulary import ShardedVocabulary
from research.kernels.splash import Splash
from research.settings import ParallelSettings

Pairs = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Kernels:
    """Implementations behind one interface each.

    Attributes:
      attention: scaled dot-product attention.
      vocabulary_loss: the vocabulary head with its loss.
      product: activations times a matrix.
      activated: the same behind a non-linearity.
      experts: a mixture of experts that drops nothing.
      capacity: a mixture whose experts have a number of places; takes `places` besides.
      embedding: rows of a table by id.
      names: by what name each was chosen.
      reasons: why.
    """

    attention: attention.Attention
    vocabulary_loss: vocabulary.VocabularyLoss
    product: products.Product
    activated: products.Activated
    experts: Experts
    capacity: Experts
    embedding: embedding.Embedding
    names: Pairs
    reasons: Pairs = ()


def _pairs(**values: str) -> Pairs:
    return tuple(values.items())


REFERENCE = Kernels(
    attention.reference,
    vocabulary.reference,
    products.reference,
    products.activated,
    experts.reference,
    experts.capacity,
    embedding.reference,
    _pairs(
        attention="reference",
        vocabulary_loss="reference",
        product="reference",
        activated="activated",
        experts="reference",
    ),
    _pairs(all="parallel.kernels=reference: the formulas as they stand, split as the compiler likes"),
)

# One CPU device: XLA's CPU backend copies and materialises where these do not.
CPU = Kernels(
    attention.blocked,
    vocabulary.chunked,
    products.untransposed,
    products.recomputed,
    grouped_experts.in_blocks,
    experts.capacity,
    embedding.reference,
    _pairs(
        attention="blocked",
        vocabulary_loss="chunked",
        product="untransposed",
        activated="recomputed",
        experts="in_blocks",
    ),
    _pairs(
        attention="a CPU gains by leaving out blocks that are hidden",
        vocabulary_loss="one pass over chunks of tokens never holds all logits",
        product="weight gradients without a transposed copy",
        activated="the MLP's inner values are cheaper to compute again than to write and read",
        experts="one CPU device: each expert computes its own tokens, block by block",
    ),
)

# What each platform's attention is, and why.
_ATTENTION = {
    "tpu": ("splash", "a TPU's kernel leaves out hidden blocks and never writes logits to memory"),
    "gpu": ("cudnn", "a GPU's fused kernel never writes logits to memory"),
    "cpu": ("blocked", "a CPU gains by leaving out blocks that are hidden"),
}
_NEEDS = {"splash": "tpu", "cudnn": "gpu"}


def alone(platform: str) -> Kernels:
    """The kernels of one device without a mesh (`cpu`, `gpu`, `tpu`): a CPU's own, the references elsewhere."""
    return CPU if platform == "cpu" else REFERENCE


def choose(settings: ParallelSettings, layout: Layout) -> Kernels:
    """The kernels that the settings name, or that platform and mesh decide.

    Raises:
      UserError: the platform has no such kernel, or two keys contradict each other.
    """
    name, why = _attention_name(settings, layout)
    if settings.kernels == "reference":
        if name != "reference":
            raise UserError(
                f"parallel.attention={name}, but parallel.kernels=reference turns all kernels off: set one to auto"
            )
        return REFERENCE
    single, platform = layout.mesh.size == 1, _platform(layout)
    around, how = _around(settings, layout)
    kernels = CPU if single and platform == "cpu" else _accelerated(layout, platform)
    names, reasons = dict(kernels.names) | {"attention": name}, dict(kernels.reasons) | {"attention": why}
    if layout.size(layout.sequence) > 1 and name != "reference":
        names["sequence_attention"], reasons["sequence_attention"] = ("ring" if around else "gather"), how
    return dataclasses.replace(
        kernels,
        attention=_attention(name, layout, around),
        names=tuple(names.items()),
        reasons=tuple(reasons.items()),
    )


def _platform(layout: Layout) -> str:
    return {"cuda": "gpu", "rocm": "gpu"}.get(layout.platform, layout.platform)


def _attention_name(settings: ParallelSettings, layout: Layout) -> tuple[str, str]:
    name, platform = settings.attention, _platform(layout)
    if name != "auto":
        if _NEEDS.get(name, platform) != platform:
            raise UserError(
                f"parallel.attention={name} runs on a {_NEEDS[name].upper()} alone, and the devices are "
                f"{platform.upper()}s: set it to auto or blocked"
            )
        return name, f"parallel.attention={name}"
    if settings.kernels == "reference":
        return "reference", "parallel.kernels=reference"
    return _ATTENTION.get(platform, ("blocked", f"no kernel is known for {platform}"))


def _around(settings: ParallelSettings, layout: Layout) -> tuple[bool, str]:
    """Whether keys travel around the devices of a sequence, and why they do or do not."""
    if settings.sequence_attention != "ring":
        asked = settings.sequence_attention == "gather"
        reason = "keys and values of one layer fit, and every kernel is exact on them"
        return False, "parallel.sequence_attention=gather" if asked else reason
    if settings.attention not in ("auto", "reference", "blocked"):
        raise UserError(
            f"parallel.sequence_attention=ring attends by itself, not by parallel.attention={settings.attention}: set "
            "one of them to auto"
        )
    if layout.size(layout.sequence) == 1:
        raise UserError(
            "parallel.sequence_attention=ring, but parallel.mesh.sequence is 1: set it to the devices of a sequence"
        )
    return True, "parallel.sequence_attention=ring: no device holds all keys"


def _attention(name: str, layout: Layout, around: bool) -> attention.Attention:
    if around:
        return ShardedAttention(attention.blocked, layout, around=True)
    single = layout.mesh.size == 1
    if name == "splash":
        return Splash(None if single else layout)
    inner: attention.Attention = attention.BACKENDS[name] if name in attention.BACKENDS else Fused(name)
    return inner if single or name == "reference" else ShardedAttention(inner, layout)


def _accelerated(layout: Layout, platform: str) -> Kernels:
    """What accelerators and meshes of CPUs have in common."""
    name = {"cpu": "in_blocks", "tpu": "in_tiles"}.get(platform, "in_groups")
    inner = getattr(grouped_experts, name)
    single = layout.mesh.size == 1
    return Kernels(
        attention.blocked,
        ShardedVocabulary(layout),
        products.reference,
        products.activated,
        inner if single else ShardedExperts(inner, layout),
        experts.capacity if single else ShardedCapacity(layout),
        embedding.reference if single else ShardedEmbedding(layout),
        _pairs(
            attention="blocked",
            vocabulary_loss="sharded",
            product="reference",
            experts=name,
        ),
        _pairs(
            vocabulary_loss="one pass over chunks of a device's tokens never holds all logits",
            product="the compiler differentiates products well, and knows how to split them",
            experts="each expert computes its own tokens, those of other devices' experts with theirs",
        ),
    )

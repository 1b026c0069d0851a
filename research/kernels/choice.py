"""The implementations that a run uses, chosen once by platform or by name."""

import dataclasses

from research.kernels import attention, experts, products, vocabulary


@dataclasses.dataclass(frozen=True)
class Kernels:
    """Implementations behind one interface each, and the names they were chosen by."""

    attention: attention.Attention
    vocabulary_loss: vocabulary.VocabularyLoss
    product: products.Product
    experts: experts.Experts
    names: tuple[tuple[str, str], ...]


REFERENCE = Kernels(
    attention.reference,
    vocabulary.reference,
    products.reference,
    experts.reference,
    (("attention", "reference"), ("vocabulary_loss", "reference"), ("product", "reference"), ("experts", "reference")),
)

# One CPU device: XLA's CPU backend copies and materialises where these do not.
CPU = Kernels(
    attention.blocked,
    vocabulary.chunked,
    products.untransposed,
    experts.reference,
    (("attention", "blocked"), ("vocabulary_loss", "chunked"), ("product", "untransposed"), ("experts", "reference")),
)


def choose(name: str, platform: str, num_devices: int) -> Kernels:
    """The kernels called `name`; `auto` decides by platform (`cpu`, `gpu`, `tpu`) and number of devices in the mesh."""
    if name == "auto" and platform == "cpu" and num_devices == 1:
        return CPU
    return REFERENCE

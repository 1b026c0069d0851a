"""Settings and kernels to a model."""

from research.kernels import Kernels
from research.models.layers import Constrain, unconstrained
from research.models.transformer import Transformer
from research.settings import Settings


def build(
    settings: Settings, kernels: Kernels, constrain: Constrain = unconstrained, platform: str = "cpu"
) -> Transformer:
    """The model of the settings; `platform` decides between scan and unrolled layers where the settings say `auto`.

    XLA's CPU backend optimises each of a few unrolled layers better than a loop's body; elsewhere, and for deep stacks,
    compile time that does not grow with depth is worth more.
    """
    mode = settings.parallel.layers
    return Transformer(
        settings=settings.model,
        vocab_size=settings.tokenizer.vocab_size,
        max_positions=settings.data.sequence_length,
        kernels=kernels,
        constrain=constrain,
        scan=mode == "scan" or (mode == "auto" and (platform != "cpu" or settings.model.num_layers > 8)),
        remat=settings.parallel.remat,
    )

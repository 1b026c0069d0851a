"""Settings and kernels to a model."""

from research.kernels import Kernels, quantised
from research.models.averaging import Averaging
from research.models.encoder_decoder import EncoderDecoder
from research.models.layers import Constrain, unconstrained
from research.models.lstm import Lstm
from research.models.model import Model
from research.models.transformer import Transformer
from research.settings import Settings

ARCHITECTURES: dict[str, type[Model]] = {
    "transformer": Transformer,
    "encoder_decoder": EncoderDecoder,
    "lstm": Lstm,
    "mlp": Averaging,
}


def build(settings: Settings, kernels: Kernels, constrain: Constrain = unconstrained, platform: str = "cpu") -> Model:
    """The model of the settings; `platform` decides between scan and unrolled layers where the settings say `auto`.

    XLA's CPU backend optimises each of a few unrolled layers better than a loop's body; elsewhere, and for deep stacks,
    compile time that does not grow with depth is worth more.
    """
    mode = settings.parallel.layers
    loop = mode == "scan" or (mode == "auto" and (platform != "cpu" or settings.model.num_layers > 8))
    return ARCHITECTURES[settings.model.architecture](
        settings=settings.model,
        vocab_size=settings.vocab_size,
        max_positions=settings.model.max_positions or settings.data.sequence_length,
        kernels=quantised.kernels(kernels, settings.model.quantisation),
        constrain=constrain,
        scan=settings.parallel.scan_unroll if loop else 0,
        remat=settings.parallel.remat,
    )

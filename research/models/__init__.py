"""Models: pure functions over nested dictionaries of weights."""

from research.models.build import build
from research.models.encoder_decoder import EncoderDecoder
from research.models.model import Model, Outputs
from research.models.transformer import Cache, Transformer

__all__ = ["Cache", "EncoderDecoder", "Model", "Outputs", "Transformer", "build"]

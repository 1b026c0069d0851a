"""Models: pure functions over nested dictionaries of weights."""

from research.models.build import build
from research.models.transformer import Cache, Outputs, Transformer

__all__ = ["Cache", "Outputs", "Transformer", "build"]

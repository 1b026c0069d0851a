"""What depends on the platform, each with a plain reference; chosen once and passed in."""

from research.kernels.choice import Kernels, choose
from research.kernels.patterns import Pattern
from research.kernels.vocabulary import Losses

__all__ = ["Kernels", "Losses", "Pattern", "choose"]

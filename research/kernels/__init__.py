"""What depends on the platform, each with a plain reference; chosen once and passed in."""

from research.kernels.attention import KEPT as ATTENTION
from research.kernels.choice import Kernels, alone, choose
from research.kernels.layout import Layout
from research.kernels.patterns import Pattern
from research.kernels.vocabulary import Losses

__all__ = ["ATTENTION", "Kernels", "Layout", "Losses", "Pattern", "alone", "choose"]

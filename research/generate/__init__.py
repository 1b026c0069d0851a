"""Text from a trained model: decoding with a cache, and filling of masks."""

from research.generate.decode import generate
from research.generate.fill import Candidate, fill_masks
from research.generate.sampling import Sampling

__all__ = ["Candidate", "Sampling", "fill_masks", "generate"]

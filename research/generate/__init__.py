"""Text from a trained model: decoding with a cache, and filling of masks."""

from research.generate.decode import generate
from research.generate.fill import Candidate, fill_masks
from research.generate.prompts import GAP, Prompt, fills_gaps, prompt_of, readable, writer
from research.generate.sampling import Sampling

__all__ = [
    "GAP",
    "Candidate",
    "Prompt",
    "Sampling",
    "fill_masks",
    "fills_gaps",
    "generate",
    "prompt_of",
    "readable",
    "writer",
]

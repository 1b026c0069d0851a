"""Settings and vocabulary to an objective."""

from research.objectives.causal import Causal
from research.objectives.masked import Masked
from research.objectives.terms import Objective
from research.settings import ObjectiveSettings
from research.vocabulary import Vocabulary


def build(settings: ObjectiveSettings, vocabulary: Vocabulary) -> Objective:
    """The objective of the settings."""
    if settings.name == "causal":
        return Causal(vocabulary)
    assert settings.name == "masked", settings.name
    return Masked(vocabulary, settings.mask_rate, settings.mask_token_rate, settings.random_token_rate)

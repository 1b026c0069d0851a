"""The model of imported settings, on this machine's platform."""

import jax

from research.kernels import alone
from research.models import Model, build
from research.settings import ModelSettings, ObjectiveSettings, Settings


def validated(model: ModelSettings) -> Settings:
    """The settings with this model and an objective that it can have.

    Raises:
      UserError: values of a wrong type or out of bounds, or keys that contradict each other.
    """
    objective = "span_corruption" if model.architecture == "encoder_decoder" else "causal"
    return Settings(model=model, objective=ObjectiveSettings(name=objective))


def core(model: ModelSettings) -> Model:
    """The model of settings that name their vocabulary and their longest sequence; nothing is allocated."""
    assert model.vocab_size is not None and model.max_positions is not None
    platform = jax.default_backend()
    return build(validated(model), alone(platform), platform=platform)

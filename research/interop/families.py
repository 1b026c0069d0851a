"""All families, and which of them a model of ours belongs to."""

from collections.abc import Mapping
from types import MappingProxyType

from research.errors import UserError
from research.interop import decoders, encoder_decoders, encoders
from research.interop.family import Family, own_parts
from research.settings import ModelSettings
from research.settings.objective import MASKED

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.model_type: family
        for family in (
            decoders.GPT2,
            decoders.LLAMA,
            decoders.MISTRAL,
            decoders.QWEN2,
            decoders.QWEN3,
            decoders.GEMMA,
            decoders.GEMMA2,
            decoders.MIXTRAL,
            encoders.BERT,
            encoders.ROBERTA,
            encoders.MODERNBERT,
            encoder_decoders.T5,
            encoder_decoders.MARIAN,
        )
    }
)


def family_of(model: ModelSettings, objective: str) -> Family:
    """The family whose models compute what this one does.

    Raises:
      UserError: there is none; the sentence names a key without a counterpart in the nearest.
    """
    if model.architecture == "encoder_decoder":
        kinds = {"span_corruption", "seq2seq"}
    else:
        kinds = {"masked"} if objective in MASKED else {"causal"}
    found: dict[str, list[str]] = {}
    for family in FAMILIES.values():
        if family.objective in kinds:
            found[family.model_type] = family.differences(model, own_parts(family, model, headless=False))
            if not found[family.model_type]:
                return family
    nearest = min(found, key=lambda name: len(found[name]))
    raise UserError(
        f"no model of transformers for objective.name={objective} is this one: {found[nearest][0]} has no counterpart "
        f"in {nearest}, which comes nearest; train a model with a preset of research/settings/families.py to export it"
    )

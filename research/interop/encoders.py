"""BERT, RoBERTa and ModernBERT: families of models that fill in what was masked."""

from collections.abc import Mapping
from typing import Any

from research.interop import names
from research.interop.decoders import SHAPE, with_and_without_head
from research.interop.family import HEAD, PAIRS, POOLER, Family
from research.interop.traits import (
    Config,
    Trait,
    activation,
    alike,
    constant,
    head_activation,
    only,
    rotary,
    same,
    scaling,
    training,
    windows,
)
from research.settings import ModelSettings

_BERT = (
    *SHAPE,
    same("norm_epsilon", "layer_norm_eps"),
    same("token_types", "type_vocab_size"),
    activation("hidden_act", gated=False),
    only("is_decoder", False),
    only("add_cross_attention", False),
    only("position_embedding_type", "absolute", None),
    training(hidden_dropout_prob="dropout"),
    constant(attention_probs_dropout_prob=0.0),
)
_BERT_DEFAULTS: Mapping[str, Any] = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "tie_word_embeddings": True,
    "is_decoder": False,
    "add_cross_attention": False,
    "position_embedding_type": "absolute",
    "pad_token_id": 0,
}
# Where the head has a table of its own, it has two biases, and which of them counts depends on the version.
_TIED = only("tie_word_embeddings", True)
_POSITION_IDS = r"embeddings\.position_ids$"

BERT = Family(
    model_type="bert",
    preset="bert",
    objective="masked",
    architectures={
        "BertForMaskedLM": frozenset({HEAD}),
        "BertForPreTraining": frozenset({HEAD, PAIRS}),
        "BertForNextSentencePrediction": frozenset({PAIRS}),
        "BertModel": frozenset(),
    },
    prefix="bert.",
    body=names.BERT,
    head=names.BERT_HEAD,
    traits=_BERT,
    head_traits=(_TIED,),
    defaults=_BERT_DEFAULTS,
    parts={
        HEAD: "cls.predictions.transform.dense.weight",
        POOLER: "pooler.dense.weight",
        PAIRS: "cls.seq_relationship.weight",
    },
    copies={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    ignored=_POSITION_IDS,
)


def _roberta_read(config: Config) -> dict[str, Any]:
    """RoBERTa's positions begin behind the row of the padding id, and its table has as many more rows."""
    offset = int(config["pad_token_id"]) + 1
    return {"position_offset": offset, "max_positions": config["max_position_embeddings"] - offset}


def _roberta_write(settings: ModelSettings) -> dict[str, Any]:
    offset = settings.position_offset
    return {"pad_token_id": offset - 1, "max_position_embeddings": (settings.max_positions or 0) + offset}


ROBERTA = Family(
    model_type="roberta",
    preset="roberta",
    objective="masked",
    architectures=with_and_without_head("Roberta", "ForMaskedLM"),
    prefix="roberta.",
    body=names.BERT,
    head=names.ROBERTA_HEAD,
    traits=(*_BERT, Trait(_roberta_read, _roberta_write)),
    head_traits=(_TIED, only("hidden_act", "gelu")),  # the head has the exact GELU whatever the body has
    defaults={**_BERT_DEFAULTS, "pad_token_id": 1},
    parts={HEAD: "lm_head.dense.weight", POOLER: "pooler.dense.weight"},
    copies={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    ignored=_POSITION_IDS,
)

# --- ModernBERT -------------------------------------------------------------------------------------------------------

_OLDER = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}


def _rotary_read(config: Config) -> dict[str, Any]:
    """Global and local layers have rotary parameters of their own."""
    nested = config.values.get("rope_parameters") or {}
    found = {}
    for kind, key in _OLDER.items():
        own = nested.get(kind) or {}
        found[kind] = scaling(config, own, float(own.get("rope_theta") or config[key]))
    if found["sliding_attention"]["rotary_scaling"] != "none":
        raise config.refused("rope_parameters", "local layers that are not scaled", nested["sliding_attention"])
    return found["full_attention"] | {"rotary_base_local": found["sliding_attention"]["rotary_base"]}


def _rotary_write(settings: ModelSettings) -> dict[str, Any]:
    whole = rotary().write(settings)["rope_parameters"]
    base = settings.rotary_base_local or settings.rotary_base
    local = whole | {"rope_theta": base} if settings.rotary_base_local is None else {"rope_theta": base}
    nested = {"full_attention": whole, "sliding_attention": {"rope_type": "default"} | local}
    return {"rope_parameters": nested, "global_rope_theta": settings.rotary_base, "local_rope_theta": base}


def _every_third(config: Config, count: int) -> str:
    every = config["global_attn_every_n_layers"]
    return "".join("l" if layer % every else "g" for layer in range(count))


MODERNBERT = Family(
    model_type="modernbert",
    preset="modernbert",
    objective="masked",
    architectures=with_and_without_head("ModernBert", "ForMaskedLM"),
    prefix="model.",
    body=names.MODERNBERT,
    head=names.MODERNBERT_HEAD,
    traits=(
        *SHAPE,
        same("norm_epsilon", "norm_eps"),
        same("norm_bias", "norm_bias"),
        same("head_bias", "decoder_bias"),
        activation("hidden_activation", gated=True),
        alike("attention_bias", "mlp_bias", "use_bias"),
        windows(_every_third, "local_attention", lambda width: width // 2, lambda reach: 2 * reach),
        Trait(_rotary_read, _rotary_write),
        training(embedding_dropout="dropout", mlp_dropout="dropout"),
        constant(attention_dropout=0.0, classifier_dropout=0.0),
    ),
    head_traits=(
        alike("classifier_bias", "mlp_bias", "use_bias"),
        head_activation("classifier_activation", "hidden_activation"),
    ),
    defaults={
        "hidden_activation": "gelu",
        "max_position_embeddings": 8192,
        "norm_eps": 1e-5,
        "norm_bias": False,
        "decoder_bias": True,
        "attention_bias": False,
        "mlp_bias": False,
        "classifier_bias": False,
        "classifier_activation": "gelu",
        "local_attention": 128,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160_000.0,
        "local_rope_theta": 10_000.0,
        "tie_word_embeddings": True,
    },
    parts={HEAD: "head.dense.weight"},
    copies={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
)

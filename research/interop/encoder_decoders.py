"""T5 and Marian, which is the original Transformer: families with an encoder and a decoder."""

from typing import Any

from research.interop import names
from research.interop.decoders import COMMON
from research.interop.family import HEAD, HEAD_BIAS, UNTIED, Family
from research.interop.traits import Config, Trait, activation, constant, only, same, training
from research.settings import ModelSettings

# Configs of T5 say nothing of a longest sequence; this is what it was trained on (Raffel et al. 2020, section 3.1.2).
_T5_POSITIONS = 512


def _t5_read(config: Config) -> dict[str, Any]:
    """`feed_forward_proj` names the function and whether it is gated; hidden states are scaled where v1.0 says so."""
    first, _, function = str(config["feed_forward_proj"]).rpartition("-")
    if first not in {"", "gated"}:
        raise config.refused("feed_forward_proj", "relu, gelu, gated-gelu, gated-silu")
    if (first, function) == ("gated", "gelu"):
        function = "gelu_new"
    own = activation("feed_forward_proj", gated=first == "gated")
    scaled = config.values.get("scale_decoder_outputs", config["tie_word_embeddings"])
    return {
        **own.read(Config(config.where, {"feed_forward_proj": function}, {})),
        "head_scale": bool(scaled),
        "num_layers": config["num_decoder_layers"] or config["num_layers"],
        "max_positions": config["n_positions"],
    }


def _t5_write(settings: ModelSettings) -> dict[str, Any]:
    function = settings.nonlinearity
    if settings.gated:
        function = "gated-" + {"gelu": "gelu", "gelu_exact": "gelu_python"}.get(function, function)
    else:
        function = {"gelu": "gelu_new", "gelu_exact": "gelu"}.get(function, function)
    return {
        "feed_forward_proj": function,
        "scale_decoder_outputs": settings.head_scale,
        "tie_word_embeddings": settings.tied_embeddings,
        "num_decoder_layers": settings.num_layers,
    }


T5 = Family(
    model_type="t5",
    preset="t5",
    objective="span_corruption",
    architectures={"T5ForConditionalGeneration": frozenset({HEAD})},
    prefix="",
    body=names.T5,
    gated_body=names.T5_GATED,
    head=names.CAUSAL_HEAD,
    traits=(
        *COMMON,
        same("num_encoder_layers", "num_layers"),
        same("embed_dim", "d_model"),
        same("head_dim", "d_kv"),
        same("num_heads", "num_heads"),
        same("mlp_dim", "d_ff"),
        same("norm_epsilon", "layer_norm_epsilon"),
        same("relative_buckets", "relative_attention_num_buckets"),
        same("relative_max_distance", "relative_attention_max_distance"),
        Trait(_t5_read, _t5_write),
        training(dropout_rate="dropout"),
        constant(is_encoder_decoder=True),
    ),
    defaults={
        "d_kv": 64,
        "feed_forward_proj": "relu",
        "layer_norm_epsilon": 1e-6,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "num_decoder_layers": None,
        "tie_word_embeddings": True,
        "n_positions": _T5_POSITIONS,
    },
    parts={UNTIED: "lm_head.weight"},  # transformers ties the head unless the file has one of its own
    copies={
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    },
    ignored=r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",
)


def _both(ours: str, encoder: str, decoder: str) -> Trait:
    """A number that encoder and decoder have in common."""

    def read(config: Config) -> dict[str, Any]:
        if config[encoder] != config[decoder]:
            raise config.refused(decoder, f"{decoder} equal to {encoder}={config[encoder]}")
        return {ours: config[encoder]}

    def write(settings: ModelSettings) -> dict[str, Any]:
        return {encoder: getattr(settings, ours), decoder: getattr(settings, ours)}

    return Trait(read, write)


def _one_vocabulary(config: Config) -> dict[str, Any]:
    if config["decoder_vocab_size"] not in {None, config["vocab_size"]}:
        raise config.refused("decoder_vocab_size", f"decoder_vocab_size equal to vocab_size={config['vocab_size']}")
    return {}


MARIAN = Family(
    model_type="marian",
    preset="transformer",
    objective="seq2seq",
    architectures={"MarianMTModel": frozenset({HEAD}), "MarianModel": frozenset()},
    prefix="model.",
    body=names.MARIAN,
    head=names.MARIAN_HEAD,
    traits=(
        *COMMON,
        same("num_encoder_layers", "encoder_layers"),
        same("num_layers", "decoder_layers"),
        same("embed_dim", "d_model"),
        _both("num_heads", "encoder_attention_heads", "decoder_attention_heads"),
        _both("mlp_dim", "encoder_ffn_dim", "decoder_ffn_dim"),
        same("embedding_scale", "scale_embedding"),
        same("max_positions", "max_position_embeddings"),
        same("tied_embeddings", "tie_word_embeddings"),
        activation("activation_function", gated=False),
        only("share_encoder_decoder_embeddings", True),
        Trait(_one_vocabulary, lambda settings: {"decoder_vocab_size": settings.vocab_size}),
        training(dropout="dropout", init_std="embedding_std"),
        constant(attention_dropout=0.0, activation_dropout=0.0, is_encoder_decoder=True),
    ),
    defaults={
        "decoder_vocab_size": None,
        "activation_function": "gelu",
        "scale_embedding": False,
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
        "max_position_embeddings": 1024,
    },
    parts={HEAD_BIAS: "final_logits_bias"},
    copies={
        "lm_head.weight": "model.shared.weight",
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
    },
    ignored=r"embed_positions\.weight$",
)

"""GPT-2, Llama and its relatives: families of models that continue text."""

from collections.abc import Mapping
from typing import Any

from research.interop import names
from research.interop.family import HEAD, Family
from research.interop.names import Rows
from research.interop.traits import (
    Config,
    Trait,
    absent,
    activation,
    alike,
    constant,
    only,
    rotary,
    same,
    training,
    windows,
)
from research.settings import ModelSettings

COMMON = (
    same("vocab_size", "vocab_size"),
    absent("quantization_config"),
    constant(use_cache=True),
)
SHAPE = (
    *COMMON,
    same("num_layers", "num_hidden_layers"),
    same("embed_dim", "hidden_size"),
    same("num_heads", "num_attention_heads"),
    same("mlp_dim", "intermediate_size"),
    same("max_positions", "max_position_embeddings"),
    same("tied_embeddings", "tie_word_embeddings"),
    training(initializer_range="embedding_std"),
)


def with_and_without_head(name: str, head: str) -> dict[str, frozenset[str]]:
    """The two usual architectures."""
    return {f"{name}{head}": frozenset({HEAD}), f"{name}Model": frozenset()}


GPT2 = Family(
    model_type="gpt2",
    preset="gpt2",
    objective="causal",
    architectures=with_and_without_head("GPT2", "LMHeadModel"),
    prefix="transformer.",
    body=names.GPT2,
    head=names.CAUSAL_HEAD,
    traits=(
        *COMMON,
        same("num_layers", "n_layer"),
        same("embed_dim", "n_embd"),
        same("num_heads", "n_head"),
        same("mlp_dim", "n_inner"),
        same("max_positions", "n_positions"),
        same("norm_epsilon", "layer_norm_epsilon"),
        same("tied_embeddings", "tie_word_embeddings"),
        activation("activation_function", gated=False),
        only("scale_attn_weights", True),
        only("scale_attn_by_inverse_layer_idx", False),
        only("add_cross_attention", False),
        training(resid_pdrop="dropout", embd_pdrop="dropout", initializer_range="embedding_std"),
        constant(attn_pdrop=0.0),
    ),
    defaults={
        "n_inner": None,
        "n_positions": 1024,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    copies={"lm_head.weight": "transformer.wte.weight"},
    ignored=r"\.attn\.(masked_)?bias$",
)

# --- Llama and its relatives ------------------------------------------------------------------------------------------

_LLAMA = (
    *SHAPE,
    same("num_kv_heads", "num_key_value_heads"),
    same("head_dim", "head_dim"),
    same("norm_epsilon", "rms_norm_eps"),
    rotary(),
    constant(attention_dropout=0.0),
)
_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
}
_SILU = activation("hidden_act", gated=True, tanh="gelu_pytorch_tanh")


def _decoder(
    model_type: str, name: str, traits: tuple[Trait, ...], body: Rows = names.LLAMA, **defaults: Any
) -> Family:
    return Family(
        model_type=model_type,
        preset=model_type,
        objective="causal",
        architectures=with_and_without_head(name, "ForCausalLM"),
        prefix="model.",
        body=body,
        head=names.CAUSAL_HEAD,
        traits=(*_LLAMA, *traits),
        defaults={**_DEFAULTS, **defaults},
        copies={"lm_head.weight": "model.embed_tokens.weight"},
    )


def _everywhere(config: Config, count: int) -> str:
    return ("g" if config["sliding_window"] is None else "l") * count


def _late(config: Config, count: int) -> str:
    """Qwen: the layers from `max_window_layers` on are local, where that is asked for."""
    first = config["max_window_layers"] if config["use_sliding_window"] else count
    return "g" * min(first, count) + "l" * max(0, count - first)


def _in_turn(_: Config, count: int) -> str:
    return ("lg" * count)[:count]


def _qwen_keys(settings: ModelSettings) -> dict[str, Any]:
    return {"use_sliding_window": settings.attention_window is not None, "max_window_layers": settings.num_layers}


LLAMA = _decoder(
    "llama", "Llama", (_SILU, alike("attention_bias", "mlp_bias", "use_bias")), max_position_embeddings=2048
)
_ONE_WINDOW = windows(_everywhere, layer_types=False)
MISTRAL = _decoder(
    "mistral",
    "Mistral",
    (_SILU, _ONE_WINDOW),
    num_key_value_heads=8,
    sliding_window=4096,
    max_position_embeddings=131_072,
)
_QWEN: Mapping[str, Any] = {
    "use_sliding_window": False,
    "max_window_layers": 28,
    "sliding_window": 4096,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
}
_QWEN_WINDOWS = windows(_late, extra=_qwen_keys)
QWEN2 = _decoder("qwen2", "Qwen2", (_SILU, _QWEN_WINDOWS), **_QWEN)
QWEN3 = _decoder("qwen3", "Qwen3", (_SILU, only("attention_bias", False), _QWEN_WINDOWS), **{**_QWEN, "head_dim": 128})
MIXTRAL = _decoder(
    "mixtral",
    "Mixtral",
    (
        _SILU,
        _ONE_WINDOW,
        same("num_experts", "num_local_experts"),
        same("experts_per_token", "num_experts_per_tok"),
        same("balance_loss", "router_aux_loss_coef"),
    ),
    names.MIXTRAL,
    num_key_value_heads=8,
    max_position_embeddings=131_072,
    rms_norm_eps=1e-5,
    rope_theta=1e6,
    num_local_experts=8,
    num_experts_per_tok=2,
    router_aux_loss_coef=0.001,
)

# --- Gemma ------------------------------------------------------------------------------------------------------------

_GEMMA_ACTIVATION = activation("hidden_activation", gated=True, tanh="gelu_pytorch_tanh")


def _gemma_read(config: Config) -> dict[str, Any]:
    """Gemma's first configs said `gelu` and meant the approximation; `hidden_activation` came to say it better."""
    said = config.values.get("hidden_activation") or config["hidden_act"]
    meant = "gelu_pytorch_tanh" if said == "gelu" else said
    return _GEMMA_ACTIVATION.read(Config(config.where, {"hidden_activation": meant}, {}))


def _gemma_write(settings: ModelSettings) -> dict[str, Any]:
    said = _GEMMA_ACTIVATION.write(settings)["hidden_activation"]
    return {"hidden_act": said, "hidden_activation": said}


def _scale_read(config: Config) -> dict[str, Any]:
    return {"attention_scale": float(config["query_pre_attn_scalar"]) ** -0.5}


def _scale_write(settings: ModelSettings) -> dict[str, Any]:
    assert settings.attention_scale is not None
    return {"query_pre_attn_scalar": round(settings.attention_scale**-2.0)}


_GEMMA = (
    Trait(_gemma_read, _gemma_write),
    only("attention_bias", False),
    only("use_bidirectional_attention", None, False),
)
_GEMMA_DEFAULTS: Mapping[str, Any] = {
    "hidden_act": "gelu_pytorch_tanh",
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "use_bidirectional_attention": None,
}
GEMMA = _decoder("gemma", "Gemma", _GEMMA, num_key_value_heads=16, **_GEMMA_DEFAULTS)
GEMMA2 = _decoder(
    "gemma2",
    "Gemma2",
    (
        *_GEMMA,
        windows(_in_turn),
        Trait(_scale_read, _scale_write),
        same("attention_softcap", "attn_logit_softcapping"),
        same("logit_softcap", "final_logit_softcapping"),
    ),
    names.GEMMA2,
    num_key_value_heads=4,
    sliding_window=4096,
    query_pre_attn_scalar=256,
    attn_logit_softcapping=50.0,
    final_logit_softcapping=30.0,
    **_GEMMA_DEFAULTS,
)

"""The families of published models, each a preset of the one core: what differs from the defaults of the settings.

Shapes are not here: any size can be given to any family. `configs/sizes.py` has those of the originals.
"""

from types import MappingProxyType
from typing import Any

_GPT2 = {"norm": "layernorm", "norm_epsilon": 1e-5, "position": "learned", "activation": "gelu", "use_bias": True}
_LLAMA = {"norm_epsilon": 1e-5, "tied_embeddings": False}
_BERT = {
    "norm": "layernorm",
    "norm_position": "post",
    "norm_epsilon": 1e-12,
    "embedding_norm": True,
    "position": "learned",
    "activation": "gelu_exact",
    "use_bias": True,
    "token_types": 2,
    "head_transform": True,
    "head_bias": True,
}
_GEMMA = {
    "norm_centred": True,
    "activation": "geglu",
    "embedding_scale": True,
}

FAMILIES: MappingProxyType[str, dict[str, Any]] = MappingProxyType(
    {
        # Radford et al. 2019: learned positions, LayerNorm before each sublayer, biases everywhere.
        "gpt2": _GPT2,
        # Touvron et al. 2023: RMSNorm, rotary positions, SwiGLU, no biases, a head of its own.
        "llama": _LLAMA,
        # Jiang et al. 2023: Llama with a sliding window in every layer (4096 places, itself included) and grouped keys.
        "mistral": _LLAMA | {"attention_period": "l", "attention_window": 4095},
        # Yang et al. 2024 (Qwen2): Llama with biases of queries, keys and values.
        "qwen2": _LLAMA | {"norm_epsilon": 1e-6, "qkv_bias": True, "rotary_base": 1e6},
        # Yang et al. 2025 (Qwen3): no biases, but normalised queries and keys.
        "qwen3": _LLAMA | {"norm_epsilon": 1e-6, "qk_norm": True, "rotary_base": 1e6},
        # Gemma Team 2024: GeGLU, scaled embeddings, norms that multiply by one plus their weight.
        "gemma": _GEMMA,
        # Gemma Team 2024 (Gemma 2): norms before and after, local and global layers in turn, bent logits.
        "gemma2": _GEMMA
        | {
            "norm_position": "both",
            "attention_period": "lg",
            "attention_window": 4095,
            "attention_softcap": 50.0,
            "logit_softcap": 30.0,
        },
        # Jiang et al. 2024: eight experts, two a token, in the place of each MLP.
        "mixtral": _LLAMA | {"num_experts": 8, "experts_per_token": 2, "rotary_base": 1e6, "balance_loss": 0.02},
        # Devlin et al. 2019: norms after the sums, exact GELU, token types, a head with a transform of its own.
        "bert": _BERT,
        # Liu et al. 2019: BERT whose positions begin at row 2 and with one token type.
        "roberta": _BERT | {"norm_epsilon": 1e-5, "token_types": 1, "position_offset": 2},
        # Warner et al. 2024: every third layer global, the others local, rotary, GeGLU, norms without biases.
        "modernbert": {
            "norm": "layernorm",
            "norm_epsilon": 1e-5,
            "norm_bias": False,
            "first_norm": False,
            "embedding_norm": True,
            "activation": "geglu_exact",
            "rotary_base": 160_000.0,
            "rotary_base_local": 10_000.0,
            "attention_period": "gll",
            "attention_window": 64,
            "head_transform": True,
            "head_bias": True,
        },
        # Raffel et al. 2020: relative biases, RMSNorm, ReLU, no scaling of logits, large embeddings, a tied and scaled
        # head.
        "t5": {
            "architecture": "encoder_decoder",
            "position": "relative",
            "activation": "relu",
            "attention_scale": 1.0,
            "embedding_std": 1.0,
            "head_scale": True,
        },
        # Shazeer 2020 as in T5 v1.1: GeGLU and a head of its own.
        "t5_v1_1": {
            "architecture": "encoder_decoder",
            "position": "relative",
            "activation": "geglu",
            "attention_scale": 1.0,
            "embedding_std": 1.0,
            "tied_embeddings": False,
        },
        # Vaswani et al. 2017: sinusoidal positions, ReLU, norms after the sums, one scaled embedding for all uses.
        "transformer": {
            "architecture": "encoder_decoder",
            "norm": "layernorm",
            "norm_position": "post",
            "norm_epsilon": 1e-5,
            "position": "sinusoidal",
            "activation": "relu",
            "use_bias": True,
            "embedding_scale": True,
        },
        # Zaremba et al. 2014: a stack of LSTM layers.
        "lstm": {"architecture": "lstm"},
        # Iyyer et al. 2015: an MLP over the average of what a position may see.
        "mlp": {"architecture": "mlp", "activation": "gelu", "use_bias": True, "position": "none"},
    }
)

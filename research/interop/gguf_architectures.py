"""Architectures that GGUF files name: their metadata and our settings, their tensors and our weights.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from research.errors import UserError
from research.interop.family import different
from research.interop.names import Row, Rows, attention, fused, linear, norm, table, vector
from research.interop.traits import resolved
from research.models.positions import rotary_frequencies
from research.settings import ModelSettings, Settings
from research.settings.families import FAMILIES

ROTARY_FACTORS = "rope_freqs.weight"  # what each rotary frequency is divided by: Llama 3's scaling
_HEAD = "output.weight"
# Llama 3's scaling is kept as its factors alone: all models of that family share these three numbers.
_LLAMA3 = {"rotary_low": 1.0, "rotary_high": 4.0, "rotary_original_length": 8192}
# Gemma 2 27B, which metadata tell from its smaller siblings by its depth, scales by embed_dim / num_heads.
_GEMMA2_27B_LAYERS = 46


class Architecture(NamedTuple):
    """One `general.architecture`.

    Attributes:
      name: its name, with which its keys begin.
      preset: our preset of the same model.
      rows: names and layouts of its tensors.
      interleaved: the rows of each head's queries and keys alternate between the halves that rotate together.
      raised_norms: norms are stored with the one that ours add to them.
    """

    name: str
    preset: str
    rows: Rows
    interleaved: bool = False
    raised_norms: bool = False


_DECODER: Rows = (
    table("embedding/tokens", "token_embd.weight"),
    *norm("layers/attention_norm", "blk.{layer}.attn_norm"),
    *norm("layers/mlp_norm", "blk.{layer}.ffn_norm"),
    *linear("layers/mlp/gate", "blk.{layer}.ffn_gate"),
    *linear("layers/mlp/up", "blk.{layer}.ffn_up"),
    *linear("layers/mlp/down", "blk.{layer}.ffn_down"),
    *norm("final_norm", "output_norm"),
    table("head/table", _HEAD),
)
_LLAMA: Rows = (
    *_DECODER,
    *attention("layers/attention", *(f"blk.{{layer}}.attn_{part}" for part in ("q", "k", "v", "output"))),
    vector("layers/attention/query_norm", "blk.{layer}.attn_q_norm.weight"),
    vector("layers/attention/key_norm", "blk.{layer}.attn_k_norm.weight"),
    Row("layers/experts/router", "blk.{layer}.ffn_gate_inp.weight", "X E -> E X"),
    Row("layers/experts/gate", "blk.{layer}.ffn_gate_exps.weight", "X M E -> X E M"),
    Row("layers/experts/up", "blk.{layer}.ffn_up_exps.weight", "X M E -> X E M"),
    Row("layers/experts/down", "blk.{layer}.ffn_down_exps.weight", "X E M -> X M E"),
)
_GEMMA2: Rows = (
    *_LLAMA,
    *norm("layers/attention_post_norm", "blk.{layer}.post_attention_norm"),
    *norm("layers/mlp_post_norm", "blk.{layer}.post_ffw_norm"),
)
_GPT2: Rows = (
    *_DECODER,
    table("embedding/positions", "position_embd.weight"),
    *fused("layers/attention", "blk.{layer}.attn_qkv", "(3 H D) E -> E H D", "(3 H D) -> H D"),
    Row("layers/attention/out", "blk.{layer}.attn_output.weight", "E (H D) -> H D E"),
    vector("layers/attention/out_bias", "blk.{layer}.attn_output.bias"),
)
ARCHITECTURES = {
    found.name: found
    for found in (
        Architecture("llama", "llama", _LLAMA, interleaved=True),
        Architecture("qwen2", "qwen2", _LLAMA),
        Architecture("qwen3", "qwen3", _LLAMA),
        Architecture("gemma", "gemma", _LLAMA, raised_norms=True),
        Architecture("gemma2", "gemma2", _GEMMA2, raised_norms=True),
        Architecture("gpt2", "gpt2", _GPT2),
    )
}

_SIZES = {
    "num_layers": "block_count",
    "embed_dim": "embedding_length",
    "mlp_dim": "feed_forward_length",
    "num_heads": "attention.head_count",
    "max_positions": "context_length",
}
_NUMBERS = {
    "num_kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rotary_base": "rope.freq_base",
    "attention_softcap": "attn_logit_softcapping",
    "logit_softcap": "final_logit_softcapping",
    "num_experts": "expert_count",
    "experts_per_token": "expert_used_count",
    "rotary_low": "rope.scaling.yarn_beta_slow",
    "rotary_high": "rope.scaling.yarn_beta_fast",
    "rotary_factor": "rope.scaling.factor",
    "rotary_original_length": "rope.scaling.original_context_length",
}
_EPSILON = {"rmsnorm": "attention.layer_norm_rms_epsilon", "layernorm": "attention.layer_norm_epsilon"}
_WINDOW, _SCALING = "attention.sliding_window", "rope.scaling.type"
# Keys that follow from others, and the other key; and those that say nothing of what is computed.
_REPEATED = {"attention.value_length": "head_dim", "rope.dimension_count": "head_dim"}
_FREE = {"vocab_size", "rope.scaling.finetuned", "tensor_data_layout"}


# --- reading ----------------------------------------------------------------------------------------------------------


def read_settings(
    architecture: Architecture, keys: Mapping[str, Any], tensors: Collection[str], factors: np.ndarray | None
) -> ModelSettings:
    """The settings of a file.

    Args:
      architecture: its own.
      keys: its metadata, without the architecture's name before them.
      tensors: names of its tensors.
      factors: what its rotary frequencies are divided by, where it says so.

    Raises:
      UserError: metadata that are missing, or that the core has no counterpart of; the sentence names the key.
    """
    prefix = architecture.name
    for key in _SIZES.values():
        if not isinstance(keys.get(key), int):
            raise UserError(f"{prefix}.{key}={keys.get(key)}: a GGUF must state one integer, convert the model again")
    known = {*_SIZES.values(), *_NUMBERS.values(), *_EPSILON.values(), *_REPEATED, *_FREE, _WINDOW, _SCALING}
    if unknown := sorted(keys.keys() - known):
        raise UserError(f"{prefix}.{unknown[0]}={keys[unknown[0]]} has no counterpart in Isoflop's models")

    if (experts := keys.get("expert_count")) and prefix != "llama":
        raise UserError(f"{prefix}.expert_count={experts}: of those with experts Isoflop reads llama (Mixtral)")
    preset = "mixtral" if experts else architecture.preset
    changes: dict[str, Any] = FAMILIES[preset] | {ours: keys[theirs] for ours, theirs in _SIZES.items()}
    if prefix != "gpt2":
        changes |= {"rotary_base": 10_000.0, "use_bias": "blk.0.attn_output.bias" in tensors}
    if prefix == "llama":
        changes["qkv_bias"] = "blk.0.attn_q.bias" in tensors
    for ours, theirs in {**_NUMBERS, "norm_epsilon": _EPSILON[changes.get("norm", "rmsnorm")]}.items():
        if (value := keys.get(theirs)) is not None:
            changes[ours] = _number(f"{prefix}.{theirs}", value)
    changes["tied_embeddings"] = _HEAD not in tensors
    if prefix == "gemma2" and changes["num_layers"] == _GEMMA2_27B_LAYERS:
        changes["attention_scale"] = (changes["embed_dim"] / changes["num_heads"]) ** -0.5
    changes |= _window(prefix, keys.get(_WINDOW)) | _scaling(prefix, keys.get(_SCALING, "none"), changes, factors)
    try:
        found = Settings(model=ModelSettings(**changes)).model
    except UserError as error:
        raise UserError(f"the metadata of the GGUF contradict each other: {error}") from error
    for theirs, ours in _REPEATED.items():
        if keys.get(theirs) not in {None, width := getattr(resolved(found), ours)}:
            raise UserError(f"{prefix}.{theirs}={keys[theirs]}: Isoflop's heads have one width in all, here {width}")
    return found


def _number(key: str, value: Any) -> int | float:
    """A number, where float32 is read as the decimal that was meant: 1e-5, not 0.00000999999974."""
    if isinstance(value, float):
        return float(str(np.float32(value)))
    if not isinstance(value, int):
        raise UserError(f"{key}={value}: Isoflop's models have one number for all layers")
    return value


def _window(architecture: str, width: int | None) -> dict[str, Any]:
    """Theirs is how many places a query sees, ours the farthest distance."""
    if architecture == "gemma2":
        return {"attention_window": (width or 4096) - 1}
    if not width:
        return {}
    if architecture != "llama":
        raise UserError(f"{architecture}.{_WINDOW}={width} has no counterpart in Isoflop's models")
    return {"attention_period": "l", "attention_window": width - 1}


def _scaling(architecture: str, kind: str, changes: dict[str, Any], factors: np.ndarray | None) -> dict[str, Any]:
    length, factor = changes["max_positions"], changes.get("rotary_factor", 1.0)
    if factors is not None:
        scaling = {
            "rotary_scaling": "llama3",
            "rotary_factor": _number(ROTARY_FACTORS, float(factors.max())),
            **_LLAMA3,
        }
        expected = rotary_factors(ModelSettings(**{**changes, **scaling}))
        if kind != "none" or expected.shape != factors.shape or not np.allclose(expected, factors, rtol=1e-4):
            raise UserError(
                f"{ROTARY_FACTORS} is not the scaling of Llama 3, the only one that Isoflop knows by factors"
            )
        return scaling
    if kind == "none":
        return {"rotary_scaling": "none", "rotary_factor": 1.0}
    if kind == "linear":
        return {"rotary_scaling": "linear"}
    if kind == "yarn":
        usual = {"rotary_low": 1.0, "rotary_high": 32.0, "rotary_original_length": round(length / factor)}
        return {"rotary_scaling": "yarn"} | {key: changes.get(key, value) for key, value in usual.items()}
    raise UserError(f"{architecture}.{_SCALING}={kind}: Isoflop knows none, linear and yarn")


def rotary_factors(settings: ModelSettings) -> np.ndarray:
    """What Llama 3's scaling divides each rotary frequency by, float32 `[head_dim / 2]`."""
    plain, _ = rotary_frequencies(dataclasses.replace(settings, rotary_scaling="none"), local=False)
    scaled, _ = rotary_frequencies(settings, local=False)
    return (plain / scaled).astype(np.float32)


# --- writing ----------------------------------------------------------------------------------------------------------


def write_keys(settings: ModelSettings) -> dict[str, int | float | str]:
    """The metadata of a model, without the architecture's name before them."""
    filled, default = resolved(settings), ModelSettings()
    found: dict[str, Any] = {theirs: getattr(filled, ours) for ours, theirs in _SIZES.items()}
    found |= {_NUMBERS["num_kv_heads"]: filled.kv_heads, _EPSILON[filled.norm]: filled.norm_epsilon}
    chosen = ["attention_softcap", "logit_softcap"] + (["num_experts", "experts_per_token"] * (filled.num_experts > 0))
    if filled.position == "rotary":
        chosen += ["head_dim", "rotary_base"]
        found |= {theirs: getattr(filled, ours) for theirs, ours in _REPEATED.items()}
        if filled.rotary_scaling in {"linear", "yarn"}:
            found[_SCALING] = filled.rotary_scaling
            chosen += [name for name in _NUMBERS if name.startswith("rotary_") and name != "rotary_base"]
    numbers = {name: getattr(filled, name) for name in chosen}
    found |= {_NUMBERS[name]: value for name, value in numbers.items() if value is not None}
    if filled.rotary_scaling == "linear":
        for name in ("rotary_low", "rotary_high"):
            assert getattr(filled, name) == getattr(default, name)
            del found[_NUMBERS[name]]
    if filled.attention_window is not None:
        found[_WINDOW] = filled.attention_window + 1
    return found


def architecture_of(settings: ModelSettings) -> Architecture:
    """The architecture that says all of a model.

    Raises:
      UserError: there is none; the sentence names what the nearest one has no words for.
    """
    settings = dataclasses.replace(settings, vocab_size=None)  # The embedding says it.
    keys = write_keys(settings)
    tensors = {
        _HEAD: not settings.tied_embeddings,
        "blk.0.attn_q.bias": settings.projection_bias,
        "blk.0.attn_output.bias": settings.use_bias,
    }
    names = {name for name, there in tensors.items() if there}
    factors = rotary_factors(settings) if settings.rotary_scaling == "llama3" else None
    lost: dict[str, list[str]] = {}
    for architecture in reversed(ARCHITECTURES.values()):  # Llama, which says the least, is asked last.
        try:
            lost[architecture.name] = different(settings, read_settings(architecture, keys, names, factors))
        except UserError as error:
            lost[architecture.name] = [str(error)] * len(keys)
        if not lost[architecture.name]:
            return architecture
    nearest = min(lost, key=lambda name: len(lost[name]))
    raise UserError(
        f"a GGUF cannot hold this model: {nearest}, the nearest architecture, has no {', '.join(lost[nearest])}: "
        "export it as huggingface"
    )

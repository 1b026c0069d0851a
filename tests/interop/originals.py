"""Small random models of `transformers`, one a family, and what they compute."""

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    import transformers as hf
    from transformers.utils import logging

torch.set_num_threads(1)  # the models are small, and threads that wait for one another take the cores from JAX
logging.set_verbosity_error()
logging.disable_progress_bar()

VOCAB, POSITIONS = 99, 24
_WIDE = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
}
_NO_IDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_DECODER = {**_WIDE, **_NO_IDS, "num_key_value_heads": 2}
_GPT2 = {**_NO_IDS, "vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS}
_MODERN = {
    **_WIDE,
    "num_hidden_layers": 3,
    "local_attention": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "cls_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
}
_T5 = {"vocab_size": VOCAB, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 4}
_MARIAN = {
    "vocab_size": VOCAB,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "activation_function": "relu",
    "scale_embedding": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "forced_eos_token_id": 1,
    "decoder_start_token_id": 0,
}


def _rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, "factor": 4.0, **values}}


_LLAMA3 = _rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
_YARN = _rope("yarn", beta_fast=8.0, beta_slow=1.0, original_max_position_embeddings=16)

CASES: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**_GPT2)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_DECODER, **_LLAMA3)),
    "llama-biases": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(**_DECODER, **_YARN, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    ),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**_DECODER, sliding_window=4)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**_DECODER, **_rope("linear"))),
    "qwen2-windows": lambda: hf.Qwen2ForCausalLM(
        hf.Qwen2Config(**_DECODER, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    ),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**_DECODER, head_dim=6)),
    "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**_DECODER, head_dim=6)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(**_DECODER, head_dim=6, sliding_window=4, query_pre_attn_scalar=9, attn_logit_softcapping=2.0)
    ),
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**_DECODER, num_local_experts=4)),
    "bert": lambda: hf.BertForPreTraining(hf.BertConfig(**_WIDE)),
    "bert-masked": lambda: hf.BertForMaskedLM(hf.BertConfig(**_WIDE, hidden_act="gelu_new")),
    "roberta": lambda: hf.RobertaForMaskedLM(
        hf.RobertaConfig(**{**_WIDE, "max_position_embeddings": POSITIONS + 2}, type_vocab_size=1)
    ),
    "modernbert": lambda: hf.ModernBertForMaskedLM(hf.ModernBertConfig(**_MODERN)),
    "modernbert-biases": lambda: hf.ModernBertForMaskedLM(
        hf.ModernBertConfig(
            **{**_MODERN, "num_hidden_layers": 2},
            norm_bias=True,
            attention_bias=True,
            mlp_bias=True,
            classifier_bias=True,
        )
    ),
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**_T5)),
    "t5-v1.1": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(
            **{**_T5, "num_layers": 1}, num_decoder_layers=2, feed_forward_proj="gated-gelu", tie_word_embeddings=False
        )
    ),
    "marian": lambda: hf.MarianMTModel(hf.MarianConfig(**_MARIAN)),
}
BODIES: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: hf.GPT2Model(hf.GPT2Config(**_GPT2)),
    "llama": lambda: hf.LlamaModel(hf.LlamaConfig(**_DECODER)),
    "bert": lambda: hf.BertModel(hf.BertConfig(**_WIDE)),
    "bert-without-pooler": lambda: hf.BertModel(hf.BertConfig(**_WIDE), add_pooling_layer=False),
    "modernbert": lambda: hf.ModernBertModel(hf.ModernBertConfig(**_MODERN)),
}


def stir(model: Any, seed: int = 0) -> Any:
    """Random values everywhere: no bias is zero, no scale is one, and heads that need not be tied are not."""
    generator = torch.Generator().manual_seed(seed)
    if model.config.model_type == "t5" and not model.config.scale_decoder_outputs:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight).normal_(generator=generator))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                scale = 0.3 if parameter.ndim == 1 else 0.2
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
        if "final_logits_bias" in dict(model.named_buffers()):
            model.final_logits_bias.normal_(generator=generator)
    return model.eval()


def saved(case: Callable[[], Any], directory: Path, dtype: Any = None, **options: Any) -> Any:
    """Saves a stirred model, and gives it as `transformers` loads it."""
    torch.manual_seed(0)
    made = stir(case())
    (made if dtype is None else made.to(dtype)).save_pretrained(directory, **options)
    return loaded(directory)


def loaded(directory: Path) -> Any:
    """The model in a directory as `transformers` loads it; but for BERT's pooler nothing may be missing."""
    architecture = getattr(hf, hf.AutoConfig.from_pretrained(directory).architectures[0])
    model, report = architecture.from_pretrained(directory, output_loading_info=True)
    wrong = set().union(*(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")))
    assert not wrong - {"pooler.dense.weight", "pooler.dense.bias"}, report
    return model.eval()


def logits(model: Any, tokens: np.ndarray, decoder_tokens: np.ndarray | None = None, **inputs: np.ndarray) -> Any:
    """Logits (or hidden states) as a tensor."""
    named = {"input_ids": tokens, **inputs} | ({} if decoder_tokens is None else {"decoder_input_ids": decoder_tokens})
    out = model(**{name: torch.tensor(np.asarray(array, np.int64)) for name, array in named.items()})
    return out.prediction_logits if "prediction_logits" in out else out[0]


def config_of(directory: Path) -> dict[str, Any]:
    """The config as `transformers` understands it, without its place."""
    found = copy.deepcopy(hf.AutoConfig.from_pretrained(directory).to_dict())
    return {key: value for key, value in found.items() if key not in {"_name_or_path", "transformers_version"}}


def weighted_loss(model: Any, batches: Iterable[Mapping[str, np.ndarray]]) -> float:
    """Mean cross entropy of the targets of our batches, each document run alone."""
    total, weight = 0.0, 0.0
    for batch in batches:
        for row, segments in enumerate(batch["segment_ids"]):
            for number in range(1, int(segments.max()) + 1):
                tokens, positions, targets, weights = (
                    batch[name][row][segments == number] for name in ("tokens", "positions", "targets", "weights")
                )
                with torch.no_grad():
                    found = logits(model, tokens[None], position_ids=positions[None])[0]
                wanted = torch.tensor(targets.astype(np.int64))
                losses = torch.nn.functional.cross_entropy(found, wanted, reduction="none").numpy()
                total, weight = total + float((losses * weights).sum()), weight + float(weights.sum())
    return total / weight

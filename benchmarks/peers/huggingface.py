"""Hugging Face: GPT-2, Llama, BERT and T5 v1.1 of `transformers`, with the step and the optimizer of its Trainer."""

import time
from typing import Any

import torch
import transformers

from benchmarks.gate import Gate
from benchmarks.peers import torch_step
from benchmarks.peers.torch_step import BETAS, LEARNING_RATE
from benchmarks.shapes import Shape


def model_of(shape: Shape) -> Any:
    """The model with random weights; attention is what the library chooses."""
    embed, layers, heads, mlp, vocabulary = shape.embed, shape.layers, shape.heads, shape.mlp, shape.vocabulary
    if shape.family == "gpt":
        gpt = transformers.GPT2Config(
            vocab_size=vocabulary,
            n_positions=shape.sequence,
            n_embd=embed,
            n_layer=layers,
            n_head=heads,
            n_inner=mlp,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
        )
        return transformers.GPT2LMHeadModel(gpt)
    if shape.family == "llama":
        llama = transformers.LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=embed,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=shape.sequence,
            use_cache=False,
        )
        return transformers.LlamaForCausalLM(llama)
    if shape.family == "bert":
        bert = transformers.BertConfig(
            vocab_size=vocabulary,
            hidden_size=embed,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=mlp,
            max_position_embeddings=shape.sequence,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        return transformers.BertForMaskedLM(bert)
    t5: dict[str, Any] = {
        "vocab_size": vocabulary,
        "d_model": embed,
        "d_kv": embed // heads,
        "d_ff": mlp,
        "num_layers": layers,
        "num_heads": heads,
        "dropout_rate": 0.0,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "use_cache": False,
        "decoder_start_token_id": 0,
    }
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**t5))
    # Version 1.1 has a head of its own, and the library ties it whatever the config says.
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def run(gate: Gate, shape: Shape, checkout: str | None, compiled: bool = False) -> None:
    """Takes the turns."""
    del checkout
    began = time.perf_counter()
    torch.manual_seed(0)
    model = model_of(shape)
    # Its Trainer's default, `adamw_torch_fused`.
    optimizer = torch.optim.AdamW(torch_step.decayed(model), lr=LEARNING_RATE, betas=BETAS, fused=True)

    def loss_of(called: torch.nn.Module, batch: torch_step.Tensors) -> torch.Tensor:
        if shape.with_encoder:
            inputs = {"input_ids": batch["encoder"], "decoder_input_ids": batch["tokens"], "labels": batch["targets"]}
        elif shape.asks == "masked":
            inputs = {"input_ids": batch["tokens"], "labels": batch["targets"]}
        else:  # it shifts the labels itself, so that the last place has none
            inputs = {"input_ids": batch["tokens"], "labels": batch["tokens"]}
        return called(**inputs).loss

    torch_step.train(gate, shape, model, optimizer, loss_of, began, compiled, transformers=transformers.__version__)

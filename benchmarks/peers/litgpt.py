"""LitGPT: its GPT, its chunked loss and the step of its `pretrain.py`, without Fabric, which adds nothing on one CPU.

It has no learned positions: as a GPT it is of the kind of Pythia, with rotary positions on a quarter of each head, and
its head is tied to the embedding by hand, as `pretrain.py` does on request.
"""

import importlib.metadata
import time

import torch
from litgpt import GPT, Config
from litgpt.utils import chunked_cross_entropy

from benchmarks.gate import Gate
from benchmarks.peers import torch_step
from benchmarks.peers.torch_step import BETAS, LEARNING_RATE, WEIGHT_DECAY
from benchmarks.shapes import Shape

LLAMA = {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "rotary_percentage": 1.0}
PYTHIA = {"norm_class_name": "LayerNorm", "mlp_class_name": "GptNeoxMLP", "gelu_approximate": "tanh"}


def run(gate: Gate, shape: Shape, checkout: str | None, compiled: bool = False) -> None:
    """Takes the turns."""
    del checkout
    began = time.perf_counter()
    torch.manual_seed(0)
    config = Config(
        block_size=shape.sequence,
        n_layer=shape.layers,
        n_embd=shape.embed,
        n_head=shape.heads,
        vocab_size=shape.vocabulary,
        padded_vocab_size=shape.vocabulary,
        intermediate_size=shape.mlp,
        parallel_residual=False,
        bias=False,
        **(LLAMA if shape.family == "llama" else PYTHIA),
    )
    model = GPT(config)
    if shape.family == "gpt":
        model.transformer.wte.weight = model.lm_head.weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)

    def loss_of(called: torch.nn.Module, batch: torch_step.Tensors) -> torch.Tensor:
        return chunked_cross_entropy(called(batch["tokens"]), batch["targets"])

    version = importlib.metadata.version("litgpt")
    torch_step.train(gate, shape, model, optimizer, loss_of, began, compiled, litgpt=version)

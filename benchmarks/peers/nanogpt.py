"""nanoGPT: its model, its optimizer and the step of its `train.py`, eager as its README advises on CPUs."""

import sys
import time

import torch

from benchmarks.gate import Gate
from benchmarks.peers import torch_step
from benchmarks.peers.torch_step import BETAS, LEARNING_RATE, WEIGHT_DECAY
from benchmarks.shapes import Shape


def run(gate: Gate, shape: Shape, checkout: str, compiled: bool = False) -> None:
    """Takes the turns; the MLP is always four times as wide as the model."""
    assert shape.mlp == 4 * shape.embed, "nanoGPT's MLP is four times as wide as the model: use another --mlp"
    sys.path.insert(0, checkout)
    from model import GPT, GPTConfig

    began = time.perf_counter()
    torch.manual_seed(0)
    config = GPTConfig(
        block_size=shape.sequence,
        vocab_size=shape.vocabulary,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_embd=shape.embed,
        dropout=0.0,
        bias=False,
    )
    model = GPT(config)
    optimizer = model.configure_optimizers(WEIGHT_DECAY, LEARNING_RATE, BETAS, "cpu")

    def loss_of(called: torch.nn.Module, batch: torch_step.Tensors) -> torch.Tensor:
        return called(batch["tokens"], batch["targets"])[1]

    torch_step.train(gate, shape, model, optimizer, loss_of, began, compiled)

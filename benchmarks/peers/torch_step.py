"""The training step that torch projects share: zero, loss, backward, clip, update; in float32, eager or compiled."""

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gate import NUM_BATCHES, Gate, random_batches
from benchmarks.shapes import Shape

LEARNING_RATE, BETAS, WEIGHT_DECAY, CLIP = 1e-3, (0.9, 0.95), 0.1, 1.0

Tensors = dict[str, torch.Tensor]
Loss = Callable[[torch.nn.Module, Tensors], torch.Tensor]


def tensors(shape: Shape) -> list[Tensors]:
    """The batches as int64 tensors; targets that are not asked for are -100."""
    found = []
    for batch in random_batches(shape):
        targets = torch.from_numpy(batch.targets.astype("int64"))
        one = {"tokens": torch.from_numpy(batch.tokens.astype("int64"))}
        one["targets"] = targets.masked_fill(torch.from_numpy(batch.weights) == 0, -100).contiguous()
        if batch.encoder is not None:
            one["encoder"] = torch.from_numpy(batch.encoder.astype("int64"))
        found.append(one)
    return found


def decayed(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Matrices with weight decay, vectors without."""
    own = list(model.parameters())
    return [
        {"params": [weight for weight in own if weight.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [weight for weight in own if weight.dim() < 2], "weight_decay": 0.0},
    ]


def train(
    gate: Gate,
    shape: Shape,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Loss,
    began: float,
    compiled: bool,
    **versions: str,
) -> None:
    """Takes the turns.

    Args:
      gate: the other end.
      shape: what is trained.
      model: the peer's.
      optimizer: likewise.
      loss_of: the mean cross entropy of a batch.
      began: when the model began to be made.
      compiled: through `torch.compile`.
      versions: of the peer's packages.
    """
    batches = tensors(shape)
    model.train()
    parameters = sum(weight.numel() for weight in model.parameters())
    called: Any = torch.compile(model) if compiled else model
    last = torch.zeros(())

    def update(number: int) -> None:
        nonlocal last
        optimizer.zero_grad(set_to_none=True)
        last = loss_of(called, batches[number % NUM_BATCHES])
        last.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()

    gate.take_turns(
        update,
        lambda: last.item(),
        time.perf_counter() - began,
        parameters=parameters,
        threads=torch.get_num_threads(),
        versions={"torch": torch.__version__, **versions},
    )

"""A configured model made small enough to be examined on a device, with all of its choices."""

import contextlib
import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax

from research import config
from research.errors import UserError
from research.kernels import Pattern
from research.kernels.choice import REFERENCE
from research.models import build, flops
from research.parallel.devices import peak_flops
from research.settings import Settings

# A share of the device's memory, and half a minute or less of its time: on a CPU as many operations as a laptop does
# in that, elsewhere so many seconds at the device's peak, which programs of this size reach a small part of.
MEMORY_SHARE = 0.25
CPU_FLOPS, PEAK_SECONDS, UNKNOWN_PEAK = 1e12, 2.0, 5e13

ROWS = 4
UPDATES, TRACES = 12, 200  # batches, and single sequences, that go through the model forward and backward
COPIES = 12  # of the weights: states before and after an update, gradients, and the same of what it is compared with

SHORTEST, FEWEST_IDS, NARROWEST = 64, 512, 64


@dataclasses.dataclass(frozen=True)
class Budget:
    """What one examination may cost.

    Attributes:
      memory: bytes.
      work: floating-point operations.
    """

    memory: float
    work: float


def budget(device: jax.Device) -> Budget:
    """What is reasonable on a device."""
    if device.platform == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Budget(MEMORY_SHARE * memory, CPU_FLOPS)
    stats = device.memory_stats() or {}
    return Budget(
        MEMORY_SHARE * stats.get("bytes_limit", 16 * 2**30), PEAK_SECONDS * (peak_flops(device) or UNKNOWN_PEAK)
    )


def cost(settings: Settings) -> Budget:
    """What examining the settings costs, estimated from the counts of `models.flops`."""
    model, length = settings.model, settings.data.sequence_length
    encoder = length if model.encoder_layers else 0
    sequence = flops.Work(length, Pattern(causal=False), encoder_positions=encoder)
    count = flops.count(build(settings, REFERENCE), sequence)
    # The reference sends every token through every expert.
    experts = model.num_experts / model.experts_per_token if model.num_experts else 1.0
    layers = model.num_layers + model.encoder_layers
    # A block keeps a dozen values of the residual stream's width, the MLP's values, and attention's weights twice.
    kept = layers * (12 * model.embed_dim + 3 * model.mlp_width * experts + 2 * model.num_heads * length)
    rows = settings.train.batch_size
    activations = rows * length * (kept + 4 * settings.vocab_size)
    work = (UPDATES * rows + TRACES) * experts * count.model_flops
    return Budget(4.0 * (COPIES * count.parameters + activations), work)


def reduced(settings: Settings, allowed: Budget, shards: int = 1) -> Settings:
    """The settings with a smaller model, if the budget asks for one.

    First the depth falls to two periods of layers and the remainder; then sequence, vocabulary and width are halved in
    turn. The ratio of query to key heads, the experts, the norms, positions, biases and types stay; a window shrinks
    with the sequence. As many key heads stay as `shards` divide, where there are so many.
    """
    steps: list[Callable[[Settings], Settings | None]] = [
        _shorter,
        _fewer_ids,
        lambda settings: _narrower(settings, max(2, shards)),
    ]
    now = settings
    if not _fits(now, allowed):
        now = _shallower(now)
    progress = True
    while progress and not _fits(now, allowed):
        progress = False
        for step in steps:
            if _fits(now, allowed):
                break
            with contextlib.suppress(UserError):  # a combination that the settings refuse: another step may help
                if (smaller := step(now)) is not None:
                    now, progress = smaller, True
    return now


def prepared(settings: Settings, devices: int) -> Settings:
    """The settings with a batch of a few rows that divides over the devices, and a pool without a limit."""
    rows = max(ROWS, devices if devices % 2 == 0 else 2 * devices)
    changes = {
        "train.batch_size": rows,
        "train.accumulation": 1,
        "train.noise_scale": False,
        "data.num_tokens": None,
        "evaluate.batch_size": rows,
    }
    return changed(settings, changes)


def changed(settings: Settings, changes: dict[str, Any]) -> Settings:
    """The settings with dotted keys changed."""
    return config.from_nested({key: settings[key] for key in config.KEYS} | changes)


def _fits(settings: Settings, allowed: Budget) -> bool:
    estimate = cost(settings)
    return estimate.memory <= allowed.memory and estimate.work <= allowed.work


def _shallower(settings: Settings) -> Settings:
    model = settings.model
    period = len(model.attention_period)

    def depth(layers: int) -> int:
        return min(layers, 2 * period + layers % period)

    changes = {"model.num_layers": depth(model.num_layers)}
    if model.num_encoder_layers is not None:
        changes["model.num_encoder_layers"] = depth(model.num_encoder_layers)
    return changed(settings, changes)


def _shorter(settings: Settings) -> Settings | None:
    length = settings.data.sequence_length
    if length // 2 < SHORTEST:
        return None
    changes: dict[str, Any] = {"data.sequence_length": length // 2, "data.raw_length": None}
    if settings.model.attention_window is not None:
        changes["model.attention_window"] = max(1, settings.model.attention_window // 2)
    return changed(settings, changes)


def _fewer_ids(settings: Settings) -> Settings | None:
    ids, rows = settings.tokenizer.vocab_size, settings.model.vocab_size
    if ids // 2 < FEWEST_IDS or settings.tokenizer.path:
        return None
    changes: dict[str, Any] = {"tokenizer.vocab_size": ids // 2}
    if rows is not None:
        changes["model.vocab_size"] = rows - ids + ids // 2
    return changed(settings, changes)


def _narrower(settings: Settings, fewest_heads: int) -> Settings | None:
    """Half the width, by half the heads or, where these are few, by heads of half the width."""
    model = settings.model
    if model.embed_dim // 2 < NARROWEST or model.embed_dim % 2:
        return None
    changes: dict[str, Any] = {"model.embed_dim": model.embed_dim // 2}
    if model.mlp_dim is not None:
        changes["model.mlp_dim"] = max(8, model.mlp_dim // 2)
    groups = model.kv_heads
    if groups % 2 == 0 and groups // 2 >= fewest_heads and (groups // 2) % fewest_heads == 0:
        changes["model.num_heads"] = model.num_heads // 2
        if model.num_kv_heads is not None:
            changes["model.num_kv_heads"] = groups // 2
    elif model.head_dim is not None:
        changes["model.head_dim"] = max(8, model.head_dim // 2)
    return changed(settings, changes)

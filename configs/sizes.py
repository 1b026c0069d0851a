"""The ladder of sizes that recipes share, and published models; `research/models/flops.py` counts each exactly.

A recipe's argument is a rung (`125m`), a family at a rung (`bert-tiny`), or a published model (`gpt2-124m`,
`llama-7b`): any architecture goes with any objective.

Widths grow with depth at roughly constant aspect ratio, heads are 64 wide from 5m to 125m. From 7b on the shapes are
those of Llama 2 (Touvron et al. 2023, table 1 and section 2.2), 1b is TinyLlama's (Zhang et al. 2024). Names are the
nominal total. Lengths are about 20 tokens a parameter (Hoffmann et al. 2022); `tiny` is what two CPU cores do in three
to four minutes. Learning rates above `tiny` are customary starting points, not tuned here.
"""

from typing import Any, NamedTuple

import ml_collections

from research.errors import UserError
from research.settings.families import FAMILIES

# None follows from the other keys, also when those are overridden.
#          layers embed heads kv   mlp    vocab  sequence tied   batch  steps    rate  beta2
SIZES = {
    "tiny": (2, 128, 4, None, None, 2048, 128, True, 8, 2600, 4e-3, 0.99),
    "5m": (6, 192, 3, None, 704, 8192, 256, True, 64, 6000, 4e-3, 0.95),
    "15m": (8, 320, 5, None, 1152, 8192, 512, True, 64, 9000, 3e-3, 0.95),
    "30m": (10, 448, 7, None, 1344, 8192, 512, True, 128, 9000, 2e-3, 0.95),
    "60m": (12, 576, 9, None, 1920, 8192, 1024, True, 128, 9200, 1.5e-3, 0.95),
    "125m": (12, 768, 12, None, 2560, 32000, 1024, True, 256, 9400, 1e-3, 0.95),
    "350m": (24, 1024, 16, None, 2816, 32000, 2048, True, 256, 13_000, 6e-4, 0.95),
    "760m": (24, 1536, 16, None, 4352, 32000, 2048, True, 256, 29_000, 5e-4, 0.95),
    "1b": (22, 2048, 32, 4, 5632, 32000, 2048, False, 512, 21_000, 4e-4, 0.95),
    "3b": (26, 3200, 32, None, 8640, 32000, 2048, False, 512, 65_000, 3e-4, 0.95),
    "7b": (32, 4096, 32, None, 11008, 32000, 4096, False, 1024, 32_000, 3e-4, 0.95),
    "13b": (40, 5120, 40, None, 13824, 32000, 4096, False, 1024, 62_000, 3e-4, 0.95),
    "70b": (80, 8192, 64, 8, 28672, 32000, 4096, False, 1024, 329_000, 1.5e-4, 0.95),
}


class Shape(NamedTuple):
    """A published model; `rung` lends batch, length and learning rate. None follows from the other fields."""

    layers: int
    embed: int
    heads: int
    kv: int | None
    mlp: int | None
    vocab: int
    sequence: int
    rung: str
    model: dict[str, Any] = {}  # noqa: RUF012 - a NamedTuple's default is never written to


PUBLISHED = {
    # Radford et al. 2019, table 2 (whose own counts are lower than the checkpoints').
    "gpt2-124m": Shape(12, 768, 12, None, None, 50257, 1024, "125m"),
    "gpt2-355m": Shape(24, 1024, 16, None, None, 50257, 1024, "350m"),
    "gpt2-774m": Shape(36, 1280, 20, None, None, 50257, 1024, "760m"),
    "gpt2-1.5b": Shape(48, 1600, 25, None, None, 50257, 1024, "1b"),
    # Touvron et al. 2023 (Llama 2), section 2.2 and the released checkpoints.
    "llama-7b": Shape(32, 4096, 32, None, 11008, 32000, 4096, "7b"),
    "llama-13b": Shape(40, 5120, 40, None, 13824, 32000, 4096, "13b"),
    "llama-70b": Shape(80, 8192, 64, 8, 28672, 32000, 4096, "70b"),
    # Jiang et al. 2023, table 1.
    "mistral-7b": Shape(32, 4096, 32, 8, 14336, 32000, 8192, "7b"),
    # Yang et al. 2024, table 1; Yang et al. 2025, table 1.
    "qwen2-0.5b": Shape(24, 896, 14, 2, 4864, 151936, 4096, "350m", {"tied_embeddings": True}),
    "qwen2-7b": Shape(28, 3584, 28, 4, 18944, 152064, 4096, "7b"),
    "qwen3-0.6b": Shape(28, 1024, 16, 8, 3072, 151936, 4096, "350m", {"head_dim": 128, "tied_embeddings": True}),
    "qwen3-8b": Shape(36, 4096, 32, 8, 12288, 151936, 4096, "7b", {"head_dim": 128}),
    # Gemma Team 2024, table 1; Gemma Team 2024 (Gemma 2), table 1.
    "gemma-2b": Shape(18, 2048, 8, 1, 16384, 256000, 8192, "3b", {"head_dim": 256}),
    "gemma2-2b": Shape(26, 2304, 8, 4, 9216, 256000, 8192, "3b", {"head_dim": 256}),
    "gemma2-9b": Shape(42, 3584, 16, 8, 14336, 256000, 8192, "7b", {"head_dim": 256}),
    # Jiang et al. 2024, table 1.
    "mixtral-8x7b": Shape(32, 4096, 32, 8, 14336, 32000, 8192, "13b"),
    # Devlin et al. 2019, section 3; Liu et al. 2019.
    "bert-base": Shape(12, 768, 12, None, None, 30522, 512, "125m"),
    "bert-large": Shape(24, 1024, 16, None, None, 30522, 512, "350m"),
    "roberta-base": Shape(12, 768, 12, None, None, 50265, 512, "125m"),
    "roberta-large": Shape(24, 1024, 16, None, None, 50265, 512, "350m"),
    # Warner et al. 2024, table 4.
    "modernbert-base": Shape(22, 768, 12, None, 1152, 50368, 1024, "125m"),
    "modernbert-large": Shape(28, 1024, 16, None, 2624, 50368, 1024, "350m"),
    # Raffel et al. 2020, section 3.1.1 and the released checkpoints (embeddings padded to a multiple of 128).
    "t5-small": Shape(6, 512, 8, None, 2048, 32000, 512, "60m", {"vocab_size": 32128}),
    "t5-base": Shape(12, 768, 12, None, 3072, 32000, 512, "125m", {"vocab_size": 32128}),
    "t5-large": Shape(24, 1024, 16, None, 4096, 32000, 512, "760m", {"vocab_size": 32128}),
    "t5_v1_1-base": Shape(12, 768, 12, None, 2048, 32000, 512, "125m", {"vocab_size": 32128}),
    # Vaswani et al. 2017, table 3.
    "transformer-base": Shape(6, 512, 8, None, 2048, 37000, 512, "60m"),
    "transformer-big": Shape(6, 1024, 16, None, 4096, 37000, 512, "125m"),
}


# Norms after the residual sums make the gradients near the output large at first (Xiong et al. 2020, section 3): at the
# rate of `tiny`, `masked.py:bert-tiny` stays at the frequencies of tokens; at a quarter of it, it learns.
POST_NORM_RATE = 0.25


def set_size(config: ml_collections.ConfigDict, size: str) -> None:
    """Writes shape, vocabulary, context, batch, length and optimizer of a rung or a published model into a config."""
    family, _, rung = size.rpartition("-")
    published = PUBLISHED.get(size)
    rung = published.rung if published else rung
    if rung not in SIZES or (family and family not in FAMILIES):
        known = [name for name in PUBLISHED if name.startswith(f"{family}-")] if family in FAMILIES else list(FAMILIES)
        beside = (
            f"{family} has {', '.join(known) or 'no published size'}"
            if family in FAMILIES
            else f"families: {', '.join(known)}"
        )
        raise UserError(
            f"size {size!r} is unknown: choose one of {', '.join(SIZES)}, a family at one of these (bert-tiny), or a "
            f"published model (gpt2-124m); {beside}"
        )
    layers, embed, heads, kv, mlp, vocab, sequence, tied, batch, steps, rate, beta2 = SIZES[rung]
    config.model.update(num_layers=layers, embed_dim=embed, num_heads=heads, num_kv_heads=kv, mlp_dim=mlp)
    if published:
        layers, embed, heads, kv, mlp, vocab, sequence, *_ = published
        config.model.update(num_layers=layers, embed_dim=embed, num_heads=heads, num_kv_heads=kv, mlp_dim=mlp)
    else:
        config.model.tied_embeddings = tied
    config.model.update({**FAMILIES.get(family, {}), **(published.model if published else {})})
    config.tokenizer.vocab_size = vocab
    config.data.sequence_length = sequence
    config.train.update(batch_size=batch, num_steps=steps)
    rate *= POST_NORM_RATE if config.model.norm_position == "post" else 1.0
    config.optimizer.update(learning_rate=rate, beta2=beta2)

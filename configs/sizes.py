"""The ladder of model sizes that recipes share; `research/models/flops.py` counts each exactly.

Widths grow with depth at roughly constant aspect ratio, heads are 64 wide from 5m to 125m. From 7b on the shapes are
those of Llama 2 (Touvron et al. 2023, table 1 and section 2.2), 1b is TinyLlama's (Zhang et al. 2024). Names are the
nominal total. Lengths are about 20 tokens a parameter (Hoffmann et al. 2022); `tiny` is what two CPU cores do in three
to four minutes. Learning rates above `tiny` are customary starting points, not tuned here.
"""

import ml_collections

from research.errors import UserError

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


def set_size(config: ml_collections.ConfigDict, size: str) -> None:
    """Writes the shape, vocabulary, context, batch, length and optimizer of a rung into a config."""
    if size not in SIZES:
        raise UserError(f"size {size!r} is not on the ladder: choose one of {', '.join(SIZES)}")
    layers, embed, heads, kv, mlp, vocab, sequence, tied, batch, steps, rate, beta2 = SIZES[size]
    config.model.update(
        num_layers=layers, embed_dim=embed, num_heads=heads, num_kv_heads=kv, mlp_dim=mlp, tied_embeddings=tied
    )
    config.tokenizer.vocab_size = vocab
    config.data.sequence_length = sequence
    config.train.update(batch_size=batch, num_steps=steps)
    config.optimizer.update(learning_rate=rate, beta2=beta2)

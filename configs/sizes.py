"""The ladder of model sizes that recipes share; `research/models/flops.py` counts each exactly.

Widths grow with depth at roughly constant aspect ratio, heads are 64 wide up to 125m. From 7b on the shapes are those
of Llama 2 (Touvron et al. 2023, table 1 and section 2.2), 1b is TinyLlama's (Zhang et al. 2024). Names are the nominal
total.
"""

import ml_collections

from research.errors import UserError

#          layers embed heads kv   mlp    vocab  sequence tied   batch  rate
SIZES = {
    "tiny": (2, 128, 4, 4, 384, 2048, 128, True, 32, 1e-2),
    "5m": (6, 192, 3, 3, 704, 8192, 256, True, 64, 4e-3),
    "15m": (8, 320, 5, 5, 1152, 8192, 512, True, 64, 3e-3),
    "30m": (10, 448, 7, 7, 1344, 8192, 512, True, 128, 2e-3),
    "60m": (12, 576, 9, 9, 1920, 8192, 1024, True, 128, 1.5e-3),
    "125m": (12, 768, 12, 12, 2560, 32000, 1024, True, 256, 1e-3),
    "350m": (24, 1024, 16, 16, 2816, 32000, 2048, True, 256, 6e-4),
    "760m": (24, 1536, 16, 16, 4352, 32000, 2048, True, 256, 5e-4),
    "1b": (22, 2048, 32, 4, 5632, 32000, 2048, False, 512, 4e-4),
    "3b": (26, 3200, 32, 32, 8640, 32000, 2048, False, 512, 3e-4),
    "7b": (32, 4096, 32, 32, 11008, 32000, 4096, False, 1024, 3e-4),
    "13b": (40, 5120, 40, 40, 13824, 32000, 4096, False, 1024, 3e-4),
    "70b": (80, 8192, 64, 8, 28672, 32000, 4096, False, 1024, 1.5e-4),
}


def set_size(config: ml_collections.ConfigDict, size: str) -> None:
    """Writes the shape, vocabulary, context, batch and learning rate of a rung into a config."""
    if size not in SIZES:
        raise UserError(f"size {size!r} is not on the ladder: choose one of {', '.join(SIZES)}")
    layers, embed, heads, kv, mlp, vocab, sequence, tied, batch, rate = SIZES[size]
    config.model.update(
        num_layers=layers, embed_dim=embed, num_heads=heads, num_kv_heads=kv, mlp_dim=mlp, tied_embeddings=tied
    )
    config.tokenizer.vocab_size = vocab
    config.data.sequence_length = sequence
    config.train.batch_size = batch
    config.optimizer.learning_rate = rate

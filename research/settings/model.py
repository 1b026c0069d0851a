"""The transformer core."""

import dataclasses

from research.errors import UserError
from research.settings.fields import setting


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """Shape and numerics of the model; the vocabulary size is the tokenizer's."""

    num_layers: int = setting(4, "transformer blocks", minimum=1)
    embed_dim: int = setting(128, "width of the residual stream", minimum=1)
    num_heads: int = setting(4, "query heads", minimum=1)
    num_kv_heads: int | None = setting(None, "key and value heads (grouped-query); none: num_heads", minimum=1)
    head_dim: int | None = setting(None, "width of a head; none: embed_dim / num_heads", minimum=1)
    mlp_dim: int | None = setting(
        None,
        "hidden width of the MLP; none: 4 embed_dim for gelu, 8/3 embed_dim in multiples of 64 for swiglu",
        minimum=1,
    )
    activation: str = setting("swiglu", "the MLP's non-linearity", choices=("gelu", "swiglu"))
    norm: str = setting("rmsnorm", "normalisation", choices=("rmsnorm", "layernorm"))
    norm_position: str = setting("pre", "before each sublayer, or after its residual sum", choices=("pre", "post"))
    norm_epsilon: float = setting(1e-6, "added to the variance", minimum=0.0)
    position: str = setting("rotary", "position encoding", choices=("rotary", "learned", "none"))
    rotary_base: float = setting(
        10_000.0, "longest wavelength of the rotary encoding over 2 pi", unit="positions", minimum=1.0
    )
    qk_norm: bool = setting(False, "RMS normalisation of each head's queries and keys")
    use_bias: bool = setting(False, "biases in projections")
    tied_embeddings: bool = setting(True, "the head uses the token embedding")
    embedding_std: float = setting(0.02, "standard deviation of initial embeddings", minimum=0.0)
    dropout: float = setting(
        0.0, "share of activations dropped (embedding, attention output, MLP output)", minimum=0.0, maximum=0.99
    )
    compute_dtype: str = setting("float32", "type of activations and products", choices=("float32", "bfloat16"))

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.head_dim or self.embed_dim // self.num_heads

    @property
    def mlp_width(self) -> int:
        """Hidden width of the MLP (8/3 keeps a gated MLP at the parameters of a plain one: Shazeer 2020)."""
        if self.mlp_dim is not None:
            return self.mlp_dim
        return 4 * self.embed_dim if self.activation == "gelu" else -(-8 * self.embed_dim // 3 // 64) * 64

    def check(self) -> None:
        """Raises `UserError` where keys contradict each other."""
        if self.head_dim is None and self.embed_dim % self.num_heads:
            raise UserError(
                f"model.num_heads={self.num_heads} does not divide model.embed_dim={self.embed_dim}: "
                "change one of them, or set model.head_dim"
            )
        if self.num_heads % self.kv_heads:
            raise UserError(
                f"model.num_kv_heads={self.kv_heads} does not divide model.num_heads={self.num_heads}: "
                "change one of them"
            )
        if self.position == "rotary" and self.head_width % 2:
            raise UserError(
                f"model.position=rotary needs an even width per head, not {self.head_width}: "
                "change model.num_heads or model.head_dim"
            )

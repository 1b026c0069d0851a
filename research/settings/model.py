"""The one core, and what makes it a GPT, a Llama, a BERT or a T5; `research/settings/families.py` has the presets."""

import dataclasses

from research.errors import UserError
from research.settings.fields import setting

GATED = {"swiglu": "silu", "geglu": "gelu", "geglu_exact": "gelu_exact"}


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """Shape and numerics of the model."""

    architecture: str = setting(
        "transformer",
        "a stack of blocks, an encoder and a decoder, or a baseline: recurrent, or a plain MLP over averaged context",
        choices=("transformer", "encoder_decoder", "lstm", "mlp"),
        since=2,
    )
    num_layers: int = setting(4, "blocks (of the decoder, where there is an encoder)", minimum=1)
    num_encoder_layers: int | None = setting(None, "blocks of the encoder; none: num_layers", minimum=1, since=2)
    embed_dim: int = setting(128, "width of the residual stream", minimum=1)
    num_heads: int = setting(4, "query heads", minimum=1)
    num_kv_heads: int | None = setting(None, "key and value heads (grouped-query); none: num_heads", minimum=1)
    head_dim: int | None = setting(None, "width of a head; none: embed_dim / num_heads", minimum=1)
    mlp_dim: int | None = setting(
        None,
        "hidden width of the MLP; none: 4 embed_dim for a plain one, 8/3 embed_dim in multiples of 64 for a gated one",
        minimum=1,
    )
    vocab_size: int | None = setting(
        None, "rows of the embedding; none: the tokenizer's ids and those that the objective adds", minimum=5, since=2
    )
    activation: str = setting(
        "swiglu",
        "the MLP's non-linearity; gelu is the approximation by tanh, *glu are gated",
        choices=("gelu", "gelu_exact", "relu", "swiglu", "geglu", "geglu_exact"),
    )

    norm: str = setting("rmsnorm", "normalisation", choices=("rmsnorm", "layernorm"))
    norm_position: str = setting(
        "pre",
        "before each sublayer, after its residual sum, or before and after the sublayer (both)",
        choices=("pre", "post", "both"),
    )
    norm_epsilon: float = setting(1e-6, "added to the variance", minimum=0.0)
    norm_bias: bool = setting(True, "LayerNorm has a bias", since=2)
    norm_centred: bool = setting(False, "norms multiply by one plus their weight", since=2)
    first_norm: bool = setting(True, "the first attention has a norm before it", since=2)
    embedding_norm: bool = setting(False, "a norm over the sum of embeddings", since=2)

    position: str = setting(
        "rotary",
        "position encoding",
        choices=("rotary", "learned", "sinusoidal", "relative", "alibi", "none"),
    )
    max_positions: int | None = setting(
        None, "longest sequence; none: data.sequence_length", unit="positions", minimum=1, since=2
    )
    position_offset: int = setting(0, "row of the position table that the first position takes", minimum=0, since=2)
    rotary_base: float = setting(
        10_000.0, "longest wavelength of the rotary encoding over 2 pi", unit="positions", minimum=1.0
    )
    rotary_base_local: float | None = setting(
        None, "the same in layers of local attention; none: rotary_base", unit="positions", minimum=1.0, since=2
    )
    rotary_scaling: str = setting(
        "none",
        "how a context longer than the one trained on is reached",
        choices=("none", "linear", "ntk", "llama3", "yarn"),
        since=2,
    )
    rotary_factor: float = setting(1.0, "how many times longer the context becomes", minimum=1.0, since=2)
    rotary_original_length: int | None = setting(
        None, "context that the model was trained on (llama3, yarn)", unit="positions", minimum=1, since=2
    )
    rotary_low: float = setting(
        1.0,
        "turns in the original context below which a frequency is scaled in full (llama3, yarn)",
        minimum=1e-9,
        since=2,
    )
    rotary_high: float = setting(
        4.0,
        "turns in the original context above which a frequency is left as it is (llama3, yarn)",
        minimum=1e-9,
        since=2,
    )
    relative_buckets: int = setting(32, "distances that a relative bias tells apart", minimum=4, since=2)
    relative_max_distance: int = setting(
        128, "distance from which on all share a bucket", unit="positions", minimum=2, since=2
    )

    attention_period: str = setting(
        "g", "one period of layers: g sees all, l sees attention_window; gll is global, local, local", since=2
    )
    attention_window: int | None = setting(
        None, "farthest distance that local layers see", unit="positions", minimum=1, since=2
    )
    attention_scale: float | None = setting(
        None, "factor of the attention logits; none: head_dim^-0.5", minimum=1e-9, since=2
    )
    attention_softcap: float | None = setting(
        None, "attention logits are bent to stay below this, by tanh", minimum=1e-9, since=2
    )
    qk_norm: bool = setting(False, "RMS normalisation of each head's queries and keys")
    use_bias: bool = setting(False, "biases in projections")
    qkv_bias: bool | None = setting(None, "biases of queries, keys and values; none: use_bias", since=2)

    num_experts: int = setting(0, "experts of each MLP; 0: a dense MLP", minimum=0, since=2)
    experts_per_token: int = setting(2, "experts that a token is sent to", minimum=1, since=2)
    expert_capacity: float | None = setting(
        None,
        "places of an expert a sequence, over an even share; what does not fit is dropped; none: nothing is dropped",
        minimum=1e-9,
        since=2,
    )
    balance_loss: float = setting(0.01, "coefficient of the experts' load-balance loss", minimum=0.0, since=2)
    router_z_loss: float = setting(0.0, "coefficient of the router's z-loss", minimum=0.0, since=2)

    token_types: int = setting(0, "rows of the table of token types (sentence A, sentence B)", minimum=0, since=2)
    embedding_scale: bool = setting(False, "embeddings times embed_dim^0.5", since=2)
    tied_embeddings: bool = setting(True, "the head uses the token embedding")
    head_transform: bool = setting(False, "projection, non-linearity and norm before the head", since=2)
    head_bias: bool = setting(False, "a bias for each token id in the head", since=2)
    head_scale: bool = setting(False, "hidden states times embed_dim^-0.5 before the head", since=2)
    logit_softcap: float | None = setting(
        None, "logits of the vocabulary are bent to stay below this, by tanh", minimum=1e-9, since=2
    )
    pooler: bool = setting(False, "projection with tanh of each row's first hidden state", since=2)
    pair_head: bool = setting(False, "a head of two classes on the pooler, for sentence pairs", since=2)

    embedding_std: float = setting(0.02, "standard deviation of initial embeddings", minimum=0.0)
    dropout: float = setting(
        0.0, "share of activations dropped (embedding, attention output, MLP output)", minimum=0.0, maximum=0.99
    )
    compute_dtype: str = setting("float32", "type of activations and products", choices=("float32", "bfloat16"))
    parameter_dtype: str = setting("float32", "type of stored weights", choices=("float32", "bfloat16"), since=2)
    quantisation: str = setting(
        "none",
        "products of projections and dense MLPs, forward and for the gradient of their input; weight gradients, "
        "attention, experts and the vocabulary head are left as they are",
        choices=("none", "int8"),
        since=3,
    )

    parametrisation: str = setting(
        "standard",
        "how initial values and learning rates follow from the width; mup: so that rates tuned at base_width hold",
        choices=("standard", "mup"),
        since=4,
    )
    base_width: int | None = setting(None, "embed_dim that rates were tuned at (mup)", minimum=1, since=4)
    base_head_dim: int | None = setting(None, "width of a head there (mup)", minimum=1, since=4)
    depth_scaling: str = setting(
        "none",
        "factor of residual branches by depth, so that rates tuned at base_depth hold; sqrt: 1/sqrt(depth) "
        "(Depth-muP), linear: 1/depth (CompleteP)",
        choices=("none", "sqrt", "linear"),
        since=4,
    )
    base_depth: int | None = setting(None, "num_layers that rates were tuned at (sqrt, linear)", minimum=1, since=4)

    @property
    def width_growth(self) -> float:
        """The width over that at which rates were tuned; 1 where the parametrisation takes no account of it."""
        return self.embed_dim / self.base_width if self.parametrisation == "mup" and self.base_width else 1.0

    @property
    def head_growth(self) -> float:
        """The same of the width of a head."""
        return self.head_width / self.base_head_dim if self.parametrisation == "mup" and self.base_head_dim else 1.0

    @property
    def depth_growth(self) -> float:
        """The depth over that at which rates were tuned; an encoder is taken to grow as the decoder does."""
        return self.num_layers / self.base_depth if self.depth_scaling != "none" and self.base_depth else 1.0

    @property
    def branch_exponent(self) -> float:
        """A residual branch is multiplied by the inverse of the depth to this power."""
        return {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[self.depth_scaling]

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.head_dim or self.embed_dim // self.num_heads

    @property
    def encoder_layers(self) -> int:
        """Blocks of the encoder; 0 where there is none."""
        return (self.num_encoder_layers or self.num_layers) if self.architecture == "encoder_decoder" else 0

    @property
    def gated(self) -> bool:
        """The MLP multiplies by a gate (Shazeer 2020)."""
        return self.activation in GATED

    @property
    def nonlinearity(self) -> str:
        """The function of the MLP, without its gate: `relu`, `silu`, `gelu` or `gelu_exact`."""
        return GATED.get(self.activation, self.activation)

    @property
    def mlp_width(self) -> int:
        """Hidden width of the MLP (8/3 keeps a gated MLP at the parameters of a plain one: Shazeer 2020)."""
        if self.mlp_dim is not None:
            return self.mlp_dim
        return -(-8 * self.embed_dim // 3 // 64) * 64 if self.gated else 4 * self.embed_dim

    @property
    def projection_bias(self) -> bool:
        """Queries, keys and values have biases."""
        return self.use_bias if self.qkv_bias is None else self.qkv_bias

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
        if self.position == "sinusoidal" and self.embed_dim % 2:
            raise UserError(f"model.position=sinusoidal needs an even model.embed_dim, not {self.embed_dim}: change it")
        if not self.attention_period or set(self.attention_period) - set("gl"):
            raise UserError(
                f"model.attention_period={self.attention_period!r}: write one letter a layer, g (global) or l (local)"
            )
        if "l" in self.attention_period and self.attention_window is None:
            raise UserError(
                f"model.attention_period={self.attention_period} has local layers: set model.attention_window"
            )
        if self.num_experts and self.architecture in {"lstm", "mlp"}:
            raise UserError(
                f"model.num_experts={self.num_experts} has no place in model.architecture={self.architecture}: "
                "set model.num_experts=0, or model.architecture=transformer"
            )
        if self.num_experts and self.experts_per_token > self.num_experts:
            raise UserError(
                f"model.experts_per_token={self.experts_per_token} is more than model.num_experts={self.num_experts}: "
                "change one of them"
            )
        if not self.first_norm and self.norm_position == "post":
            raise UserError("model.first_norm=false goes with model.norm_position=pre or both: change one of them")
        if self.pair_head and not self.pooler:
            raise UserError("model.pair_head=true stands on the pooler: set model.pooler=true")
        if self.rotary_scaling in {"llama3", "yarn"} and self.rotary_original_length is None:
            raise UserError(
                f"model.rotary_scaling={self.rotary_scaling} starts from the context that the model was trained on: "
                "set model.rotary_original_length"
            )
        if self.rotary_scaling in {"llama3", "yarn"} and not 0 < self.rotary_low < self.rotary_high:
            raise UserError(
                f"model.rotary_low={self.rotary_low} must lie between 0 and model.rotary_high={self.rotary_high}: "
                "change one of them"
            )
        self._check_parametrisation()

    def _check_parametrisation(self) -> None:
        mup, deep = self.parametrisation == "mup", self.depth_scaling != "none"
        if mup and self.base_width is None:
            raise UserError("model.parametrisation=mup scales from a tuned model: set model.base_width, its embed_dim")
        attends = self.architecture in {"transformer", "encoder_decoder"}
        if mup and attends and self.base_head_dim is None and self.embed_dim != self.base_width:
            raise UserError(
                f"model.parametrisation=mup needs to know whether heads grow with model.embed_dim={self.embed_dim}: "
                f"set model.base_head_dim, their width at model.base_width={self.base_width} (here {self.head_width})"
            )
        if mup and self.tied_embeddings and attends and self.norm_position == "post" and not self.head_transform:
            raise UserError(
                "model.parametrisation=mup with model.tied_embeddings=true scales the norm before the head, which "
                "model.norm_position=post lacks: set model.tied_embeddings=false or model.head_transform=true"
            )
        if deep and self.base_depth is None:
            raise UserError(
                f"model.depth_scaling={self.depth_scaling} scales from a tuned model: set model.base_depth, its "
                "num_layers"
            )
        if deep and (self.architecture == "lstm" or (attends and self.norm_position == "post")):
            key = "architecture=lstm" if self.architecture == "lstm" else "norm_position=post"
            raise UserError(
                f"model.depth_scaling={self.depth_scaling} scales what branches add to an unnormalised residual "
                f"stream, which model.{key} has not: set model.depth_scaling=none"
            )

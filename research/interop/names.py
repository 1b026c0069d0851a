"""What Hugging Face calls each of our weights, and how it lays them out: tables, one row a weight.

In a name, `{layer}` and `{expert}` run over the stacked dimensions of ours. Names of the body are written without the
prefix under which a model with a head keeps it (`model.`, `bert.`). Matrices of PyTorch's linear layers are stored as
[outputs, inputs], ours as [inputs, outputs].
"""

from typing import NamedTuple


class Row(NamedTuple):
    """One weight.

    Attributes:
      path: our path.
      name: their name.
      layout: theirs to ours, without the stacked dimensions.
      part: which part of the stored tensor, where it holds several.
    """

    path: str
    name: str
    layout: str
    part: int = 0


Rows = tuple[Row, ...]


def vector(path: str, name: str) -> Row:
    """A weight of one dimension."""
    return Row(path, name, "E -> E")


def table(path: str, name: str) -> Row:
    """A table of rows, stored as it is."""
    return Row(path, name, "V E -> V E")


def linear(path: str, name: str, bias: str | None = None) -> Rows:
    """A linear layer, and its bias (by default our path with `_bias` behind it)."""
    return (Row(path, f"{name}.weight", "M E -> E M"), vector(bias or f"{path}_bias", f"{name}.bias"))


def norm(path: str, name: str) -> Rows:
    """A norm with its bias."""
    return (vector(f"{path}/scale", f"{name}.weight"), vector(f"{path}/bias", f"{name}.bias"))


def attention(path: str, query: str, key: str, value: str, out: str) -> Rows:
    """Four linear layers, the heads of which we keep apart."""
    found: Rows = ()
    for ours, theirs in (("query", query), ("key", key), ("value", value)):
        found += (Row(f"{path}/{ours}", f"{theirs}.weight", "(H D) E -> E H D"),)
        found += (Row(f"{path}/{ours}_bias", f"{theirs}.bias", "(H D) -> H D"),)
    return (*found, Row(f"{path}/out", f"{out}.weight", "E (H D) -> H D E"), vector(f"{path}/out_bias", f"{out}.bias"))


def fused(path: str, name: str, weight: str, bias: str) -> Rows:
    """Queries, keys and values in one tensor."""
    found: Rows = ()
    for part, ours in enumerate(("query", "key", "value")):
        found += (Row(f"{path}/{ours}", f"{name}.weight", weight, part),)
        found += (Row(f"{path}/{ours}_bias", f"{name}.bias", bias, part),)
    return found


# --- decoders ---------------------------------------------------------------------------------------------------------

GPT2: Rows = (
    table("embedding/tokens", "wte.weight"),
    table("embedding/positions", "wpe.weight"),
    *norm("layers/attention_norm", "h.{layer}.ln_1"),
    *fused("layers/attention", "h.{layer}.attn.c_attn", "E (3 H D) -> E H D", "(3 H D) -> H D"),
    Row("layers/attention/out", "h.{layer}.attn.c_proj.weight", "(H D) E -> H D E"),
    vector("layers/attention/out_bias", "h.{layer}.attn.c_proj.bias"),
    *norm("layers/mlp_norm", "h.{layer}.ln_2"),
    Row("layers/mlp/up", "h.{layer}.mlp.c_fc.weight", "E M -> E M"),
    vector("layers/mlp/up_bias", "h.{layer}.mlp.c_fc.bias"),
    Row("layers/mlp/down", "h.{layer}.mlp.c_proj.weight", "M E -> M E"),
    vector("layers/mlp/down_bias", "h.{layer}.mlp.c_proj.bias"),
    *norm("final_norm", "ln_f"),
)

_DECODER: Rows = (
    table("embedding/tokens", "embed_tokens.weight"),
    *norm("layers/attention_norm", "layers.{layer}.input_layernorm"),
    *attention(
        "layers/attention",
        "layers.{layer}.self_attn.q_proj",
        "layers.{layer}.self_attn.k_proj",
        "layers.{layer}.self_attn.v_proj",
        "layers.{layer}.self_attn.o_proj",
    ),
    vector("layers/attention/query_norm", "layers.{layer}.self_attn.q_norm.weight"),
    vector("layers/attention/key_norm", "layers.{layer}.self_attn.k_norm.weight"),
    *norm("final_norm", "norm"),
)
_GATED: Rows = (
    *linear("layers/mlp/gate", "layers.{layer}.mlp.gate_proj"),
    *linear("layers/mlp/up", "layers.{layer}.mlp.up_proj"),
    *linear("layers/mlp/down", "layers.{layer}.mlp.down_proj"),
)
LLAMA: Rows = (*_DECODER, *_GATED, *norm("layers/mlp_norm", "layers.{layer}.post_attention_layernorm"))
GEMMA2: Rows = (
    *_DECODER,
    *_GATED,
    *norm("layers/attention_post_norm", "layers.{layer}.post_attention_layernorm"),
    *norm("layers/mlp_norm", "layers.{layer}.pre_feedforward_layernorm"),
    *norm("layers/mlp_post_norm", "layers.{layer}.post_feedforward_layernorm"),
)
MIXTRAL: Rows = (
    *_DECODER,
    *norm("layers/mlp_norm", "layers.{layer}.post_attention_layernorm"),
    Row("layers/experts/router", "layers.{layer}.block_sparse_moe.gate.weight", "X E -> E X"),
    Row("layers/experts/gate", "layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight", "M E -> E M"),
    Row("layers/experts/down", "layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight", "E M -> M E"),
    Row("layers/experts/up", "layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight", "M E -> E M"),
)
CAUSAL_HEAD: Rows = (table("head/table", "lm_head.weight"),)

# --- encoders ---------------------------------------------------------------------------------------------------------

_BERT_LAYER = "encoder.layer.{layer}"
BERT: Rows = (
    table("embedding/tokens", "embeddings.word_embeddings.weight"),
    table("embedding/positions", "embeddings.position_embeddings.weight"),
    table("embedding/types", "embeddings.token_type_embeddings.weight"),
    *norm("embedding/norm", "embeddings.LayerNorm"),
    *attention(
        "layers/attention",
        f"{_BERT_LAYER}.attention.self.query",
        f"{_BERT_LAYER}.attention.self.key",
        f"{_BERT_LAYER}.attention.self.value",
        f"{_BERT_LAYER}.attention.output.dense",
    ),
    *norm("layers/attention_norm", f"{_BERT_LAYER}.attention.output.LayerNorm"),
    *linear("layers/mlp/up", f"{_BERT_LAYER}.intermediate.dense"),
    *linear("layers/mlp/down", f"{_BERT_LAYER}.output.dense"),
    *norm("layers/mlp_norm", f"{_BERT_LAYER}.output.LayerNorm"),
    *linear("pooler/kernel", "pooler.dense", bias="pooler/bias"),
)
BERT_HEAD: Rows = (
    vector("head/bias", "cls.predictions.bias"),
    *linear("head/transform", "cls.predictions.transform.dense"),
    *norm("head/norm", "cls.predictions.transform.LayerNorm"),
    *linear("pair_head/kernel", "cls.seq_relationship", bias="pair_head/bias"),
)
ROBERTA_HEAD: Rows = (
    vector("head/bias", "lm_head.bias"),
    *linear("head/transform", "lm_head.dense"),
    *norm("head/norm", "lm_head.layer_norm"),
)
MODERNBERT: Rows = (
    table("embedding/tokens", "embeddings.tok_embeddings.weight"),
    *norm("embedding/norm", "embeddings.norm"),
    *norm("layers/attention_norm", "layers.{layer}.attn_norm"),
    *fused("layers/attention", "layers.{layer}.attn.Wqkv", "(3 H D) E -> E H D", "(3 H D) -> H D"),
    Row("layers/attention/out", "layers.{layer}.attn.Wo.weight", "E (H D) -> H D E"),
    vector("layers/attention/out_bias", "layers.{layer}.attn.Wo.bias"),
    *norm("layers/mlp_norm", "layers.{layer}.mlp_norm"),
    Row("layers/mlp/gate", "layers.{layer}.mlp.Wi.weight", "(2 M) E -> E M", 0),
    Row("layers/mlp/up", "layers.{layer}.mlp.Wi.weight", "(2 M) E -> E M", 1),
    Row("layers/mlp/gate_bias", "layers.{layer}.mlp.Wi.bias", "(2 M) -> M", 0),
    Row("layers/mlp/up_bias", "layers.{layer}.mlp.Wi.bias", "(2 M) -> M", 1),
    *linear("layers/mlp/down", "layers.{layer}.mlp.Wo"),
    *norm("final_norm", "final_norm"),
)
MODERNBERT_HEAD: Rows = (
    table("head/table", "decoder.weight"),
    vector("head/bias", "decoder.bias"),
    *linear("head/transform", "head.dense"),
    *norm("head/norm", "head.norm"),
)

# --- encoders with decoders -------------------------------------------------------------------------------------------


def _t5_attention(path: str, name: str) -> Rows:
    return attention(path, f"{name}.q", f"{name}.k", f"{name}.v", f"{name}.o")


def _t5_stack(path: str, name: str, last: int) -> Rows:
    """One stack of T5: attention in sublayer 0, the MLP in sublayer `last`; the first layer keeps the biases of all."""
    block, mlp = f"{name}.block.{{layer}}.layer", f"{name}.block.{{layer}}.layer.{last}.DenseReluDense"
    bias = f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return (
        table(f"{path}relative_bias/table", bias),
        *norm(f"{path}layers/attention_norm", f"{block}.0.layer_norm"),
        *_t5_attention(f"{path}layers/attention", f"{block}.0.SelfAttention"),
        *norm(f"{path}layers/mlp_norm", f"{block}.{last}.layer_norm"),
        *linear(f"{path}layers/mlp/down", f"{mlp}.wo"),
        *norm(f"{path}final_norm", f"{name}.final_layer_norm"),
    )


_T5: Rows = (
    table("embedding/tokens", "shared.weight"),
    *_t5_stack("encoder/", "encoder", 1),
    *_t5_stack("", "decoder", 2),
    *norm("layers/cross_norm", "decoder.block.{layer}.layer.1.layer_norm"),
    *_t5_attention("layers/cross_attention", "decoder.block.{layer}.layer.1.EncDecAttention"),
)


def _t5_input(gate: str | None, up: str) -> Rows:
    """The first matrices of the MLPs: one of them, or two where it is gated."""
    found: Rows = ()
    for path, name, last in (("encoder/", "encoder", 1), ("", "decoder", 2)):
        mlp = f"{name}.block.{{layer}}.layer.{last}.DenseReluDense"
        found += linear(f"{path}layers/mlp/up", f"{mlp}.{up}")
        found += linear(f"{path}layers/mlp/gate", f"{mlp}.{gate}") if gate else ()
    return found


T5: Rows = (*_T5, *_t5_input(None, "wi"))
T5_GATED: Rows = (*_T5, *_t5_input("wi_0", "wi_1"))


def _marian_stack(path: str, name: str) -> Rows:
    layer = f"{name}.layers.{{layer}}"
    return (
        *attention(
            f"{path}layers/attention",
            *(f"{layer}.self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")),
        ),
        *norm(f"{path}layers/attention_norm", f"{layer}.self_attn_layer_norm"),
        *linear(f"{path}layers/mlp/up", f"{layer}.fc1"),
        *linear(f"{path}layers/mlp/down", f"{layer}.fc2"),
        *norm(f"{path}layers/mlp_norm", f"{layer}.final_layer_norm"),
    )


MARIAN: Rows = (
    table("embedding/tokens", "shared.weight"),
    *_marian_stack("encoder/", "encoder"),
    *_marian_stack("", "decoder"),
    *attention(
        "layers/cross_attention",
        *(f"decoder.layers.{{layer}}.encoder_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")),
    ),
    *norm("layers/cross_norm", "decoder.layers.{layer}.encoder_attn_layer_norm"),
)
MARIAN_HEAD: Rows = (Row("head/bias", "final_logits_bias", "1 V -> V"), table("head/table", "lm_head.weight"))

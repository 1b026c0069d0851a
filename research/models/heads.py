"""What stands on the hidden states: the vocabulary head, the pooler, the head for sentence pairs."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from research.kernels import Kernels
from research.models import layers
from research.parameters import Parameter
from research.settings import ModelSettings

Params = Mapping[str, Any]


def head_parameters(settings: ModelSettings, vocab_size: int) -> list[Parameter]:
    """An untied table, a bias, a transform (Devlin et al. 2019, appendix A), a pooler, a pair head: what there is."""
    embed, found = settings.embed_dim, []
    if not settings.tied_embeddings:
        shape, dimensions = (vocab_size, embed), ("vocab", "embed")
        found.append(Parameter("head/table", shape, dimensions, "head", embed, vocab_size, std=embed**-0.5))
    if settings.head_bias:
        found.append(Parameter("head/bias", (vocab_size,), ("vocab",), "bias", 1, vocab_size, std=0.0))
    if settings.head_transform:
        found += _dense("head/transform", "head/transform_bias" if settings.use_bias else None, settings)
        found += layers.norm_parameters("head/norm", settings)
    if settings.pooler:
        found += _dense("pooler/kernel", "pooler/bias", settings)
    if settings.pair_head:
        kernel = Parameter("pair_head/kernel", (embed, 2), ("embed", "classes"), "kernel", embed, 2, std=embed**-0.5)
        found += [kernel, Parameter("pair_head/bias", (2,), ("classes",), "bias", 1, 2, std=0.0)]
    return found


def _dense(kernel: str, bias: str | None, settings: ModelSettings) -> list[Parameter]:
    embed = settings.embed_dim
    made = Parameter(kernel, (embed, embed), ("embed", "hidden"), "kernel", embed, embed, std=embed**-0.5)
    return [made] + ([Parameter(bias, (embed,), ("hidden",), "bias", 1, embed, std=0.0)] if bias else [])


def table(settings: ModelSettings, params: Params) -> Float[Array, "vocab embed"]:
    """The head's table in the type that is computed in."""
    found = params["embedding"]["tokens"] if settings.tied_embeddings else params["head"]["table"]
    return found.astype(settings.compute_dtype)


def bias(settings: ModelSettings, params: Params) -> Float[Array, " vocab"] | None:
    """The head's bias, float32."""
    return params["head"]["bias"].astype(jnp.float32) if settings.head_bias else None


def transformed(
    settings: ModelSettings, kernels: Kernels, params: Params, hidden: Float[Array, "*rows embed"]
) -> Float[Array, "*rows embed"]:
    """The hidden states as the head's table meets them."""
    if settings.head_transform:
        weights = params["head"]
        hidden = _applied(kernels, hidden, weights["transform"], weights.get("transform_bias"))
        hidden = layers.normalise(layers.NONLINEARITIES[settings.nonlinearity](hidden), weights["norm"], settings)
    if settings.head_scale:
        hidden *= settings.embed_dim**-0.5
    return hidden


def pooled(kernels: Kernels, params: Params, hidden: Float[Array, "batch seq embed"]) -> Float[Array, "batch embed"]:
    """The first hidden state of each row, projected, through tanh."""
    weights = params["pooler"]
    return jnp.tanh(_applied(kernels, hidden[:, 0], weights["kernel"], weights["bias"]))


def pair_logits(kernels: Kernels, params: Params, pooled: Float[Array, "batch embed"]) -> Float[Array, "batch 2"]:
    """Logits of the two classes of a sentence pair, float32."""
    weights = params["pair_head"]
    return _applied(kernels, pooled, weights["kernel"], weights["bias"]).astype(jnp.float32)


def _applied(kernels: Kernels, x: Array, kernel: Array, bias: Array | None) -> Array:
    out = kernels.product(x, kernel.astype(x.dtype))
    return out if bias is None else layers.biased(out, bias)

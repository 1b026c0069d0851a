"""A training step as a careful researcher writes it by hand for one device, after nanoGPT: the yardstick.

Pre-LayerNorm decoder, GELU, learned positions, tied head, no biases in projections; one product for queries, keys and
values; layers unrolled; all logits at once; optax AdamW, state donated. No clipping, and no metric but the loss.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from benchmarks.shapes import Shape

EPSILON = 1e-6

Params = dict[str, Any]


def init(key: Array, shape: Shape) -> Params:
    """Initial weights, a list of layers among them."""
    embed, deep = shape.embed, 0.02 / math.sqrt(2 * shape.layers)
    keys = iter(jax.random.split(key, 2 + 4 * shape.layers))

    def normal(std: float, *size: int) -> Array:
        return std * jax.random.normal(next(keys), size)

    def norm() -> Params:
        return {"scale": jnp.ones(embed), "bias": jnp.zeros(embed)}

    return {
        "tokens": normal(0.02, shape.vocabulary, embed),
        "positions": normal(0.02, shape.sequence, embed),
        "layers": [
            {
                "norm1": norm(),
                "qkv": normal(0.02, embed, 3 * embed),
                "out": normal(deep, embed, embed),
                "norm2": norm(),
                "up": normal(0.02, embed, shape.mlp),
                "down": normal(deep, shape.mlp, embed),
            }
            for _ in range(shape.layers)
        ],
        "norm": norm(),
    }


def layer_norm(x: Array, weights: Params) -> Array:
    """LayerNorm over the last dimension."""
    mean, variance = jnp.mean(x, -1, keepdims=True), jnp.var(x, -1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + EPSILON) * weights["scale"] + weights["bias"]


def attention(x: Array, layer: Params, heads: int) -> Array:
    """Causal self-attention over `[batch, heads, seq, head_dim]`."""
    batch, length, embed = x.shape
    qkv = (x @ layer["qkv"]).reshape(batch, length, 3, heads, embed // heads)
    query, key, value = qkv.transpose(2, 0, 3, 1, 4)
    logits = query @ key.swapaxes(-1, -2) / math.sqrt(embed // heads)
    logits = jnp.where(jnp.tril(jnp.ones((length, length), bool)), logits, -jnp.inf)
    out = jax.nn.softmax(logits) @ value
    return out.swapaxes(1, 2).reshape(batch, length, embed) @ layer["out"]


def loss(
    params: Params, tokens: Int[Array, "batch seq"], targets: Int[Array, "batch seq"], heads: int
) -> Float[Array, ""]:
    """Mean cross entropy of the next token, in nats."""
    x = params["tokens"][tokens] + params["positions"]
    for layer in params["layers"]:
        x = x + attention(layer_norm(x, layer["norm1"]), layer, heads)
        x = x + jax.nn.gelu(layer_norm(x, layer["norm2"]) @ layer["up"]) @ layer["down"]
    logits = layer_norm(x, params["norm"]) @ params["tokens"].T
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, targets))


def make_step(shape: Shape, rule: optax.GradientTransformation) -> Callable[..., tuple[Params, Any, Array]]:
    """The jitted update `(params, moments, tokens, targets) -> (params, moments, loss)`."""

    def step(params: Params, moments: Any, tokens: Array, targets: Array) -> tuple[Params, Any, Array]:
        value, gradients = jax.value_and_grad(loss)(params, tokens, targets, shape.heads)
        updates, moments = rule.update(gradients, moments, params)
        return optax.apply_updates(params, updates), moments, value

    return jax.jit(step, donate_argnums=(0, 1))


def optimizer() -> optax.GradientTransformation:
    """AdamW whose decay leaves norms alone."""
    return optax.adamw(
        1e-3, b1=0.9, b2=0.95, weight_decay=0.1, mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    )

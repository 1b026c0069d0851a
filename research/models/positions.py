"""Position encodings: rotary with its scalings, sinusoidal tables, relative biases and ALiBi."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from research.kernels.patterns import distances
from research.parameters import Parameter
from research.settings import ModelSettings

# --- rotary -----------------------------------------------------------------------------------------------------------


def rotary_frequencies(settings: ModelSettings, local: bool) -> tuple[np.ndarray, float]:
    """Radians a position of each pair of a head, float32 `[head_dim / 2]`, and a factor of what is rotated.

    `linear` divides all of them (Chen et al. 2023); `ntk` raises the base (bloc97 2023, in Peng et al. 2024, eq. 16);
    `llama3` divides those that turn seldom in the original context (Llama Team 2024, 3.2); `yarn` does so over a ramp
    of pairs and sharpens the softmax (Peng et al. 2024, section 3). Layers of local attention are never scaled
    where they have a base of their own.
    """
    width = settings.head_width
    own_base = local and settings.rotary_base_local is not None
    base = float(settings.rotary_base_local if own_base else settings.rotary_base)  # type: ignore[arg-type]
    kind, factor = "none" if own_base else settings.rotary_scaling, settings.rotary_factor
    if kind == "ntk":
        base *= factor ** (width / (width - 2))
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    plain = np.float32(1.0) / np.float32(base) ** exponents
    if kind in {"none", "ntk"}:
        return plain, 1.0
    slow = plain / np.float32(factor)
    if kind == "linear":
        return slow, 1.0
    length = settings.rotary_original_length
    assert length is not None
    if kind == "llama3":
        turns = length * plain / (2 * math.pi)
        kept = np.clip((turns - settings.rotary_low) / (settings.rotary_high - settings.rotary_low), 0.0, 1.0)
        sharpness = 1.0
    else:

        def pair(turns: float) -> float:
            return width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))

        first, last = math.floor(pair(settings.rotary_high)), math.ceil(pair(settings.rotary_low))
        first, last = max(first, 0), min(last, width - 1)
        span = max(last - first, 0.001)
        kept = 1.0 - np.clip((np.arange(width // 2, dtype=np.float32) - first) / span, 0.0, 1.0)
        sharpness = 0.1 * math.log(factor) + 1.0 if factor > 1.0 else 1.0
    return ((1.0 - kept) * slow + kept * plain).astype(np.float32), sharpness


def rotary(
    x: Float[Array, "batch seq heads head_dim"],
    positions: Int[Array, "batch seq"],
    frequencies: np.ndarray,
    factor: float = 1.0,
) -> Float[Array, "batch seq heads head_dim"]:
    """Rotary position encoding (Su et al. 2021, section 3.4.2), the two halves of a head paired, in float32."""
    angles = (positions.astype(jnp.float32)[:, :, None] * jnp.asarray(frequencies)[None, None, :])[:, :, None, :]
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    if factor != 1.0:
        cosine, sine = cosine * factor, sine * factor
    # Each half is cast by itself, lest the gradient join its halves in float32.
    first, second = (half.astype(jnp.float32) for half in jnp.split(x, 2, axis=-1))
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate([half.astype(x.dtype) for half in turned], axis=-1)


# --- absolute ---------------------------------------------------------------------------------------------------------


def sinusoids(positions: Int[Array, "batch seq"], width: int) -> Float[Array, "batch seq width"]:
    """Sines in the first half, cosines in the second, wavelengths 2 pi to 20000 pi (Vaswani et al. 2017, 3.5)."""
    frequencies = np.power(10_000.0, -np.arange(0, width, 2) / width).astype(np.float32)
    angles = positions.astype(jnp.float32)[:, :, None] * jnp.asarray(frequencies)[None, None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


# --- biases of attention ----------------------------------------------------------------------------------------------


def bias_parameters(settings: ModelSettings) -> list[Parameter]:
    """The table of a relative bias, which all layers of a stack share."""
    if settings.position != "relative":
        return []
    shape = (settings.relative_buckets, settings.num_heads)
    std = settings.embed_dim**-0.5
    return [Parameter("relative_bias/table", shape, ("buckets", "heads"), "bias", 1, settings.num_heads, std=std)]


def attention_bias(
    settings: ModelSettings,
    table: Float[Array, "buckets heads"] | None,
    queries: int,
    keys: int,
    query_offset: Int[Array, ""] | int = 0,
    *,
    causal: bool,
) -> Float[Array, "heads query key"] | None:
    """What is added to the attention logits by distance alone: within a segment that is the difference of positions."""
    if settings.position == "alibi":
        distance = jnp.abs(distances(queries, keys, query_offset)).astype(jnp.float32)
        return -jnp.asarray(alibi_slopes(settings.num_heads))[:, None, None] * distance[None]
    if settings.position != "relative":
        return None
    assert table is not None
    buckets = jnp.asarray(relative_buckets(settings, causal))
    most = settings.relative_max_distance
    places = jnp.clip(distances(queries, keys, query_offset), -most, most) + most
    return jnp.moveaxis(table[buckets[places]], -1, 0).astype(jnp.float32)


def alibi_slopes(num_heads: int) -> np.ndarray:
    """The slope of each head (Press et al. 2022, section 3): a geometric sequence, interleaved past powers of two."""
    whole = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * (head + 1) / whole) for head in range(whole)]
    slopes += [2.0 ** (-4.0 * (2 * extra + 1) / whole) for extra in range(num_heads - whole)]
    return np.asarray(slopes, np.float32)


def relative_buckets(settings: ModelSettings, causal: bool) -> np.ndarray:
    """The bucket of each distance from -relative_max_distance to +relative_max_distance (Raffel et al. 2020, 2.1).

    Half of the buckets hold one distance each, the others ranges that grow logarithmically. Where both sides are seen,
    one half of all buckets is for keys behind the query.
    """
    most = settings.relative_max_distance
    distance = np.arange(-most, most + 1)
    count = settings.relative_buckets if causal else settings.relative_buckets // 2
    ahead = np.zeros_like(distance) if causal else np.where(distance < 0, count, 0)
    size = np.maximum(distance, 0) if causal else np.abs(distance)
    exact = count // 2
    # In float32, as T5 was trained: the boundaries of buckets are where its rounding puts them.
    growth = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact)) / np.float32(math.log(most / exact))
    far = exact + (growth * np.float32(count - exact)).astype(np.int32)
    return (ahead + np.where(size < exact, size, np.minimum(far, count - 1))).astype(np.int32)

"""Every attention kernel is the formula, with the masks that these matrices show."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.kernels import Pattern, attention
from research.kernels.attention import Form, Operands
from tests.small import assert_close

KERNELS = attention.BACKENDS
CAUSAL, BIDIRECTIONAL, NARROW = Pattern(causal=True), Pattern(causal=False), Pattern(causal=True, window=1)
ONE, THREE, SHORT, LATE = [1] * 6, [1, 1, 2, 2, 2, 3], [1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]

# name: pattern, segments of queries, segments of keys, place of the first query, and who sees whom.
MASKS: dict[str, tuple[Pattern, list[int], list[int], int, list[str]]] = {
    "causal": (CAUSAL, ONE, ONE, 0, ["x.....", "xx....", "xxx...", "xxxx..", "xxxxx.", "xxxxxx"]),
    "bidirectional": (BIDIRECTIONAL, ONE, ONE, 0, ["xxxxxx"] * 6),
    "causal window": (NARROW, ONE, ONE, 0, ["x.....", "xx....", ".xx...", "..xx..", "...xx.", "....xx"]),
    "window": (Pattern(False, 1), ONE, ONE, 0, ["xx....", "xxx...", ".xxx..", "..xxx.", "...xxx", "....xx"]),
    "window of none": (Pattern(False, 0), ONE, ONE, 0, ["x.....", ".x....", "..x...", "...x..", "....x.", ".....x"]),
    "causal segments": (CAUSAL, THREE, THREE, 0, ["x.....", "xx....", "..x...", "..xx..", "..xxx.", ".....x"]),
    "segments": (BIDIRECTIONAL, THREE, THREE, 0, ["xx....", "xx....", "..xxx.", "..xxx.", "..xxx.", ".....x"]),
    "windowed segments": (NARROW, THREE, THREE, 0, ["x.....", "xx....", "..x...", "..xx..", "...xx.", ".....x"]),
    "padding behind": (BIDIRECTIONAL, SHORT, SHORT, 0, ["xxxx..", "xxxx..", "xxxx..", "xxxx..", "....xx", "....xx"]),
    "causal padding before": (CAUSAL, LATE, LATE, 0, ["x.....", "xx....", "..x...", "..xx..", "..xxx.", "..xxxx"]),
    "cached": (CAUSAL, [1, 1], SHORT, 2, ["xxx...", "xxxx.."]),
    "cached after padding": (CAUSAL, [1, 1], [0, 1, 1, 1, 1, 0], 3, [".xxx..", ".xxxx."]),
    "cached window": (NARROW, [1, 1], SHORT, 2, [".xx...", "..xx.."]),
}


def shown(rows: list[str]) -> np.ndarray:
    return np.array([[mark == "x" for mark in row] for row in rows])


def by_loops(query: np.ndarray, key: np.ndarray, value: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """One position and one head at a time, in float64."""
    query, key, value = (np.asarray(array, np.float64) for array in (query, key, value))
    out = np.zeros_like(query)
    groups = query.shape[2] // key.shape[2]
    for batch, place, head in np.ndindex(query.shape[:3]):
        group = head // groups
        places = np.flatnonzero(seen[place])
        scores = [query[batch, place, head] @ key[batch, k, group] / math.sqrt(query.shape[3]) for k in places]
        weights = np.exp(scores - np.max(scores))
        for k, weight in zip(places, weights / weights.sum(), strict=True):
            out[batch, place, head] += weight * value[batch, k, group]
    return out


def arrays(queries: int, keys: int, heads: int = 4, groups: int = 4, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = ((2, queries, heads, 6), (2, keys, groups, 6), (2, keys, groups, 6))
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def segments(ids: list[int]) -> jax.Array:
    return jnp.asarray([ids, ids], jnp.int32)


@functools.cache
def compiled(kernel: str, pattern: Pattern, known: bool) -> Any:
    """`known`: the first query's place is known when compiling, which lets a kernel leave out what is hidden."""

    def run(q: Any, k: Any, v: Any, queries: Any, keys: Any, offset: Any) -> Any:
        return KERNELS[kernel](Operands(q, k, v, queries, keys, offset), Form(pattern))

    return jax.jit(run, static_argnums=5) if known else jax.jit(run)


@pytest.mark.parametrize("name", MASKS)
def test_a_pattern_is_its_matrix(name: str) -> None:
    pattern, queries, keys, offset, rows = MASKS[name]
    seen = pattern.visible(segments(queries), segments(keys), offset)
    np.testing.assert_array_equal(seen, np.stack([shown(rows)] * 2))
    assert np.asarray(seen).any(axis=-1).all()


@pytest.mark.parametrize("kernel", KERNELS)
class TestEveryKernel:
    @pytest.mark.parametrize("name", MASKS)
    def test_is_the_formula_under_every_mask(self, kernel: str, name: str) -> None:
        pattern, queries, keys, offset, rows = MASKS[name]
        query, key, value = arrays(len(queries), len(keys))
        out, largest = self.run(kernel, query, key, value, pattern, queries, keys, offset)
        seen = shown(rows)
        assert_close(out, by_loops(query, key, value, seen))
        real = seen & (np.array(queries) > 0)[:, None]
        logits = np.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(6)
        np.testing.assert_allclose(largest, logits[:, :, real].max(), rtol=1e-5)

    @pytest.mark.parametrize("groups", [1, 2, 4])
    def test_groups_of_heads_share_keys(self, kernel: str, groups: int) -> None:
        query, key, value = arrays(6, 6, groups=groups)
        out, _ = self.run(kernel, query, key, value, CAUSAL, THREE, THREE)
        assert_close(out, by_loops(query, key, value, shown(MASKS["causal segments"][-1])))

    def test_rows_of_padding_alone_are_finite(self, kernel: str) -> None:
        query, key, value = arrays(6, 6)
        for pattern in (CAUSAL, BIDIRECTIONAL):
            out, largest = self.run(kernel, query, key, value, pattern, [0] * 6, [0] * 6)
            assert np.isfinite(out).all() and np.isfinite(largest)

    def test_gradients_are_those_of_the_formula_and_nothing_flows_through_a_mask(self, kernel: str) -> None:
        pattern, ids, _, _, rows = MASKS["causal segments"]
        query, key, value = arrays(6, 6)
        direction = np.random.default_rng(1).normal(size=query.shape).astype(np.float32)

        def along(*parts: Any) -> jax.Array:
            return jnp.sum(direction * self.run(kernel, *parts, pattern, ids, ids)[0])

        found = jax.grad(along, argnums=(0, 1, 2))(query, key, value)
        for number, gradient in enumerate(found):
            for place in [(0, 0, 0, 0), (1, 3, 1, 2), (0, 5, 0, 5), (1, 4, 1, 1)]:
                moved = []
                for sign in (1, -1):
                    parts = [part.astype(np.float64) for part in (query, key, value)]
                    parts[number][place] += sign * 1e-4
                    moved.append(np.sum(direction * by_loops(*parts, shown(rows))))
                np.testing.assert_allclose(gradient[place], (moved[0] - moved[1]) / 2e-4, rtol=1e-4, atol=1e-5)
        of_row = jax.grad(lambda v: self.run(kernel, query, key, v, pattern, ids, ids)[0][0, 3].sum())(value)
        np.testing.assert_array_equal(np.abs(of_row[0]).sum(axis=(1, 2)) > 0, shown(rows)[3])

    def test_logits_and_weights_are_float32_under_bfloat16(self, kernel: str) -> None:
        query, key, value = (jnp.asarray(array, jnp.bfloat16) for array in arrays(6, 6))
        query = query * jnp.asarray(8, jnp.bfloat16)
        out, largest = self.run(kernel, query, key, value, CAUSAL, ONE, ONE)
        assert out.dtype == jnp.bfloat16 and largest.dtype == jnp.float32
        rounded = [np.asarray(array, np.float32) for array in (query, key, value)]
        exact = by_loops(*rounded, shown(MASKS["causal"][-1]))
        np.testing.assert_allclose(np.asarray(out, np.float32), exact, rtol=2**-7, atol=2**-6)

    @staticmethod
    def run(kernel: str, q: Any, k: Any, v: Any, pattern: Pattern, queries: Any, keys: Any, offset: int = 0) -> Any:
        place = jnp.asarray(offset, jnp.int32) if offset else 0
        return compiled(kernel, pattern, not offset)(q, k, v, segments(queries), segments(keys), place)

    def test_what_bends_the_logits_is_the_formula(self, kernel: str) -> None:
        """Scale, then cap, then bias, and a prefix that is seen from before."""
        query, key, value = arrays(6, 6, groups=2)
        bias = np.random.default_rng(2).normal(size=(4, 6, 6)).astype(np.float32)
        flags = np.array([[1, 1, 0, 1, 0, 0]] * 2, np.int32)
        pattern, ids = Pattern(causal=True, prefix=True), segments(THREE)
        out, _ = KERNELS[kernel](
            Operands(
                *map(jnp.asarray, (query, key, value)), ids, ids, key_prefix=jnp.asarray(flags), bias=jnp.asarray(bias)
            ),
            Form(pattern, scale=0.7, softcap=2.0),
        )
        seen = shown(["xx....", "xx....", "..xx..", "..xx..", "..xxx.", ".....x"])
        np.testing.assert_array_equal(pattern.visible(ids, ids, 0, jnp.asarray(flags))[0], seen)
        key, value = (np.repeat(array, 2, axis=2) for array in (key, value))
        logits = 2.0 * np.tanh(0.7 * np.einsum("bqhd,bkhd->bhqk", query, key, dtype=np.float64) / 2.0) + bias
        weights = np.exp(np.where(seen, logits, -np.inf))
        expected = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(axis=-1, keepdims=True), value)
        assert_close(out, expected)

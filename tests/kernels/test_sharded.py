"""Heads, experts and lookups that split their own work compute what the formulas compute, and send what they say."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.kernels import embedding, experts, grouped_experts, vocabulary
from research.kernels.embedding import ShardedEmbedding
from research.kernels.layout import Layout
from research.kernels.sharded_experts import ShardedCapacity, ShardedExperts
from research.kernels.sharded_vocabulary import ShardedVocabulary
from tests.kernels.meshes import layout
from tests.small import assert_close, jit

LAYOUTS: dict[str, tuple[str, dict[str, int]]] = {
    "dp": ("dp", {}),
    "fsdp": ("fsdp", {"replica": 2}),
    "tp": ("tp", {}),
    "fsdp_tp_sp": ("fsdp_tp_sp", {"fsdp": 2}),
    "fsdp_ep": ("fsdp_ep", {"fsdp": 2, "expert": 2, "tensor": 2}),
}
FORMS = {"plain": vocabulary.PLAIN, "all": vocabulary.Form(2.0, 0.2, 0.05)}


def made(name: str) -> Layout:
    preset, axes = LAYOUTS[name]
    return layout(preset, **axes)


def normal(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


# --- the vocabulary head ----------------------------------------------------------------------------------------------


@functools.cache
def head_inputs() -> tuple[jax.Array, ...]:
    """37 tokens, which no mesh divides."""
    rng = np.random.default_rng(0)
    targets, weights = rng.integers(0, 24, 37), rng.random(37) * (rng.random(37) < 0.8)
    floats = normal(rng, 37, 8), normal(rng, 24, 8), normal(rng, 24)
    return *floats, jnp.asarray(targets, jnp.int32), jnp.asarray(weights, jnp.float32)


def head(loss: Any, form: vocabulary.Form, biased: bool) -> Any:
    *floats, targets, weights = head_inputs()

    def tripled(hidden: jax.Array, table: jax.Array, bias: jax.Array) -> tuple[jax.Array, Any]:
        found = loss(hidden, table, bias if biased else None, targets, weights, form)
        return 3.0 * found.total, found

    return jit(jax.value_and_grad(tripled, argnums=(0, 1, 2), has_aux=True))(*floats)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("form", FORMS)
def test_the_head_of_a_mesh_is_the_head_of_one_device(name: str, form: str) -> None:
    sharded = ShardedVocabulary(made(name), chunk=64)
    assert_close(head(sharded, FORMS[form], form == "all"), head(vocabulary.reference, FORMS[form], form == "all"))


def test_the_head_of_a_mesh_gathers_its_table_once_and_holds_no_logits_of_all_tokens() -> None:
    of = made("fsdp")
    tokens, vocab, width = 512, 96, 16
    shapes = (
        ((tokens, width), jnp.float32),
        ((vocab, width), jnp.float32),
        ((tokens,), jnp.int32),
        ((tokens,), jnp.float32),
    )
    loss = ShardedVocabulary(of, chunk=vocab * 16)

    def total(hidden: Any, table: Any, targets: Any, weights: Any) -> Any:
        return loss(hidden, table, None, targets, weights).total

    program = jit(jax.grad(total, argnums=(0, 1))).lower(*(jax.ShapeDtypeStruct(*shape) for shape in shapes))
    text = program.as_text()
    assert text.count("stablehlo.all_gather") == text.count("stablehlo.reduce_scatter") == 1
    assert f"tensor<16x{vocab}xf32>" in text
    assert f"x{vocab}xf32>" not in text.replace(f"<16x{vocab}xf32>", "").replace(f"<{width}x{vocab}xf32>", "")


# --- experts ----------------------------------------------------------------------------------------------------------


@functools.cache
def expert_inputs(rows: int) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(1)
    chosen = np.argsort(rng.random((rows, 12, 4)), axis=-1)[..., :2]
    chosen[0] = [3, 1]  # one row sends all of its tokens to the same experts
    floats = normal(rng, rows, 12, 8), normal(rng, rows, 12, 2), normal(rng, 4, 8, 16), normal(rng, 4, 8, 16)
    return *floats, normal(rng, 4, 16, 8), jnp.asarray(chosen, jnp.int32)


def mixture(route: Any, rows: int = 8, **more: Any) -> Any:
    *floats, chosen = expert_inputs(rows)

    def mean(x: Any, shares: Any, gate: Any, up: Any, down: Any) -> Any:
        out = route(experts.Routed(x, chosen, shares), experts.Weights(gate, up, down), jax.nn.silu, **more)
        return jnp.mean(jnp.sin(out)), out

    return jit(jax.value_and_grad(mean, argnums=(0, 1, 2, 3, 4), has_aux=True))(*floats)


def in_small_blocks(*given: Any) -> Any:
    def product(rows: Any, weights: Any, sizes: Any) -> Any:
        return grouped_experts.blocks(rows, weights, sizes, 8)

    return grouped_experts.grouped(*given, product=product, block=8)


GROUPED = {"blocks of 8": in_small_blocks, "blocks": grouped_experts.in_blocks, "groups": grouped_experts.in_groups}


@pytest.mark.parametrize("name", GROUPED)
def test_grouped_experts_are_the_formula(name: str) -> None:
    assert_close(mixture(GROUPED[name]), mixture(experts.reference))


@pytest.mark.parametrize("sizes", [[100, 0, 60, 96], [0, 50, 0, 30], [0, 0, 0, 256]])
def test_the_kernel_of_the_weights_gradient_is_the_ragged_product_s(sizes: list[int]) -> None:
    """With experts that nobody chose, and rows (of zeros) behind the last group."""
    rng = np.random.default_rng(3)
    used = jnp.asarray(np.arange(256) < sum(sizes))[:, None]
    rows, weights = jnp.where(used, normal(rng, 256, 128), 0.0), normal(rng, 4, 128, 256)
    direction, counts = normal(rng, 256, 256), jnp.asarray(sizes, jnp.int32)

    def pulled(product: Any) -> Any:
        return jit(lambda *given: jax.vjp(lambda r, w: product(r, w, counts), *given)[1](direction))(rows, weights)

    found = pulled(lambda *given: grouped_experts.tiled(*given, True))
    assert_close(found, pulled(grouped_experts.ragged))


@pytest.mark.parametrize("name", LAYOUTS)
def test_experts_of_a_mesh_are_those_of_one_device(name: str) -> None:
    inner = GROUPED["groups" if name == "tp" else "blocks of 8"]
    assert_close(mixture(ShardedExperts(inner, made(name))), mixture(experts.reference))
    assert_close(mixture(ShardedCapacity(made(name)), places=4), mixture(experts.capacity, places=4))


def test_a_row_alone_reaches_the_experts_of_all_devices() -> None:
    of = layout("tp", expert=4, tensor=2)
    assert_close(mixture(ShardedExperts(in_small_blocks, of), rows=1), mixture(experts.reference, rows=1))
    assert_close(mixture(ShardedCapacity(of), rows=1, places=4), mixture(experts.capacity, rows=1, places=4))


def test_each_token_is_computed_by_its_own_experts_alone() -> None:
    """Rows that are multiplied: those of the picks, and less than a block an expert."""
    chosen = expert_inputs(8)[-1].reshape(-1, 2)
    picks, block = chosen.size, 8
    group = grouped_experts.arrange(chosen, 4, block)
    assert picks <= int(group.sizes.sum()) <= group.source.shape[0] < picks + 5 * block
    counts = np.bincount(np.asarray(chosen).reshape(-1), minlength=4)
    np.testing.assert_array_equal(group.sizes, -(-counts // block) * block)
    owners = np.repeat(np.arange(4), np.asarray(group.sizes))
    np.testing.assert_array_equal(owners[np.asarray(group.place)], chosen)
    np.testing.assert_array_equal(
        np.asarray(group.source)[np.asarray(group.place)], np.arange(96)[:, None].repeat(2, 1)
    )


def test_choices_of_experts_that_are_elsewhere_have_no_row() -> None:
    chosen = jnp.asarray([[-1, 0], [5, 1], [1, 2]], jnp.int32)
    group = grouped_experts.arrange(chosen, 2, 1)
    np.testing.assert_array_equal(group.sizes, [1, 2])
    np.testing.assert_array_equal(group.place, [[6, 0], [6, 1], [2, 6]])
    np.testing.assert_array_equal(group.source, [0, 1, 2, 3, 3, 3])


# --- lookups ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("shape", [(8, 12), (1, 3)])
def test_rows_are_found_on_a_mesh_as_on_one_device(name: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    ids, direction = jnp.asarray(rng.integers(0, 24, shape), jnp.int32), normal(rng, *shape, 8)
    table = normal(rng, 24, 8)

    def found(lookup: Any) -> Any:
        def along(table: jax.Array) -> tuple[jax.Array, jax.Array]:
            out = lookup(table, ids, jnp.dtype(jnp.float32))
            return jnp.sum(out * direction), out

        return jit(jax.value_and_grad(along, has_aux=True))(table)

    assert_close(found(ShardedEmbedding(made(name))), found(embedding.reference))


def test_a_lookup_never_gathers_the_table() -> None:
    lookup = ShardedEmbedding(layout("fsdp_sp", fsdp=4, sequence=2))
    shapes = jax.ShapeDtypeStruct((4096, 16), jnp.float32), jax.ShapeDtypeStruct((8, 8), jnp.int32)
    text = jit(lambda table, ids: lookup(table, ids, jnp.dtype(jnp.bfloat16))).lower(*shapes).as_text()
    assert "tensor<4096x2xf32>" in text and "stablehlo.all_to_all" in text
    gathered = [line for line in text.splitlines() if "stablehlo.all_gather" in line]
    assert gathered and all("xi32>" in line for line in gathered)

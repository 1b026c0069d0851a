"""Every product is `x @ weight` with its gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from research.kernels import products
from tests.small import assert_close

KERNELS = {"reference": products.reference, "untransposed": products.untransposed}


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(kernel: str, x: Any, weight: Any, cotangent: Any) -> tuple[Any, ...]:
    out, backward = jax.vjp(KERNELS[kernel], x, weight)
    return out, *backward(cotangent)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("rows", [(), (5,), (3, 4)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2**-6)])
def test_value_and_gradients_are_those_of_the_formula(
    kernel: str, rows: tuple[int, ...], dtype: Any, tolerance: float
) -> None:
    rng = np.random.default_rng(len(rows))
    x, weight = jnp.asarray(rng.normal(size=(*rows, 6)), dtype), jnp.asarray(rng.normal(size=(6, 7)), dtype)
    cotangent = jnp.asarray(rng.normal(size=(*rows, 7)), dtype)
    out, *gradients = value_and_gradients(kernel, x, weight, cotangent)
    wide_x, wide_weight, wide = (np.asarray(array, np.float64) for array in (x, weight, cotangent))
    expected = (
        wide_x @ wide_weight,
        wide @ wide_weight.T,
        np.einsum("ri,ro->io", wide_x.reshape(-1, 6), wide.reshape(-1, 7)),
    )
    assert [array.dtype for array in (out, *gradients)] == [dtype] * 3
    assert_close(jax.tree.map(lambda a: np.asarray(a, np.float64), (out, *gradients)), expected, tolerance)


def transposes(jaxpr: Any) -> int:
    """Transpositions of whole batches of rows in a program."""
    found = sum(e.primitive.name == "transpose" and e.invars[0].aval.shape[0] == 100 for e in jaxpr.eqns)
    return found + sum(transposes(inner) for e in jaxpr.eqns for inner in jaxprs_in_params(e.params))


def test_untransposed_contracts_the_rows_of_both_operands_where_they_lie() -> None:
    x, weight = jnp.ones((100, 6)), jnp.ones((6, 7))
    program = jax.make_jaxpr(jax.grad(lambda x, w: products.untransposed(x, w).sum(), argnums=1))(x, weight)
    assert transposes(program.jaxpr) == 0
    products_of_rows = [
        equation.params["dimension_numbers"]
        for equation in program.jaxpr.eqns
        if equation.primitive.name == "dot_general" and equation.outvars[0].aval.shape == (6, 7)
    ]
    assert products_of_rows == [(((0,), (0,)), ((), ()))]


# --- behind a non-linearity ---------------------------------------------------------------------------------------

NONLINEARITIES = {"gelu": jax.nn.gelu, "gated": lambda gate, up: jax.nn.silu(gate) * up}


@pytest.mark.parametrize("product", KERNELS)
@pytest.mark.parametrize("name", NONLINEARITIES)
def test_recomputed_is_the_formula_with_its_gradients(name: str, product: str) -> None:
    rng, act = np.random.default_rng(0), NONLINEARITIES[name]
    inputs = tuple(jnp.asarray(rng.normal(size=(3, 4, 6)), jnp.float32) for _ in range(1 + (name == "gated")))
    weight = jnp.asarray(rng.normal(size=(6, 7)), jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=(3, 4, 7)), jnp.float32)
    found = []
    for activated in (products.activated, products.recomputed):
        out, back = jax.vjp(lambda x, w, way=activated: way(KERNELS[product], act, x, w), inputs, weight)
        found.append((out, *back(cotangent)))
    assert_close(found[1], found[0])


def test_recomputed_keeps_the_inputs_alone() -> None:
    """The compiled gradient of a chain of MLPs needs less memory than what their inner values would take."""
    wide, layers, rows = 512, 8, 256

    def loss(activated: products.Activated, x: Any, up: Any, down: Any) -> Any:
        for layer in range(layers):
            x += activated(products.untransposed, jax.nn.gelu, (products.untransposed(x, up[layer]),), down[layer])
        return jnp.sum(x**2)

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((rows, 8), (layers, 8, wide), (layers, wide, 8))]
    temporary = {}
    for activated in (products.activated, products.recomputed):
        gradient = jax.jit(jax.grad(functools.partial(loss, activated), argnums=(0, 1, 2)))
        temporary[activated] = gradient.lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    inner = 4 * rows * wide
    assert temporary[products.recomputed] < temporary[products.activated] - layers * inner

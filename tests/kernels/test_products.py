"""Every product is `x @ weight` with its gradients; and the choice of kernels."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from research.kernels import attention, choice, choose, experts, products, vocabulary
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


@pytest.mark.parametrize(
    ("name", "platform", "devices", "chosen"),
    [
        ("auto", "cpu", 1, choice.CPU),
        ("auto", "cpu", 8, choice.REFERENCE),
        ("auto", "gpu", 1, choice.REFERENCE),
        ("auto", "tpu", 4, choice.REFERENCE),
        ("reference", "cpu", 1, choice.REFERENCE),
    ],
)
def test_kernels_are_chosen_by_name_platform_and_devices(name: str, platform: str, devices: int, chosen: Any) -> None:
    assert choose(name, platform, devices) is chosen


@pytest.mark.parametrize("kernels", [choice.CPU, choice.REFERENCE])
def test_the_names_that_are_recorded_are_those_of_the_kernels(kernels: choice.Kernels) -> None:
    rooms = {"attention": attention, "vocabulary_loss": vocabulary, "product": products, "experts": experts}
    assert {name: getattr(rooms[name], own) for name, own in kernels.names} == {
        name: getattr(kernels, name) for name in rooms
    }

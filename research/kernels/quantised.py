"""Matrix products in int8 through qwix: forward and input gradients; weight gradients keep their type.

Which of the three products of a layer can be coarse is the finding of Wortsman et al. 2023 ("Stable and low-precision
training for large-scale vision-language models", section 2): the weight gradient sums over all tokens of a batch, and
there the noise of eight bits is not averaged away.
"""

import dataclasses
import importlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.errors import UserError
from research.kernels.choice import Kernels

_ROWS_TIMES_COLUMNS = (((1,), (0,)), ((), ()))


def kernels(base: Kernels, scheme: str) -> Kernels:
    """The kernels with the products that `model.quantisation` names.

    Raises:
      UserError: qwix is not installed.
    """
    if scheme == "none":
        return base
    assert scheme == "int8", scheme
    try:
        _qwix()
    except ImportError as error:
        raise UserError(
            "model.quantisation=int8 needs the package qwix, which is not installed: pip install 'isoflop[int8]', or "
            "set model.quantisation=none"
        ) from error
    names = dict(base.names) | {"product": "int8"}
    reasons = dict(base.reasons) | {"product": "model.quantisation=int8"}
    return dataclasses.replace(base, product=int8, names=tuple(names.items()), reasons=tuple(reasons.items()))


def _qwix() -> Any:
    return importlib.import_module("qwix")  # an extra, and slow to import


def scaled_product(
    left: Float[Array, "rows inputs"], right: Float[Array, "inputs outputs"]
) -> Float[Array, "rows outputs"]:
    """The product in int8, summed in int32: each row of `left` and each column of `right` by its own largest value."""
    qwix = _qwix()
    # The library mixes types and ranks as NumPy does.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        rows = qwix.quantize(left, jnp.int8, channelwise_axes=(0,))
        columns = qwix.quantize(right, jnp.int8, channelwise_axes=(1,))
        return qwix.dot_general(rows, columns, _ROWS_TIMES_COLUMNS).astype(left.dtype)


@jax.custom_vjp
def int8(x: Float[Array, "*rows inputs"], weight: Float[Array, "inputs outputs"]) -> Float[Array, "*rows outputs"]:
    """`x @ weight` in int8, and the gradient of `x` likewise; the gradient of `weight` in the operands' own type.

    The rounding is passed over by the gradient (straight through). Zeros stay zeros; what is not finite stays so.
    """
    return _forward(x, weight)[0]


def _forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    out = scaled_product(x.reshape(-1, x.shape[-1]), weight)
    return out.reshape(*x.shape[:-1], weight.shape[-1]), (x, weight)


def _backward(kept: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, weight = kept
    rows, errors = x.reshape(-1, x.shape[-1]), cotangent.reshape(-1, cotangent.shape[-1])
    gradient = jax.lax.dot_general(rows, errors, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return scaled_product(errors, weight.T).reshape(x.shape), gradient.astype(weight.dtype)


int8.defvjp(_forward, _backward)

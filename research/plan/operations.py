"""Floating-point operations of a traced program: products by their type, attention's kernels by what they are told."""

import dataclasses
import math
import re
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from research.kernels.attention import Attention, Form, Operands
from research.models.flops import Work, visible_pairs

_SCOPE = "visible_products"
# Products of the size of the scores that a kernel of attention computes. Backwards there are two kernels, either of
# which computes scores and their gradients again (Dao 2024, section 2.3).
_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}


class Operations(NamedTuple):
    """Of a program, in FLOPs; loops times their lengths, of branches the costliest.

    Attributes:
      products: of matrix products outside of kernels, but for those of `int8`.
      int8: of matrix products in int8.
      kernels: of attention's Pallas kernels.
    """

    products: float = 0.0
    int8: float = 0.0
    kernels: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.products + self.int8 + self.kernels

    def plus(self, other: "Operations", times: float = 1.0) -> "Operations":
        """With those of another part, which runs so many times."""
        return Operations(*(mine + times * its for mine, its in zip(self, other, strict=True)))


@dataclasses.dataclass(frozen=True)
class Noted:
    """An attention whose kernels carry, as the name of a scope, how large a product of what the pattern shows is.

    A trace shows no more of a kernel's mask than its blocks. Derivatives, recomputation and loops keep the name.
    """

    inner: Attention

    def __call__(
        self, of: Operands, form: Form
    ) -> tuple[Float[Array, "batch query heads head_dim"], Float[Array, ""] | None]:
        """See `kernels.attention`."""
        batch, queries, heads, width = of.query.shape
        keys, masked = of.key.shape[1], form.pattern.causal or form.pattern.window is not None
        pairs = visible_pairs(Work(queries, form.pattern), queries, None) if masked else float(queries * keys)
        with jax.named_scope(f"{_SCOPE}={int(batch * heads * width * pairs)}"):
            return self.inner(of, form)


def operations(jaxpr: Any) -> Operations:
    """Of a traced program, whose kernels of attention are `Noted`."""
    return _inside(jaxpr, None)


def _inside(jaxpr: Any, noted: int | None) -> Operations:
    """`noted` is the size of a product by the scope that the program stands in."""
    found = Operations()
    for equation in jaxpr.eqns:
        told = re.search(rf"{_SCOPE}=(\d+)", str(equation.source_info.name_stack))
        here = int(told[1]) if told else noted
        name, times = equation.primitive.name, 1.0
        if name == "pallas_call":
            found = found.plus(_kernel(equation, here))
            continue
        if name == "dot_general":
            found = found.plus(_product(equation))
        elif name in {"ragged_dot", "ragged_dot_general"}:
            left, right = (var.aval.shape for var in equation.invars[:2])
            found = found.plus(Operations(products=2.0 * math.prod(left) * right[-1]))
        elif name == "scan":
            times = float(equation.params["length"])
        inner = [_inside(each, here) for each in _parts(equation)]
        if name == "cond":
            inner = [max(inner, key=lambda branch: branch.total)]
        for each in inner:
            found = found.plus(each, times)
    return found


def _kernel(equation: Any, noted: int | None) -> Operations:
    name = str(equation.params["name"])
    phase = next((phase for phase in _PRODUCTS if f"_{phase}_" in f"{name}_"), None)
    assert phase is not None and noted is not None, f"a kernel that is not counted: {name}"
    return Operations(kernels=2.0 * _PRODUCTS[phase] * noted)


def _product(equation: Any) -> Operations:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, right = (var.aval for var in equation.invars[:2])
    flops = 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left.shape[axis] for axis in contracted)
    coarse = left.dtype == right.dtype == np.int8
    return Operations(int8=flops) if coarse else Operations(products=flops)


def _parts(equation: Any) -> list[Any]:
    """The programs within an equation."""
    found = []
    for value in equation.params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(each, "eqns"):
                found.append(each)
            elif hasattr(each, "jaxpr") and hasattr(each.jaxpr, "eqns"):
                found.append(each.jaxpr)
    return found

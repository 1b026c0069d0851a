"""Which matrix a weight is: stacked layers and experts hold one each, attention's heads lie side by side in theirs."""

import math
from typing import NamedTuple

from research.parameters import Parameter

STACKED = ("layers", "experts")


class Matrix(NamedTuple):
    """The axes of a weight by their part in `x @ W`.

    Attributes:
      stack: axes of which each position holds a weight of its own; they come first.
      inputs: axes that are summed over, next.
      outputs: the axes of the result, last.
    """

    stack: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def stacked_axes(parameter: Parameter) -> tuple[int, ...]:
    """The axes of which each position holds a weight of its own: layers, experts."""
    count = sum(name in STACKED for name in parameter.dimensions)
    assert all(name in STACKED for name in parameter.dimensions[:count]), f"{parameter.path}: {parameter.dimensions}"
    return tuple(range(count))


def matrix(parameter: Parameter) -> Matrix | None:
    """The axes of a weight that multiplies: a kernel, or a table of embeddings or of a head; none for any other.

    A kernel's inputs are the axes whose product is its fan in: `[layers, embed, heads, head_dim]` maps `embed` to all
    heads together, `[layers, heads, head_dim, embed]` all heads together to `embed`. A table's rows stand for inputs.
    """
    stack = stacked_axes(parameter)
    first, rank = len(stack), len(parameter.shape)
    if parameter.kind in {"embedding", "head"} and rank == first + 2:
        return Matrix(stack, (first,), (first + 1,))
    if parameter.kind != "kernel":
        return None
    ends = (end for end in range(first + 1, rank) if math.prod(parameter.shape[first:end]) == parameter.fan_in)
    end = next(ends, rank)
    assert math.prod(parameter.shape[end:]) == parameter.fan_out and end < rank, f"{parameter.path}: {parameter}"
    return Matrix(stack, tuple(range(first, end)), tuple(range(end, rank)))

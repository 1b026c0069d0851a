"""How a tensor in another library's layout looks in ours: one view serves reading and writing."""

import dataclasses
import functools
import math
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
    """A relabelling of dimensions: `(H D) E -> E H D` splits the rows of a stored matrix into heads and transposes it.

    A number counts parts that are stored in one tensor, of which ours is one: `E (3 H D) -> E H D`.

    Attributes:
      theirs: the stored dimensions, each a product of named or numbered factors.
      ours: the names in our order.
    """

    theirs: tuple[tuple[str, ...], ...]
    ours: tuple[str, ...]

    @property
    def factors(self) -> tuple[str, ...]:
        """All factors in the order in which they are stored."""
        return tuple(factor for group in self.theirs for factor in group)

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the stored tensor, for one of ours."""
        sizes = self._sizes(shape)
        return tuple(math.prod(sizes[factor] for factor in group) for group in self.theirs)

    def view(self, stored: np.ndarray, shape: tuple[int, ...], part: int = 0) -> np.ndarray:
        """Our view of (a part of) a stored tensor: nothing is read or copied, and writing to it writes the tensor.

        Args:
          stored: of `stored_shape(shape)`, contiguous or a memory map.
          shape: of ours.
          part: which of the parts, where the layout has a number.
        """
        sizes = self._sizes(shape)
        split = stored.reshape([sizes[factor] for factor in self.factors])
        chosen = split[tuple(part if factor.isdigit() else slice(None) for factor in self.factors)]
        left = [factor for factor in self.factors if not factor.isdigit()]
        return chosen.transpose([left.index(name) for name in self.ours])

    def _sizes(self, shape: tuple[int, ...]) -> Mapping[str, int]:
        named = dict(zip(self.ours, shape, strict=True))
        return named | {factor: int(factor) for factor in self.factors if factor.isdigit()}


@functools.cache
def layout(text: str) -> Layout:
    """The layout that is written `(H D) E -> E H D`."""
    left, _, right = text.partition(" -> ")
    groups: list[tuple[str, ...]] = []
    inside = False
    for word in left.replace("(", "( ").replace(")", " )").split():
        if word == "(":
            groups.append(())
            inside = True
        elif word == ")":
            inside = False
        elif inside:
            groups[-1] += (word,)
        else:
            groups.append((word,))
    found = Layout(tuple(groups), tuple(right.split()))
    named = sorted(factor for factor in found.factors if not factor.isdigit())
    assert named == sorted(found.ours), f"{text}: not the same dimensions on both sides"
    return found

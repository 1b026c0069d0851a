"""A ladder of sizes by compute: each rung gets so many tokens a parameter, and is named by its operations.

Arithmetic alone, so that a rung is the same whoever asks for it; `research/sweeps/budgets.py` counts the sizes.
"""

import dataclasses
import math
from collections.abc import Iterable

from research.errors import UserError


@dataclasses.dataclass(frozen=True)
class Size:
    """A model and a batch.

    Attributes:
      parameters: those that tokens are counted by, all of them or the non-embedding ones.
      step_tokens: raw tokens that one update sees.
      step_flops: model FLOPs of one update.
    """

    parameters: int
    step_tokens: float
    step_flops: float


@dataclasses.dataclass(frozen=True)
class Rung:
    """A size with a length.

    Attributes:
      size: of the model and its batch.
      num_steps: updates.
    """

    size: Size
    num_steps: int

    @property
    def tokens(self) -> float:
        """Raw tokens seen."""
        return self.num_steps * self.size.step_tokens

    @property
    def flops(self) -> float:
        """Model FLOPs in all."""
        return self.num_steps * self.size.step_flops

    @property
    def name(self) -> str:
        """Its compute, two digits: `1.3e18`."""
        return compute_name(self.flops)


def by_tokens(size: Size, tokens_per_parameter: float) -> Rung:
    """The rung that sees so many tokens a parameter (Hoffmann et al. 2022: about 20), to the nearest update.

    Raises:
      UserError: that is less than half an update.
    """
    wanted = tokens_per_parameter * size.parameters
    return Rung(size, _steps(wanted / size.step_tokens, f"{tokens_per_parameter:g} tokens a parameter"))


def by_compute(size: Size, flops: float) -> Rung:
    """The rung that spends a budget of model FLOPs, to the nearest update.

    Raises:
      UserError: that is less than half an update.
    """
    return Rung(size, _steps(flops / size.step_flops, f"a budget of {flops:.2g} FLOPs"))


def compute_name(flops: float) -> str:
    """Compute to two digits, in which rungs are told apart: `1.3e18`."""
    mantissa, exponent = f"{flops:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def ascending(rungs: Iterable[Rung]) -> list[Rung]:
    """Rungs by their compute, the smallest first."""
    return sorted(rungs, key=lambda rung: rung.flops)


def _steps(exact: float, what: str) -> int:
    if not math.isfinite(exact) or round(exact) < 1:
        raise UserError(f"{what} is {exact:.2g} of one update: ask for more, or lower train.batch_size")
    return round(exact)

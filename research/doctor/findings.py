"""What the examination of a law finds."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

HOLDS, FAILS, DOES_NOT_APPLY = "holds", "FAILS", "does not apply"

# What is hidden adds exactly nothing; this leaves room for a kernel that rescales what it sums.
HIDDEN = 1e-6
# Two programs that compute the same add in another order. By the type that is computed in.
SAME = {"float32": 1e-4, "bfloat16": 5e-2}
# Below this share of the largest leaf, a gradient is rounding (that of a key's bias is zero in exact arithmetic).
NEGLIGIBLE = 1e-2


@dataclasses.dataclass(frozen=True)
class Finding:
    """One row of the table.

    Attributes:
      law: name of the law.
      variant: backend, direction or execution that it was examined on.
      verdict: `holds`, `FAILS` or `does not apply`.
      quantity: what was measured, or why the law does not apply.
      measured: its value; none where nothing was measured.
      tolerance: the largest value at which the law holds.
    """

    law: str
    variant: str
    verdict: str
    quantity: str
    measured: float | None = None
    tolerance: float | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """The findings, and what was examined.

    Attributes:
      findings: in the order of the laws.
      subject: facts of the model and the device, by name.
      reduced: `{key: (configured, examined)}` of what was made smaller to fit the device.
    """

    findings: tuple[Finding, ...]
    subject: Mapping[str, Any]
    reduced: Mapping[str, tuple[Any, Any]]

    @property
    def holds(self) -> bool:
        """No law fails."""
        return all(finding.verdict != FAILS for finding in self.findings)

    def record(self) -> dict[str, Any]:
        """The report for a machine."""
        return {
            "holds": self.holds,
            "subject": dict(self.subject),
            "reduced": {key: list(values) for key, values in self.reduced.items()},
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
        }


def measured(law: str, variant: str, quantity: str, value: float, tolerance: float) -> Finding:
    """A law that holds up to a tolerance; what is not a number fails."""
    verdict = HOLDS if value <= tolerance else FAILS
    return Finding(law, variant, verdict, quantity, float(value), tolerance)


def inapplicable(law: str, why: str, variant: str = "") -> Finding:
    """A law that says nothing about the subject."""
    return Finding(law, variant, DOES_NOT_APPLY, why)


def powerless(law: str, variant: str, what: str) -> Finding:
    """A measurement that could not have found anything: the subject itself is broken."""
    return Finding(law, variant, FAILS, what)


def largest(values: Iterable[Any]) -> float:
    """The largest absolute value of all arrays, 0 of none; what is not a number counts as infinite."""
    found = 0.0
    for array in values:
        array = np.asarray(array, np.float64)
        if array.size:
            most = float(np.max(np.abs(array)))
            found = max(found, math.inf if math.isnan(most) else most)
    return found


def difference(found: Any, expected: Any) -> float:
    """The largest difference of two trees of arrays: of each leaf relative to its own largest value.

    Leaves that are small beside the largest one are measured against that.
    """
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    jax.tree.map(lambda a, b: pairs.append((np.asarray(a, np.float64), np.asarray(b, np.float64))), found, expected)
    least = NEGLIGIBLE * largest(b for _, b in pairs)
    return max((largest([a - b]) / max(largest([b]), least, 1e-30) for a, b in pairs), default=0.0)

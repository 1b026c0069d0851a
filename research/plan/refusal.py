"""What a compiler says of a program that does not fit."""

import re
from typing import NamedTuple

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)i?B?"


class Allocation(NamedTuple):
    """One buffer that the compiler names: bytes, shape, and the operation that it comes from."""

    bytes: int
    shape: str
    source: str


class Refusal(NamedTuple):
    """Why a program does not fit.

    Attributes:
      needed: bytes that it asks for; of temporaries alone where the compiler got no further.
      available: bytes of a device.
      temporaries: `needed` counts temporaries alone.
      largest: the largest buffers, where the compiler lists them.
    """

    needed: int
    available: int
    temporaries: bool
    largest: tuple[Allocation, ...]


def read(message: str) -> Refusal:
    """The numbers in a compiler's message of resources that ran out.

    Two forms: "... total memory required for HLO temporaries (81.71G) exceeds available HBM (15.75G)", and "Used 97.33G
    of 95.74G hbm ..." with a numbered list of the largest allocations.
    """
    temporaries = re.search(rf"HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)", message)
    used = temporaries or re.search(rf"Used {_SIZE} of {_SIZE} hbm", message)
    needed = _bytes(used[1], used[2]) if used else 0
    available = _bytes(used[3], used[4]) if used else 0
    largest = []
    for entry in re.split(r"\n\s*\d+\. Size: ", message)[1:]:
        size = re.match(_SIZE, entry)
        shape = re.search(r"Shape: (\S+)", entry)
        source = re.search(r'op_name="([^"]*)"', entry) or re.search(r"XLA label: (\S+)", entry)
        if size:
            largest.append(Allocation(_bytes(*size.groups()), shape[1] if shape else "", source[1] if source else ""))
    return Refusal(needed, available, bool(temporaries), tuple(largest))


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * _UNITS[unit])

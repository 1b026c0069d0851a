"""Which tokens of a window span corruption takes out, so that what is left and what is asked always have room.

Counts are settled before places: every stretch of text gets a number of tokens to lose, in a number of spans. Pieces of
several documents in a window cost marks and ends that one document does not have; where these would not fit, spans are
joined (fewer and longer ones), then noise is gathered in fewer documents, and at last the end of the window is left
out. Windows of one document never need any of it.
"""

import dataclasses
import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """A way to take spans out (Tay et al. 2022, section 3.1).

    Attributes:
      rate: share of the tokens that is taken out.
      mean: mean length of a span; none: each stretch of text loses its end.
      mark: id that stands before the inputs of each document and names the way; none: there is only one.
    """

    rate: float
    mean: float | None
    mark: int | None = None

    def counts(self, length: int, most_spans: int) -> tuple[int, int]:
        """Tokens that one document of `length` loses, and in how many spans (Raffel et al. 2020, section 3.1.4)."""
        noise = min(max(round(self.rate * length), 1), max(length - 1, 1))
        return noise, self.spans(noise, length, most_spans)

    def spans(self, noise: int, length: int, most_spans: int) -> int:
        """Spans that `noise` of `length` tokens are taken out in: each has a token, and one between it and the next."""
        wanted = 1 if self.mean is None else max(1, round(noise / self.mean))
        return min(wanted, noise, length - noise + 1, most_spans)


class Room(NamedTuple):
    """Most positions of inputs, of targets and of both together."""

    inputs: int
    targets: int
    total: int


class Stretch(NamedTuple):
    """Tokens between special ones: they begin at `begin`, end before `end` and belong to document `document`."""

    begin: int
    end: int
    document: int


def stretches(ordinary: Bool[np.ndarray, " seq"], segment_ids: Int32[np.ndarray, " seq"], most: int) -> list[Stretch]:
    """The stretches of ordinary tokens in each document of a row, at most `most` of each."""
    keys = np.where(ordinary, segment_ids, 0)
    edges = np.flatnonzero(np.diff(keys, prepend=0, append=0)).tolist()
    found: list[Stretch] = []
    counts: dict[int, int] = {}
    for begin, end in itertools.pairwise(edges):
        if (document := int(keys[begin])) and counts.get(document, 0) < most:
            counts[document] = counts.get(document, 0) + 1
            found.append(Stretch(begin, end, document))
    return found


def settle(
    sizes: Int[np.ndarray, " n"],
    denoiser: Denoiser,
    wanted: int,
    fixed: int,
    room: Room,
    limits: Int[np.ndarray, " n"],
    offset: float,
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], int]:
    """Tokens and spans that stretches of text lose, and how many positions too many that still takes (0: it fits).

    Args:
      sizes: tokens of each stretch.
      denoiser: gives the spans of each.
      wanted: tokens to lose in all.
      fixed: positions of the inputs if nothing were lost.
      room: what there is.
      limits: most spans of each stretch.
      offset: in [0, 1), decides the rounding of each share.
    """
    total = int(sizes.sum())
    wanted = min(wanted, total)
    noise = np.diff(np.floor(wanted * np.cumsum(sizes) / max(total, 1) + offset).astype(np.int64), prepend=0)
    spans = np.array(
        [
            denoiser.spans(int(lost), int(size), int(limit)) if lost else 0
            for lost, size, limit in zip(noise, sizes, limits, strict=True)
        ],
        dtype=np.int64,
    )
    while (over := _over(noise, spans, fixed, room)) > 0:
        if spans.max(initial=0) > 1:
            spans[np.argmax(spans)] -= 1
        elif np.count_nonzero(noise) > 1:
            _gather(noise, spans, sizes)
        else:
            return noise, spans, over
    return noise, spans, 0


def _over(noise: np.ndarray, spans: np.ndarray, fixed: int, room: Room) -> int:
    """Positions too many: every span has a sentinel on both sides, and every document that loses any an end."""
    lost, marks, ends = int(noise.sum()), int(spans.sum()), int(np.count_nonzero(noise))
    inputs, targets = fixed - lost + marks, lost + marks + ends
    return max(inputs - room.inputs, targets - room.targets, inputs + targets - room.total)


def _gather(noise: np.ndarray, spans: np.ndarray, sizes: np.ndarray) -> None:
    """Spares the stretch that loses least; others that already lose some lose as much more, as far as they go."""
    least = int(np.argmin(np.where(noise > 0, noise, np.iinfo(np.int64).max)))
    moved, noise[least], spans[least] = int(noise[least]), 0, 0
    for other in np.argsort(noise - sizes, kind="stable"):
        if noise[other] > 0:
            taken = min(moved, int(sizes[other] - noise[other]))
            noise[other] += taken
            moved -= taken


def place(
    size: int, noise: int, spans: int, at_end: bool, gaps: np.ndarray, cuts: np.ndarray
) -> Bool[np.ndarray, " size"]:
    """`noise` of `size` places in exactly `spans` runs, each such choice as probable as any other.

    Args:
      size: places.
      noise: how many are chosen.
      spans: in how many runs.
      at_end: the (only) run stands last.
      gaps: `size + 1` uniform numbers, that decide between which of the others the runs stand.
      cuts: `size` uniform numbers, that decide their lengths.
    """
    chosen = np.zeros(size, dtype=bool)
    slots = np.sort(np.argsort(gaps[: size - noise + 1], kind="stable")[:spans])
    if at_end:
        slots = np.array([size - noise])
    inner = np.sort(np.argsort(cuts[: noise - 1], kind="stable")[: spans - 1]) + 1
    edges = np.concatenate([[0], inner, [noise]])
    for slot, before, after in zip(slots, edges[:-1], edges[1:], strict=True):
        chosen[slot + before : slot + after] = True
    return chosen

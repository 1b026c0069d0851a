"""Span corruption (Raffel et al. 2020, section 3.1.4) and mixtures of denoisers (Tay et al. 2022, section 3.1)."""

import collections
import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Int64

from research.data.draws import Draws
from research.data.windows import Windows
from research.kernels import Pattern
from research.objectives import noise
from research.objectives.noise import Denoiser, Room, Stretch
from research.objectives.rows import Piece, counted, encoder_rows, shifted
from research.objectives.terms import BACKWARD, PREFIX, Lengths, Objective
from research.vocabulary import Vocabulary


def denoisers_of(letters: str, rate: float, mean: float, vocabulary: Vocabulary) -> tuple[tuple[Denoiser, ...], ...]:
    """For each letter the ways that it stands for, of which each window gets one.

    `r` is span corruption as it is; `x` takes out much more (half of the tokens) or much longer spans (64 tokens in the
    mean); `s` takes out the last quarter.
    """
    kinds = letters.split(",")
    found = []
    for letter in kinds:
        mark = vocabulary.mark(letter) if len(kinds) > 1 else None
        known: dict[str, list[tuple[float, float | None]]] = {
            "r": [(rate, mean)],
            "x": [(0.5, mean), (rate, 64.0)],
            "s": [(0.25, None)],
        }
        found.append(tuple(Denoiser(share, length, mark) for share, length in known[letter]))
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class SpanCorruption(Objective):
    """Spans of each document are taken out: in the inputs a sentinel stands for each; the targets are the sentinels,
    each followed by what it stands for, and `eos`.

    With an encoder it reads the inputs and the decoder predicts the targets. Without one, inputs and targets stand in
    one sequence, the inputs as a prefix that is seen from everywhere, and the loss is that of the targets. Special
    tokens stay. Where the window cuts a document off, `eos` ends its inputs.

    Attributes:
      denoisers: for each kind its ways; a window is given to a kind, then to a way, evenly.
      encoder: the model has an encoder.
    """

    denoisers: tuple[tuple[Denoiser, ...], ...]
    encoder: bool
    name: ClassVar[str] = "span_corruption"
    has_accuracy: ClassVar[bool] = True

    @property
    def pattern(self) -> Pattern:
        """The targets see what stands before; without an encoder all of the inputs besides."""
        return BACKWARD if self.encoder else PREFIX

    def _ways(self) -> list[Denoiser]:
        return [way for kind in self.denoisers for way in kind]

    def _sides(self, raw_length: int) -> tuple[int, int]:
        """Positions of inputs and of targets: the most that one document needs in any of the ways."""
        inputs = targets = 0
        for way in self._ways():
            lost, spans = way.counts(raw_length, len(self.vocabulary.sentinels))
            inputs = max(inputs, raw_length - lost + spans + 1 + (way.mark is not None))
            targets = max(targets, lost + spans + 1)
        return inputs, targets

    def lengths(self, raw_length: int) -> Lengths:
        """568 raw tokens at rate 0.15 and mean 3 are 512 inputs and 114 targets, as in T5."""
        inputs, targets = self._sides(raw_length)
        return Lengths(targets, inputs) if self.encoder else Lengths(inputs + targets)

    def max_targets(self, sequence_length: int) -> int:
        """All positions of a decoder; else as many as there may be targets."""
        if self.encoder:
            return sequence_length
        return min(sequence_length, self._sides(self.raw_length(sequence_length))[1])

    def expected_targets(self, raw_length: int) -> float:
        """Lost tokens, sentinels and an end."""
        means = []
        for kind in self.denoisers:
            counts = [way.counts(raw_length, len(self.vocabulary.sentinels)) for way in kind]
            means.append(sum(lost + spans + 1 for lost, spans in counts) / len(counts))
        return sum(means) / len(means)

    def corrupt(self, windows: Windows, draws: Draws) -> dict[str, np.ndarray]:
        """Takes spans out."""
        raw_length, pad = windows.raw_length, self.vocabulary.pad
        inputs, targets = self._sides(raw_length)
        # In one sequence the inputs may be longer where the targets are shorter.
        room = Room(inputs if self.encoder else inputs + targets, targets, inputs + targets)
        uniform = draws.uniform("denoiser", 3)
        gaps, cuts = draws.uniform("gaps", raw_length + 1), draws.uniform("cuts", raw_length)
        ordinary = (windows.segment_ids > 0) & ~np.isin(windows.tokens, self.vocabulary.special)
        read, predicted = [], []
        for row in range(len(windows.tokens)):
            kind = self.denoisers[int(uniform[row, 0] * len(self.denoisers))]
            way = kind[int(uniform[row, 1] * len(kind))]
            offset = float(uniform[row, 2])
            length, mask = self._mask(windows, row, ordinary[row], way, room, offset, gaps[row], cuts[row])
            inside, asked = self._documents(windows, row, way, length, mask)
            read.append(inside)
            predicted.append(asked)
        lengths = self.lengths(raw_length)
        if self.encoder:
            start = self.vocabulary.decoder_start
            rows = [[Piece(segment, start, tokens) for segment, tokens in row if len(tokens)] for row in predicted]
            batch = shifted(rows, lengths.sequence, pad)
            del batch["prefix"]
            return batch | encoder_rows(read, lengths.encoder, pad)
        whole = [
            [
                Piece(segment, self.vocabulary.bos, np.concatenate([inside, asked]), len(inside))
                for (segment, inside), (_, asked) in zip(*sides, strict=True)
            ]
            for sides in zip(read, predicted, strict=True)
        ]
        return shifted(whole, lengths.sequence, pad)

    @property
    def continues(self) -> bool:
        """A text that breaks off has lost its end, which is one span."""
        return True

    def continuation(self, windows: Windows, given: Int64[np.ndarray, "batch"]) -> dict[str, np.ndarray]:
        """The end of each window taken out as one span, by the way that takes ends out where there is one."""
        ways, vocabulary = self._ways(), self.vocabulary
        mark = next((way for way in ways if way.mean is None), ways[0]).mark
        before = np.array([] if mark is None else [mark], np.int32)
        sentinel, eos = np.array([vocabulary.sentinels[0]], np.int32), np.array([vocabulary.eos], np.int32)
        read, asked = [], []
        for tokens, segment_ids, count in zip(windows.tokens, windows.segment_ids, given.tolist(), strict=True):
            text = tokens[segment_ids > 0]
            read.append(np.concatenate([before, text[:count], sentinel, eos]))
            asked.append(np.concatenate([sentinel, text[count:], eos]))
        if self.encoder:
            rows = [[Piece(1, vocabulary.decoder_start, tokens)] for tokens in asked]
            own = [0] * len(asked)
        else:
            sides = zip(read, asked, strict=True)
            rows = [[Piece(1, vocabulary.bos, np.concatenate(both), len(both[0]))] for both in sides]
            own = [len(inside) for inside in read]
        # Sentinel and end are predicted as well, and are no text.
        begins = [first + 1 for first in own]
        ends = [first + len(tokens) - 1 for first, tokens in zip(own, asked, strict=True)]
        length = max(len(row[0].tokens) for row in rows)
        batch = shifted(rows, length, vocabulary.pad) | {"weights": counted(begins, ends, length)}
        if not self.encoder:
            return batch
        del batch["prefix"]
        return batch | encoder_rows([[(1, inside)] for inside in read], max(map(len, read)), vocabulary.pad)

    def _mask(
        self,
        windows: Windows,
        row: int,
        ordinary: np.ndarray,
        way: Denoiser,
        room: Room,
        offset: float,
        gaps: np.ndarray,
        cuts: np.ndarray,
    ) -> tuple[int, np.ndarray]:
        """How much of the window is used (all of it, almost always), and which of its tokens are taken out."""
        tokens, segment_ids = windows.tokens[row], windows.segment_ids[row]
        sentinels = len(self.vocabulary.sentinels)
        length = int(np.count_nonzero(segment_ids))
        while True:
            found = noise.stretches(ordinary[:length], segment_ids[:length], sentinels)
            sizes = np.array([stretch.end - stretch.begin for stretch in found], dtype=np.int64)
            counts = collections.Counter(stretch.document for stretch in found)
            limits = np.array([sentinels // counts[stretch.document] for stretch in found], dtype=np.int64)
            marks = 0 if way.mark is None else len(np.unique(segment_ids[:length]))
            cut_off = length > 0 and int(tokens[length - 1]) != self.vocabulary.eos
            wanted = way.counts(length, sentinels)[0]
            lost, spans, over = noise.settle(sizes, way, wanted, length + marks + cut_off, room, limits, offset)
            if over == 0:
                return length, self._placed(length, found, lost, spans, way, gaps, cuts)
            length = max(0, length - over)

    def _placed(
        self,
        length: int,
        found: list[Stretch],
        lost: np.ndarray,
        spans: np.ndarray,
        way: Denoiser,
        gaps: np.ndarray,
        cuts: np.ndarray,
    ) -> np.ndarray:
        mask = np.zeros(length, dtype=bool)
        for (begin, end, _), count, runs in zip(found, lost.tolist(), spans.tolist(), strict=True):
            if count:
                own = gaps[begin : end + 1], cuts[begin:end]
                mask[begin:end] = noise.place(end - begin, count, runs, way.mean is None, *own)
        return mask

    def _documents(
        self, windows: Windows, row: int, way: Denoiser, length: int, mask: np.ndarray
    ) -> tuple[list[tuple[int, np.ndarray]], list[tuple[int, np.ndarray]]]:
        """(segment, inputs) and (segment, targets) of each document; targets are empty where nothing was taken out."""
        eos = np.array([self.vocabulary.eos], np.int32)
        mark = np.array([] if way.mark is None else [way.mark], np.int32)
        read, asked = [], []
        for segment, (begin, end) in enumerate(windows.documents(row), 1):
            end = min(end, length)
            if begin >= end:
                break
            inside, targets = taken_out(windows.tokens[row, begin:end], mask[begin:end], self.vocabulary.sentinels)
            cut_off = int(end == length and windows.tokens[row, end - 1] != self.vocabulary.eos)
            read.append((segment, np.concatenate([mark, inside, eos[:cut_off]])))
            asked.append((segment, np.concatenate([targets, eos[: len(targets)]])))
        return read, asked


def taken_out(tokens: np.ndarray, mask: np.ndarray, sentinels: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of one document: a sentinel for each run of the mask, and sentinels with their runs."""
    begins = mask.copy()
    begins[1:] &= ~mask[:-1]
    names = np.asarray(sentinels[: int(begins.sum())], dtype=np.int32)
    inside = tokens.copy()
    inside[begins] = names
    targets = np.insert(tokens[mask], np.flatnonzero(begins[mask]), names)
    return inside[~mask | begins].astype(np.int32), targets.astype(np.int32)

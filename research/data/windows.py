"""Windows: raw tokens before corruption, and the plans that cut a pool of documents into them."""

import contextlib
import dataclasses
import itertools
import os
import zipfile

import numpy as np
from jaxtyping import Int32, Int64

from research.data.draws import Draws
from research.data.shards import ShardReader
from research.errors import UserError
from research.vocabulary import Vocabulary

BLOCK_DOCUMENTS = 1024
PARTNER_DRAWS = 8
_PLAN_VERSION = 1


Ids = Int64[np.ndarray, "batch"]
Spans = tuple[Int64[np.ndarray, "spans"], Int64[np.ndarray, "spans"]]


@dataclasses.dataclass(frozen=True)
class Windows:
    """A batch of windows.

    Attributes:
      tokens: `pad` where there is none.
      segment_ids: 1, 2, ... for the pieces of documents within the window, 0 for padding.
      positions: counted from 0 within each piece.
      left: the token before the window's first token in its document, `bos` where it begins one.
      ids: number of the window in its pool.
      epochs: how often the pool was used up before.
      partners: for each window another of no common document, or itself where there is none; only where asked for.
    """

    tokens: Int32[np.ndarray, "batch raw"]
    segment_ids: Int32[np.ndarray, "batch raw"]
    positions: Int32[np.ndarray, "batch raw"]
    left: Int32[np.ndarray, "batch"]
    ids: Int64[np.ndarray, "batch"]
    epochs: Int64[np.ndarray, "batch"]
    partners: "Windows | None" = None

    @property
    def raw_length(self) -> int:
        """Tokens a window, padding included."""
        return self.tokens.shape[1]

    def rows(self, places: Int64[np.ndarray, "chosen"]) -> "Windows":
        """Some rows of the batch."""
        partners = None if self.partners is None else self.partners.rows(places)
        tokens, segment_ids, positions = self.tokens[places], self.segment_ids[places], self.positions[places]
        own = (self.left[places], self.ids[places], self.epochs[places])
        return Windows(tokens, segment_ids, positions, *own, partners)

    def documents(self, row: int) -> list[tuple[int, int]]:
        """Begin and end of each piece of a document in a row."""
        segments = self.segment_ids[row]
        edges = np.flatnonzero(np.diff(segments, prepend=0, append=0)).tolist()
        return [(begin, end) for begin, end in itertools.pairwise(edges) if segments[begin] > 0]


@dataclasses.dataclass(frozen=True)
class StreamPlan:
    """Consecutive slices of the documents laid end to end.

    A pool is a prefix of the token stream, so window `k` is the same in every pool that contains it.

    Attributes:
      raw_length: tokens a window.
      num_tokens: length of the pool.
      keep_tail: keep the last, shorter window and pad it (held-out text); otherwise it is dropped.
    """

    raw_length: int
    num_tokens: int
    keep_tail: bool = False

    @property
    def num_windows(self) -> int:
        """Number of windows."""
        return (self.num_tokens + (self.raw_length - 1 if self.keep_tail else 0)) // self.raw_length

    def spans(self, ids: Ids) -> Spans:
        """Starts and lengths in the token stream of what the windows hold."""
        starts = ids * self.raw_length
        return starts, np.minimum(self.num_tokens - starts, self.raw_length)

    def windows(self, reader: ShardReader, vocabulary: Vocabulary, ids: Ids, epochs: Ids) -> Windows:
        """The windows with the given ids; `epochs` is passed on."""
        starts = ids * self.raw_length
        places = starts[:, None] + np.arange(-1, self.raw_length)
        valid = places[:, 1:] < self.num_tokens
        stream = reader.at(np.clip(places, 0, self.num_tokens - 1))
        before, tokens = stream[:, 0], stream[:, 1:]
        left = np.where((starts == 0) | (before == vocabulary.eos), vocabulary.bos, before).astype(np.int32)
        ends = tokens == vocabulary.eos
        segment_ids = np.ones_like(tokens)
        segment_ids[:, 1:] += np.cumsum(ends[:, :-1], axis=1, dtype=np.int32)
        columns = np.arange(self.raw_length, dtype=np.int32)
        begins = np.zeros_like(tokens)
        begins[:, 1:] = np.where(ends[:, :-1], columns[1:], 0)
        positions = columns - np.maximum.accumulate(begins, axis=1)
        if not valid.all():
            tokens = np.where(valid, tokens, np.int32(vocabulary.pad))
            segment_ids, positions = segment_ids * valid, positions * valid
        return Windows(tokens, segment_ids, positions, left, ids, epochs)


@dataclasses.dataclass(frozen=True)
class FitPlan:
    """Whole documents placed into windows; documents longer than a window are cut into full windows and a rest.

    Pieces are placed first-fit-decreasing within fixed blocks of documents, so that a prefix of the documents gives a
    prefix of the blocks. Where a window holds a piece that continues a document, one such piece stands first.

    Attributes:
      raw_length: tokens a window, at most.
      starts: first token of each piece in the stream.
      lengths: tokens of each piece.
      offsets: the pieces of window `w` are offsets[w] to offsets[w + 1].
      blocks: the windows of block `b` are blocks[b] to blocks[b + 1].
    """

    raw_length: int
    starts: Int64[np.ndarray, "pieces"]
    lengths: Int64[np.ndarray, "pieces"]
    offsets: Int64[np.ndarray, "window_edges"]
    blocks: Int64[np.ndarray, "block_edges"]

    @property
    def num_windows(self) -> int:
        """Number of windows."""
        return len(self.offsets) - 1

    def spans(self, ids: Ids) -> Spans:
        """Starts and lengths in the token stream of what the windows hold."""
        pieces, _ = self._pieces(ids)
        return self.starts[pieces], self.lengths[pieces]

    def windows(self, reader: ShardReader, vocabulary: Vocabulary, ids: Ids, epochs: Ids) -> Windows:
        """The windows with the given ids; `epochs` is passed on."""
        pieces, counts = self._pieces(ids)
        starts, lengths = self.starts[pieces], self.lengths[pieces]
        rows, order = np.repeat(np.arange(len(ids)), counts), _within(counts)
        ends = np.cumsum(lengths)
        first = ends - lengths
        columns = first - np.repeat(first[np.cumsum(counts) - counts], counts)
        within = _within(lengths)
        place = np.repeat(rows * self.raw_length + columns, lengths) + within
        shape = (len(ids), self.raw_length)
        tokens = np.full(shape, vocabulary.pad, dtype=np.int32)
        segment_ids, positions = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.int32)
        tokens.reshape(-1)[place] = reader.at(places_of(starts, lengths))
        segment_ids.reshape(-1)[place] = np.repeat(order + 1, lengths)
        positions.reshape(-1)[place] = within
        begins = starts[np.cumsum(counts) - counts]
        before = reader.at(np.maximum(begins - 1, 0))
        left = np.where((begins == 0) | (before == vocabulary.eos), vocabulary.bos, before).astype(np.int32)
        return Windows(tokens, segment_ids, positions, left, ids, epochs)

    def _pieces(self, ids: Ids) -> tuple[np.ndarray, np.ndarray]:
        """The pieces of the windows, one window after the other, and how many each has."""
        counts = self.offsets[ids + 1] - self.offsets[ids]
        return np.repeat(self.offsets[ids], counts) + _within(counts), counts


Plan = StreamPlan | FitPlan


def make_plan(
    reader: ShardReader, packing: str, raw_length: int, num_tokens: int | None = None, keep_tail: bool = False
) -> Plan:
    """The plan of a pool: the first `num_tokens` of the stream, for `fit` the documents that lie wholly within them.

    Raises:
      UserError: more tokens than there are, or so few that no window is filled.
    """
    if num_tokens is not None and num_tokens > reader.num_tokens:
        raise UserError(
            f"data.num_tokens={num_tokens}: the training split has {reader.num_tokens} tokens, ask for at most that"
        )
    pool = reader.num_tokens if num_tokens is None else num_tokens
    plan: Plan
    if packing == "stream":
        plan = StreamPlan(raw_length, pool, keep_tail)
    else:
        documents = int(np.searchsorted(reader.document_offsets, pool, side="right")) - 1
        plan = _prefix(_cached_fit(reader, raw_length), reader.document_offsets, documents)
    if plan.num_windows == 0:
        asked = "" if num_tokens is None else f" (data.num_tokens={num_tokens})"
        raise UserError(
            f"{pool} tokens{asked} do not fill one window of {raw_length}: use more text, a larger data.num_tokens "
            "or a smaller data.sequence_length"
        )
    return plan


def fit_documents(offsets: Int64[np.ndarray, "document_edges"], raw_length: int) -> FitPlan:
    """Places documents into windows, block by block.

    Args:
      offsets: where each document begins in the token stream, and where the last ends.
      raw_length: tokens a window.
    """
    starts: list[np.ndarray] = [np.zeros(0, np.int64)]
    lengths: list[np.ndarray] = [np.zeros(0, np.int64)]
    counts: list[np.ndarray] = [np.zeros(0, np.int64)]
    blocks = [0]
    for begin in range(0, len(offsets) - 1, BLOCK_DOCUMENTS):
        block = _fit_block(np.asarray(offsets[begin : begin + BLOCK_DOCUMENTS + 1], dtype=np.int64), raw_length)
        for arrays, array in zip((starts, lengths, counts), block, strict=True):
            arrays.append(array)
        blocks.append(blocks[-1] + len(block[2]))
    windows = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(counts))])
    return FitPlan(raw_length, np.concatenate(starts), np.concatenate(lengths), windows, np.array(blocks, np.int64))


def _fit_block(offsets: np.ndarray, raw_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Piece starts, piece lengths, and pieces a window, of one block."""
    per_document = -(-np.diff(offsets) // raw_length)
    starts = np.repeat(offsets[:-1], per_document) + _within(per_document) * raw_length
    lengths = np.minimum(np.repeat(offsets[1:], per_document) - starts, raw_length)
    continues = np.repeat(offsets[:-1], per_document) != starts
    space = np.full(len(starts), raw_length)
    window = np.empty(len(starts), dtype=np.int64)
    used = 0
    for piece in np.argsort(-lengths, kind="stable"):
        length = lengths[piece]
        place = int(np.argmax(space[: used + 1] >= length))
        used = max(used, place + 1)
        space[place] -= length
        window[piece] = place
    order = np.lexsort((starts, ~continues, window))
    return starts[order], lengths[order], np.bincount(window, minlength=used).astype(np.int64)


def _prefix(plan: FitPlan, offsets: np.ndarray, documents: int) -> FitPlan:
    """The plan of the first documents alone: whole blocks as they are, the last block planned again if it is cut."""
    if documents == len(offsets) - 1:
        return plan
    whole = documents // BLOCK_DOCUMENTS
    windows = int(plan.blocks[whole])
    pieces = int(plan.offsets[windows])
    tail = fit_documents(offsets[whole * BLOCK_DOCUMENTS : documents + 1], plan.raw_length)
    return FitPlan(
        plan.raw_length,
        np.concatenate([plan.starts[:pieces], tail.starts]),
        np.concatenate([plan.lengths[:pieces], tail.lengths]),
        np.concatenate([plan.offsets[: windows + 1], tail.offsets[1:] + pieces]),
        np.concatenate([plan.blocks[: whole + 1], tail.blocks[1:] + windows]),
    )


def _cached_fit(reader: ShardReader, raw_length: int) -> FitPlan:
    """The plan of all documents, kept beside the shards that it belongs to (their folder is content-addressed).

    A folder that cannot be written to keeps no plan: it is then made again at each start.
    """
    path = reader.directory / "plans" / f"{reader.split}-fit-{raw_length}-v{_PLAN_VERSION}.npz"
    names = ("starts", "lengths", "offsets", "blocks")
    try:
        with np.load(path, allow_pickle=False) as saved:
            return FitPlan(raw_length, *(saved[name] for name in names))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        plan = fit_documents(reader.document_offsets, raw_length)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        try:
            with temporary.open("wb") as file:
                np.savez(file, **{name: getattr(plan, name) for name in names})
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return plan


def documents_of(plan: Plan, reader: ShardReader, ids: Ids) -> list[set[int]]:
    """The numbers of the documents that each window holds a piece of."""
    found = []
    for number in ids:
        starts, lengths = plan.spans(np.array([number], dtype=np.int64))
        first = np.searchsorted(reader.document_offsets, starts, side="right") - 1
        last = np.searchsorted(reader.document_offsets, starts + lengths - 1, side="right") - 1
        found.append({int(d) for begin, end in zip(first, last, strict=True) for d in range(begin, end + 1)})
    return found


def partners_of(plan: Plan, reader: ShardReader, num_windows: int, ids: Ids, draws: Draws) -> Ids:
    """For each window one of the first `num_windows` that shares no document with it, or itself if no draw finds one.

    The numbers are a function of what the draws are keyed by: seed, epoch and window.
    """
    found = ids.copy()
    candidates = (draws.uniform("partner", PARTNER_DRAWS) * num_windows).astype(np.int64)
    own = documents_of(plan, reader, ids)
    for row, documents in enumerate(own):
        for candidate in candidates[row]:
            if not documents & documents_of(plan, reader, candidate[None])[0]:
                found[row] = candidate
                break
    return found


def places_of(starts: Int64[np.ndarray, "spans"], lengths: Int64[np.ndarray, "spans"]) -> Int64[np.ndarray, "tokens"]:
    """The places in the token stream that spans cover, one span after the other."""
    return np.repeat(starts, lengths) + _within(lengths)


def _within(counts: np.ndarray) -> np.ndarray:
    """0, 1, ..., count - 1 for each count, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0, dtype=np.int64) - np.repeat(ends - counts, counts)

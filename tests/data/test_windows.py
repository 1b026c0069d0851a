import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data import windows
from research.data.shards import ShardReader
from research.data.windows import Plan, Windows, make_plan, places_of
from research.errors import UserError
from tests.data.corpora import VOCABULARY, token_reader

LENGTHS = st.lists(st.integers(1, 30) | st.just(8) | st.integers(50, 90), min_size=1, max_size=40)


def all_windows(plan: Plan, reader: ShardReader) -> Windows:
    ids = np.arange(plan.num_windows)
    return plan.windows(reader, VOCABULARY, ids, np.zeros_like(ids))


def spans_of(plan: Plan, window: int) -> list[tuple[int, int]]:
    starts, lengths = plan.spans(np.array([window]))
    return [(int(start), int(length)) for start, length in zip(starts, lengths, strict=True)]


def reference(plan: Plan, reader: ShardReader, window: int) -> tuple[list[int], list[int], list[int], int]:
    """Tokens, segments, positions and left of a window, written out from its spans token by token."""
    stream = reader.read(0, reader.num_tokens).tolist()
    tokens, segments, positions = [], [], []
    begins = set(reader.document_offsets.tolist())
    segment, position = 0, 0
    for start, length in spans_of(plan, window):
        for place in range(start, start + length):
            if place == start or place in begins:
                segment, position = segment + 1, 0
            tokens.append(stream[place])
            segments.append(segment)
            positions.append(position)
            position += 1
    first = spans_of(plan, window)[0][0]
    padding = [0] * (plan.raw_length - len(tokens))
    left = VOCABULARY.bos if first in begins else stream[first - 1]
    return tokens + padding, segments + padding, positions + padding, left


@pytest.mark.parametrize(("packing", "keep_tail"), [("stream", False), ("stream", True), ("fit", True)])
@given(lengths=LENGTHS)
@settings(max_examples=30, deadline=None)
def test_windows_are_what_their_spans_say(packing: str, keep_tail: bool, lengths: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        reader = token_reader(Path(folder), [*lengths, 8])
        plan = make_plan(reader, packing, 8, keep_tail=keep_tail)
        made = all_windows(plan, reader)
        for window in range(plan.num_windows):
            tokens, segments, positions, left = reference(plan, reader, window)
            assert made.tokens[window].tolist() == tokens
            assert made.segment_ids[window].tolist() == segments
            assert made.positions[window].tolist() == positions
            assert made.left[window] == left


@pytest.mark.parametrize("packing", ["stream", "fit"])
@given(lengths=LENGTHS, raw_length=st.sampled_from([4, 8, 32]))
@settings(max_examples=30, deadline=None)
def test_every_token_stands_in_one_window(packing: str, lengths: list[int], raw_length: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        reader = token_reader(Path(folder), [*lengths, raw_length])
        for keep_tail in (False, True):
            plan = make_plan(reader, packing, raw_length, keep_tail=keep_tail)
            places = places_of(*plan.spans(np.arange(plan.num_windows)))
            whole = packing == "fit" or keep_tail
            kept = reader.num_tokens if whole else reader.num_tokens // raw_length * raw_length
            assert sorted(places.tolist()) == list(range(kept))


@given(lengths=LENGTHS)
@settings(max_examples=30, deadline=None)
def test_fit_cuts_no_document_that_fits(lengths: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        reader = token_reader(Path(folder), lengths)
        plan = make_plan(reader, "fit", 16)
        pieces = Counter(
            int(np.searchsorted(reader.document_offsets, start, side="right")) - 1
            for window in range(plan.num_windows)
            for start, _ in spans_of(plan, window)
        )
        for document, length in enumerate(lengths):
            assert pieces[document] == -(-length // 16)


@given(lengths=LENGTHS, share=st.floats(0.2, 1.0))
@settings(max_examples=30, deadline=None)
def test_smaller_pools_are_contained_in_larger_ones(lengths: list[int], share: float) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "BLOCK_DOCUMENTS", 4)
        reader = token_reader(Path(folder), [20, *lengths, 20])
        num_tokens = max(20, int(share * reader.num_tokens))
        for packing in ("stream", "fit"):
            large, small = make_plan(reader, packing, 8), make_plan(reader, packing, 8, num_tokens)
            held = places_of(*small.spans(np.arange(small.num_windows)))
            assert len(held) <= num_tokens and held.max() < num_tokens
            assert set(held.tolist()) <= set(range(num_tokens))
            if packing == "fit":
                documents = int(np.searchsorted(reader.document_offsets, num_tokens, side="right")) - 1
                assert len(held) == reader.document_offsets[documents]
                same = int(small.blocks[documents // 4])
            else:
                same = small.num_windows
            for window in range(same):
                assert spans_of(small, window) == spans_of(large, window)


def test_fit_wastes_little(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(1, 64, size=2000).tolist()
    plan = make_plan(token_reader(tmp_path, lengths, 2**20), "fit", 64)
    assert plan.num_windows <= 1.03 * sum(lengths) / 64


def test_a_piece_that_continues_a_document_stands_first(tmp_path: Path) -> None:
    reader = token_reader(tmp_path, [3, 12, 2])  # the rest of the second document shares a window with the others
    plan = make_plan(reader, "fit", 9)
    made = all_windows(plan, reader)
    rest = next(w for w in range(plan.num_windows) if spans_of(plan, w)[0] == (12, 3))
    assert len(spans_of(plan, rest)) == 3 and made.left[rest] == reader.read(11, 12)[0]


def test_a_kept_plan_is_the_plan(tmp_path: Path) -> None:
    reader = token_reader(tmp_path, [5, 30, 2, 9])
    first = make_plan(reader, "fit", 8)
    (kept,) = (tmp_path / "plans").iterdir()
    for _ in range(2):
        again = make_plan(reader, "fit", 8)
        for name in ("starts", "lengths", "offsets", "blocks"):
            np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        data = bytearray(kept.read_bytes())
        data[len(data) // 2] ^= 1
        kept.write_bytes(data)  # The second time it is damaged, which is noticed, and it is made again.


@pytest.mark.parametrize("packing", ["stream", "fit"])
def test_pools_that_cannot_be(tmp_path: Path, packing: str) -> None:
    reader = token_reader(tmp_path, [30, 30])
    with pytest.raises(UserError, match=r"data\.num_tokens=61: the training split has 60 tokens"):
        make_plan(reader, packing, 8, 61)
    with pytest.raises(UserError, match=r"data\.num_tokens=7\) do not fill one window of 8"):
        make_plan(reader, packing, 8, 7)

import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from research.data.draws import Draws
from research.data.loader import Batch, Heldout, Loader
from research.data.prepare import Prepared
from research.data.shards import ShardReader
from research.data.windows import Windows, places_of
from research.errors import UserError
from tests.data.corpora import VOCABULARY, token_reader

LENGTHS = np.random.default_rng(5).integers(1, 40, size=60).tolist()
PACKINGS = pytest.mark.parametrize("packing", ["stream", "fit"])


def corrupt(windows: Windows, draws: Draws) -> Batch:
    return {
        "tokens": windows.tokens,
        "segment_ids": windows.segment_ids,
        "weights": (draws.uniform("w", windows.tokens.shape[1]) * (windows.segment_ids > 0)).astype(np.float32),
        "ids": windows.ids,
        "epochs": windows.epochs,
    }


def with_progress(windows: Windows, draws: Draws) -> Batch:
    return corrupt(windows, draws) | {"progress": draws.progress}


def make(reader: ShardReader, packing: str = "stream", **changes: object) -> Loader:
    arguments = {
        "seed": 1,
        "batch_size": 8,
        "accumulation": 1,
        "raw_length": 16,
        "num_tokens": None,
        "corrupt": corrupt,
    }
    return Loader(reader, VOCABULARY, packing=packing, **(arguments | changes))  # type: ignore[arg-type]


def same(left: Batch, right: Batch) -> None:
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])


@pytest.fixture
def reader(tmp_path: Path) -> ShardReader:
    return token_reader(tmp_path, LENGTHS)


@PACKINGS
def test_every_window_once_an_epoch_in_another_order_each(reader: ShardReader, packing: str) -> None:
    loader = make(reader, packing)
    steps = -(-3 * loader.num_windows // 8)
    seen = [loader.batch(step) for step in range(steps)]
    ids = np.concatenate([batch["ids"].reshape(-1) for batch in seen])
    epochs = np.concatenate([batch["epochs"].reshape(-1) for batch in seen])
    orders = [tuple(ids[epochs == epoch]) for epoch in range(3)]
    assert all(Counter(order) == Counter(range(loader.num_windows)) for order in orders)
    assert len(set(orders)) == 3
    assert tuple(make(reader, packing, seed=2).batch(0)["ids"][0]) != orders[0][:8]


@PACKINGS
def test_every_raw_token_of_the_pool_once_an_epoch(reader: ShardReader, packing: str) -> None:
    loader = make(reader, packing, batch_size=1)
    held = [loader.batch(step) for step in range(loader.num_windows)]
    tokens = np.concatenate([batch["tokens"][batch["segment_ids"] > 0] for batch in held])
    pool = reader.num_tokens if packing == "fit" else loader.num_windows * 16
    assert Counter(tokens.tolist()) == Counter(reader.read(0, pool).tolist())


@PACKINGS
@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_hosts_and_accumulation_change_no_row(reader: ShardReader, packing: str, hosts: int, accumulation: int) -> None:
    whole = make(reader, packing)
    micro = 8 // accumulation
    rows = np.arange(micro).reshape(hosts, -1)
    parts = [make(reader, packing, accumulation=accumulation, rows=part) for part in rows]
    for step in (0, 1, 40):
        batches = [part.batch(step) for part in parts]
        joined = {name: np.concatenate([batch[name] for batch in batches], axis=1) for name in batches[0]}
        flat = {name: array.reshape(1, 8, *array.shape[2:]) for name, array in joined.items()}
        same(flat, whole.batch(step))


@PACKINGS
@pytest.mark.parametrize("partners", [False, True])
def test_rows_of_several_steps_are_those_of_each(reader: ShardReader, packing: str, partners: bool) -> None:
    loader = make(reader, packing, accumulation=2, num_steps=40, partners=partners, corrupt=with_progress)
    steps = [0, 39, 3, 17]
    assert loader.num_windows < 39 * 8  # of several epochs
    each = [loader.batch(step) for step in steps]
    assert {float(batch["progress"].max()) for batch in each} == {0.0, 1.0, 3 / 39, 17 / 39}
    flat = [{name: array.reshape(-1, *array.shape[2:]) for name, array in batch.items()} for batch in each]
    same(loader.rows_of(steps), {name: np.concatenate([batch[name] for batch in flat]) for name in flat[0]})


@PACKINGS
def test_a_smaller_pool_sees_a_part_of_the_larger_ones_tokens(reader: ShardReader, packing: str) -> None:
    seen = []
    for num_tokens in (300, 600, None):
        loader = make(reader, packing, num_tokens=num_tokens)
        places = places_of(*loader.tokens_of(loader.windows_seen(10**6)))
        assert len(places) <= (num_tokens or reader.num_tokens)
        seen.append(set(places.tolist()))
    assert seen[0] < seen[1] < seen[2]


@PACKINGS
@pytest.mark.parametrize("steps", [0, 1, 3, 1000])
def test_windows_seen_are_those_of_the_batches(reader: ShardReader, packing: str, steps: int) -> None:
    loader = make(reader, packing)
    ids = [loader.batch(step)["ids"].reshape(-1) for step in range(min(steps, 50))]
    assert loader.windows_seen(steps).tolist() == sorted(set(np.concatenate([[], *ids]).astype(int).tolist()))


@PACKINGS
def test_tokens_of_are_the_tokens_of_the_batches(reader: ShardReader, packing: str) -> None:
    loader = make(reader, packing)
    batch = loader.batch(2)
    spans = loader.tokens_of(batch["ids"].reshape(-1))
    expected = batch["tokens"][batch["segment_ids"] > 0]
    np.testing.assert_array_equal(reader.at(places_of(*spans)), expected)


@pytest.mark.parametrize("buffer", [0, 1, 3])
def test_prefetch_is_batch(reader: ShardReader, buffer: int) -> None:
    loader = make(reader)
    steps = []
    for step, batch in loader.prefetch(5, 25, buffer):
        same(batch, loader.batch(step))
        steps.append(step)
    assert steps == list(range(5, 25))
    assert list(loader.prefetch(3, 3, buffer)) == []


@pytest.mark.parametrize("buffer", [0, 2])
def test_an_error_in_a_thread_is_raised_at_its_step(reader: ShardReader, buffer: int) -> None:
    bad = make(reader).batch(3)["ids"][0]

    def fail(windows: Windows, draws: Draws) -> Batch:
        if np.array_equal(windows.ids, bad):
            raise ZeroDivisionError("at step 3")
        return corrupt(windows, draws)

    made = make(reader, corrupt=fail)
    steps = []
    with pytest.raises(ZeroDivisionError, match="at step 3"):
        for step, _ in made.prefetch(0, 10, buffer):
            steps.append(step)
    assert steps == [0, 1, 2]


def test_a_prefetch_that_is_left_ends_its_threads(reader: ShardReader) -> None:
    before = threading.active_count()
    batches = make(reader).prefetch(0, 10**6, 2)
    next(batches)
    assert threading.active_count() > before
    batches.close()  # type: ignore[attr-defined]
    for _ in range(100):
        if threading.active_count() <= before:
            break
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_a_pool_larger_than_the_corpus_names_what_there_is(reader: ShardReader) -> None:
    with pytest.raises(UserError, match=f"has {reader.num_tokens} tokens"):
        make(reader, num_tokens=10**9)


# --- held-out windows -------------------------------------------------------------------------------------------------


def heldout(corpus: Prepared, packing: str = "stream", **changes: object) -> Heldout:
    arguments = {"seed": 1, "batch_size": 4, "raw_length": 16} | changes
    return Heldout(corpus.heldout, corpus.tokenizer, packing=packing, corrupt=corrupt, **arguments)  # type: ignore[arg-type]


@PACKINGS
@pytest.mark.parametrize("raw_length", [5, 16, 1000])
def test_heldout_bytes_add_up(corpus: Prepared, packing: str, raw_length: int) -> None:
    made = heldout(corpus, packing, raw_length=raw_length)
    assert made.num_bytes == corpus.heldout.num_bytes == corpus.heldout.document_bytes.sum()
    assert made.num_tokens == corpus.heldout.num_tokens
    parts = [heldout(corpus, packing, raw_length=raw_length, max_windows=k).num_bytes for k in range(1, 4)]
    assert parts == sorted(parts) and parts[-1] <= made.num_bytes


@PACKINGS
def test_heldout_windows_come_once_in_order_and_padded(corpus: Prepared, packing: str) -> None:
    made = heldout(corpus, packing, max_windows=10)
    assert (made.num_windows, made.num_batches) == (10, 3)
    batches = [made.batch(index) for index in range(3)]
    assert np.concatenate([batch["ids"] for batch in batches]).tolist() == [*range(10), 0, 0]
    last = batches[-1]
    assert not last["segment_ids"][2:].any() and not last["weights"][2:].any() and not last["tokens"][2:].any()
    with pytest.raises(IndexError):
        made.batch(3)


@PACKINGS
def test_heldout_corruption_depends_on_the_window_alone(corpus: Prepared, packing: str) -> None:
    small, large = heldout(corpus, packing), heldout(corpus, packing, batch_size=8)
    same({name: array[4:] for name, array in large.batch(0).items()}, small.batch(1))
    hosts = [heldout(corpus, packing, batch_size=8, rows=rows).batch(0) for rows in ([0, 1, 2], [3, 4, 5, 6, 7])]
    same({name: np.concatenate([host[name] for host in hosts]) for name in hosts[0]}, large.batch(0))
    assert not np.array_equal(heldout(corpus, packing, seed=2).batch(0)["weights"], small.batch(0)["weights"])


def test_a_host_with_padding_alone_gets_it_in_the_right_shapes(corpus: Prepared) -> None:
    made = heldout(corpus, max_windows=2, rows=[2, 3])
    whole = heldout(corpus, max_windows=2)
    for name, array in made.batch(0).items():
        assert not array.any() and array.dtype == whole.batch(0)[name].dtype and array.shape[0] == 2


def test_heldout_words_are_the_heldout_documents(corpus: Prepared) -> None:
    made = heldout(corpus)
    tokens = np.concatenate([made.batch(index)["tokens"].reshape(-1) for index in range(made.num_batches)])
    text = corpus.tokenizer.decode(tokens)
    assert len(text.encode()) == made.num_bytes

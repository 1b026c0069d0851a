from pathlib import Path

import numpy as np
import pytest

from research.data.shards import ShardReader, ShardWriter, token_dtype
from tests.data.corpora import token_reader

LENGTHS = [3, 1, 40, 7, 7, 100, 2]


def test_the_stream_is_the_documents_end_to_end(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "train", token_dtype(500), shard_bytes=50)
    documents = [np.arange(5, 5 + length, dtype=np.int32) for length in LENGTHS]
    for start in range(0, len(documents), 2):
        some = documents[start : start + 2]
        writer.write(some, np.array([11 * len(tokens) for tokens in some]))
    entry = writer.close()
    reader = ShardReader(tmp_path, "train", entry)
    assert len(entry["shards"]) > 2 and reader.problem(500) is None
    np.testing.assert_array_equal(reader.read(0, reader.num_tokens), np.concatenate(documents))
    for tokens, start, stop, size in zip(
        documents, reader.document_offsets[:-1], reader.document_offsets[1:], reader.document_bytes, strict=True
    ):
        np.testing.assert_array_equal(reader.read(int(start), int(stop)), tokens)
        assert size == 11 * len(tokens)
    assert (reader.num_documents, reader.num_tokens, reader.num_bytes) == (7, sum(LENGTHS), 11 * sum(LENGTHS))


@pytest.mark.parametrize("shard_bytes", [10, 64, 2**20])
def test_at_is_read_wherever_the_shards_end(tmp_path: Path, shard_bytes: int) -> None:
    reader = token_reader(tmp_path, LENGTHS, shard_bytes)
    whole = reader.read(0, reader.num_tokens)
    places = np.random.default_rng(1).integers(0, reader.num_tokens, size=(9, 11))
    np.testing.assert_array_equal(reader.at(places), whole[places])
    for start in range(0, reader.num_tokens, 13):
        np.testing.assert_array_equal(reader.read(start, min(start + 31, len(whole))), whole[start : start + 31])


def test_ids_are_stored_as_narrow_as_they_fit(tmp_path: Path) -> None:
    assert token_dtype(2**16) == np.dtype("<u2") and token_dtype(2**16 + 1) == np.dtype("<u4")
    for vocab_size in (2**16, 2**16 + 1):
        writer = ShardWriter(tmp_path, f"v{vocab_size}", token_dtype(vocab_size))
        writer.write([np.array([vocab_size - 1, 3], dtype=np.int32)], np.array([1]))
        assert ShardReader(tmp_path, f"v{vocab_size}", writer.close()).read(0, 2).tolist() == [vocab_size - 1, 3]


def test_what_contradicts_the_counts_is_named(tmp_path: Path) -> None:
    reader = token_reader(tmp_path, LENGTHS, vocab_size=500)
    problem = reader.problem(100)
    assert problem is not None and problem[0] == "train-00000.bin" and "the tokenizer has 100" in problem[1]
    for name in ("num_tokens", "num_documents"):
        setattr(reader, name, getattr(reader, name) + 1)
        problem = reader.problem(None)
        assert problem is not None and problem[0].startswith("train-")

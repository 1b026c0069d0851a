"""Token shards: one stream of little-endian integers in files, written once and memory-mapped for reading."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int32, Int64

SHARD_BYTES = 2**30


def token_dtype(vocab_size: int) -> np.dtype:
    """The narrowest stored type of token ids below `vocab_size`."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


class HashedFile:
    """A file that is written front to back and knows its size and SHA-256."""

    def __init__(self, path: Path):
        self.path = path
        self.size = 0
        self._digest = hashlib.sha256()
        self._file: BinaryIO = path.open("wb", buffering=2**20)

    def write(self, data: bytes) -> None:
        """Appends bytes."""
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def close(self) -> dict[str, Any]:
        """Closes the file and returns its entry in the manifest: name, size in bytes, sha256."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"name": self.path.name, "bytes": self.size, "sha256": self._digest.hexdigest()}


class ShardWriter:
    """Writes the documents of one split as `SPLIT-00000.bin`, ..., `SPLIT-offsets.bin` and `SPLIT-bytes.bin`."""

    def __init__(self, directory: Path, split: str, dtype: np.dtype, shard_bytes: int = SHARD_BYTES):
        self._directory, self._split, self._dtype, self._shard_bytes = directory, split, dtype, shard_bytes
        self._shards: list[dict[str, Any]] = []
        self._shard: HashedFile | None = None
        self._offsets = HashedFile(directory / f"{split}-offsets.bin")
        self._offsets.write(bytes(8))
        self._bytes = HashedFile(directory / f"{split}-bytes.bin")
        self._num_tokens = self._num_documents = self._num_bytes = 0

    def write(self, documents: Sequence[np.ndarray], num_bytes: Int64[np.ndarray, "documents"]) -> None:
        """Appends documents: their ids, each ending in `eos`, and the UTF-8 lengths of their texts.

        A shard ends behind the documents that fill it, so that what is written at once stands in one file.
        """
        if self._shard is None or self._shard.size >= self._shard_bytes:
            self._close_shard()
            self._shard = HashedFile(self._directory / f"{self._split}-{len(self._shards):05d}.bin")
        self._shard.write(np.concatenate(documents).astype(self._dtype).tobytes())
        ends = self._num_tokens + np.cumsum([len(tokens) for tokens in documents])
        self._offsets.write(ends.astype("<i8").tobytes())
        self._bytes.write(num_bytes.astype("<i8").tobytes())
        self._num_tokens = int(ends[-1])
        self._num_documents += len(documents)
        self._num_bytes += int(num_bytes.sum())

    def close(self) -> dict[str, Any]:
        """Closes all files and returns the split's entry in the manifest."""
        self._close_shard()
        return {
            "documents": self._num_documents,
            "tokens": self._num_tokens,
            "bytes": self._num_bytes,
            "dtype": self._dtype.str,
            "shards": self._shards,
            "offsets": self._offsets.close(),
            "document_bytes": self._bytes.close(),
        }

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._shards.append(self._shard.close())
            self._shard = None


class ShardReader:
    """One split of a prepared corpus, memory-mapped.

    Attributes:
      directory: where the files are.
      split: `train` or `heldout`.
      num_tokens: length of the token stream, `eos` of every document included.
      num_documents: number of documents.
      num_bytes: UTF-8 length of all documents.
      document_offsets: int64 [documents + 1], where each document begins in the stream, and where the last ends.
      document_bytes: int64 [documents], UTF-8 length of each document's text.
    """

    def __init__(self, directory: Path, split: str, entry: Mapping[str, Any]):
        """Opens the split that `entry` of the manifest describes; `prepare.open_prepared` has checked the files."""
        self.directory, self.split = directory, split
        self.num_tokens, self.num_documents, self.num_bytes = entry["tokens"], entry["documents"], entry["bytes"]
        self.document_offsets = _memory_map(directory / entry["offsets"]["name"], np.dtype("<i8"))
        self.document_bytes = _memory_map(directory / entry["document_bytes"]["name"], np.dtype("<i8"))
        dtype = np.dtype(entry["dtype"])
        self._shards = [_memory_map(directory / shard["name"], dtype) for shard in entry["shards"]]
        self._ends = np.cumsum([len(shard) for shard in self._shards])

    def problem(self, vocab_size: int | None) -> tuple[str, str] | None:
        """The file that contradicts the counts and what is wrong with it, or none.

        Args:
          vocab_size: every token id must be below it; none: the ids are not read.
        """
        offsets = self.document_offsets
        if len(offsets) != self.num_documents + 1 or len(self.document_bytes) != self.num_documents:
            return f"{self.split}-offsets.bin", "has another number of documents than the manifest"
        if offsets[0] != 0 or offsets[-1] != self.num_tokens or bool(np.any(np.diff(offsets) <= 0)):
            return f"{self.split}-offsets.bin", "has offsets that are no order of documents"
        if sum(len(shard) for shard in self._shards) != self.num_tokens:
            return f"{self.split}-00000.bin", "has another number of tokens than the manifest"
        for number, shard in enumerate(self._shards):
            if vocab_size is not None and int(shard.max()) >= vocab_size:
                return f"{self.split}-{number:05d}.bin", f"has the id {shard.max()}, the tokenizer has {vocab_size}"
        return None

    def read(self, start: int, stop: int) -> Int32[np.ndarray, "tokens"]:
        """Tokens start to stop of the stream."""
        assert 0 <= start <= stop <= self.num_tokens, (start, stop, self.num_tokens)
        parts = [np.zeros(0, dtype=np.int32)]
        for shard, end in zip(self._shards, self._ends, strict=True):
            first = int(end) - len(shard)
            if start < end and stop > first:
                parts.append(shard[max(start - first, 0) : stop - first].astype(np.int32))
        return np.concatenate(parts)

    def at(self, places: Int64[np.ndarray, "*shape"]) -> Int32[np.ndarray, "*shape"]:
        """Tokens at any places of the stream, each within range(num_tokens)."""
        if len(self._shards) == 1:
            return self._shards[0][places].astype(np.int32)
        tokens = np.empty(places.shape, dtype=np.int32)
        which = np.searchsorted(self._ends, places, side="right")
        for number in np.unique(which):
            chosen = which == number
            shard = self._shards[number]
            tokens[chosen] = shard[places[chosen] - (self._ends[number] - len(shard))]
        return tokens

    def bytes_at(self, places: Int64[np.ndarray, "*shape"]) -> float:
        """UTF-8 bytes that tokens at places of the stream stand for: of each document the share of its tokens.

        For tokenizers whose ids do not say how long the text was; a whole document counts its own length.
        """
        which = np.searchsorted(self.document_offsets, places.ravel(), side="right") - 1
        documents, counts = np.unique(which, return_counts=True)
        lengths = self.document_offsets[documents + 1] - self.document_offsets[documents]
        return float((self.document_bytes[documents] * (counts / lengths)).sum())


def _memory_map(path: Path, dtype: np.dtype) -> np.ndarray:
    """The file as a read-only array (a plain view: indexing a `memmap` object itself costs more)."""
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))

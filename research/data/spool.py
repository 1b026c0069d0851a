"""Documents on disk between reading and encoding, so that a corpus need not fit into memory."""

import os
from array import array
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Int64, UInt64


class Spool:
    """Texts appended to a temporary file, then read in any order; the file is removed when the block ends."""

    def __init__(self, path: Path):
        self._path = path
        self._file = path.open("w+b", buffering=2**20)
        self._ends = array("q", [0])
        self._digests = bytearray()

    def append(self, text: str, digest: bytes) -> None:
        """Adds a text and its digest."""
        data = text.encode("utf-8")
        self._file.write(data)
        self._ends.append(self._ends[-1] + len(data))
        self._digests += digest[:8]

    def digests(self) -> UInt64[np.ndarray, "documents"]:
        """The first 64 bits of each document's digest."""
        return np.frombuffer(bytes(self._digests), dtype=">u8").astype(np.uint64)

    def num_bytes(self) -> Int64[np.ndarray, "documents"]:
        """UTF-8 length of each document."""
        return np.diff(np.array(self._ends, dtype=np.int64))

    def texts(self, numbers: Iterable[int | np.integer]) -> list[str]:
        """The texts of documents."""
        self._file.flush()
        spans = [(self._ends[number], self._ends[number + 1]) for number in numbers]
        return [os.pread(self._file.fileno(), stop - start, start).decode("utf-8") for start, stop in spans]

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

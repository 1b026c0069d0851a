"""What is left out of a corpus, and the counts of it for the data card."""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator

from research.data.sources import Document


@dataclasses.dataclass
class Counts:
    """Documents read, kept and dropped; filled while the documents pass."""

    read: int = 0
    short: int = 0
    duplicate: int = 0
    kept: int = 0


def text_digest(text: str) -> bytes:
    """What a document is known by: 16 bytes of the SHA-256 of its text."""
    return hashlib.sha256(text.encode("utf-8")).digest()[:16]


def clean(
    documents: Iterable[Document], counts: Counts, *, min_characters: int, deduplicate: bool
) -> Iterator[tuple[Document, bytes]]:
    """The documents that are kept, in their order, with the digests of their texts.

    Dropped are documents of fewer than `min_characters` characters and, where asked, those whose exact text came
    before.
    """
    seen: set[bytes] = set()
    for document in documents:
        counts.read += 1
        if len(document.text) < min_characters:
            counts.short += 1
            continue
        digest = text_digest(document.text)
        if deduplicate:
            if digest in seen:
                counts.duplicate += 1
                continue
            seen.add(digest)
        counts.kept += 1
        yield document, digest

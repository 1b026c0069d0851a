"""Where the documents of a prepared corpus came from, for those whose texts were kept with it."""

import json

import numpy as np

from research.data.cleaning import Counts, text_digest
from research.data.prepare import SPLITS, Prepared, split_documents
from research.settings import DataSettings


def origins(prepared: Prepared) -> dict[str, list[str]] | None:
    """The origin of each document of each split, in the split's order; none where the corpus kept no texts.

    Documentation strings are kept with their origins (`package/module.py:name`); of files that stay where they are
    only hashes are kept. The order is computed from the texts, as it was in preparing, and checked by their lengths.
    """
    entry = prepared.manifest["files"].get("documents")
    if entry is None:
        return None
    names, lengths, digests = [], [], []
    with (prepared.directory / entry["name"]).open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            names.append(row["origin"])
            lengths.append(len(row["text"].encode("utf-8")))
            digests.append(int.from_bytes(text_digest(row["text"])[:8], "big"))
    data = DataSettings(**prepared.manifest["data"])
    orders = split_documents(np.array(digests, dtype=np.uint64), Counts(), data)
    for order, reader in zip(orders, (prepared.train, prepared.heldout), strict=True):
        assert np.array_equal(np.array(lengths)[order], reader.document_bytes), reader.split
    return {split: [names[number] for number in order] for split, order in zip(SPLITS, orders, strict=True)}

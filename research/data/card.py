"""The data card: what a corpus is, in a page that a reader of results can check."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from research.data.shards import ShardReader


def data_card(manifest: Mapping[str, Any], train: ShardReader, heldout: ShardReader) -> str:
    """Markdown: source, licence, counts, split, tokenizer, and how long the documents are."""
    source, counts, data = manifest["source"], manifest["documents"], manifest["data"]
    lines = [
        "# Data card",
        "",
        f"- Source: {_describe(source)}",
        f"- Licence: {manifest['license']}",
        f"- Documents: {counts['read']:,} read, {counts['short']:,} shorter than {data['min_characters']} characters "
        f"dropped, {counts['duplicate']:,} duplicates dropped, {counts['kept']:,} kept",
        f"- Tokenizer: {_tokenizer(manifest)}",
        f"- Held out: {data['validation_fraction']:.2%} of the documents, chosen by the hash of their text",
        "",
        "| split | documents | tokens | bytes | bytes a token |",
        "|---|---|---|---|---|",
    ]
    for name, reader in (("training", train), ("held out", heldout)):
        ratio = reader.num_bytes / reader.num_tokens
        lines.append(
            f"| {name} | {reader.num_documents:,} | {reader.num_tokens:,} | {reader.num_bytes:,} | {ratio:.3f} |"
        )
    lengths = np.concatenate([np.diff(train.document_offsets), np.diff(heldout.document_offsets)])
    low, median, high = np.quantile(lengths, [0.1, 0.5, 0.9], method="nearest")
    lines += [
        "",
        f"Tokens a document: 10 % have at most {low:,}, half at most {median:,}, 90 % at most {high:,}; "
        f"the longest has {lengths.max():,}. Documents longer than a window are cut, and nothing of them is lost:",
        "",
        "| window | documents longer | their share of the tokens |",
        "|---|---|---|",
    ]
    for window in (64, 128, 256, 512, 1024, 2048, 4096, 8192):
        longer = lengths[lengths > window]
        lines.append(f"| {window} | {len(longer):,} | {longer.sum() / lengths.sum():.1%} |")
    return "\n".join(lines) + "\n"


def _describe(source: Mapping[str, Any]) -> str:
    if source["kind"] == "docstrings":
        versions = ", ".join(f"{name} {version}" for name, version in source["versions"].items())
        return f"documentation strings of {versions}"
    names = [file["name"] for file in source["files"]]
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
    return f"{source['kind']}: {shown} (hashes in the manifest)"


def _tokenizer(manifest: Mapping[str, Any]) -> str:
    tokenizer = manifest["tokenizer"]
    if "given" in tokenizer:
        lossy = "" if tokenizer.get("exact", True) else "; it changes texts: bytes are counted of the documents"
        return f"given, {manifest['vocab_size']:,} ids, SHA-256 {tokenizer['given'][:16]}{lossy}"
    kind = f"sentencepiece {tokenizer['sentencepiece']}, {tokenizer['kind']}"
    return f"{kind}, {manifest['vocab_size']:,} ids, trained on the training split"

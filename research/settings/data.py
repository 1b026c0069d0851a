"""Text, tokens and windows."""

import dataclasses

from research.settings.fields import setting


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Where the text comes from and how it is cut into windows."""

    source: str = setting(
        "docstrings",
        "kind of corpus; `docstrings` is embedded: the documentation strings of this Python installation",
        choices=("docstrings", "text", "jsonl"),
    )
    path: str = setting("", "file, directory or glob pattern of the corpus (for text and jsonl)", resumable=True)
    text_key: str = setting("text", "field of a JSONL object that holds the text")
    license: str = setting("unstated", "licence of the corpus, for the data card", execution=True)
    min_characters: int = setting(1, "shorter documents are dropped", unit="characters", minimum=1)
    deduplicate: bool = setting(True, "drop documents whose text occurred before")
    validation_fraction: float = setting(0.02, "share of the documents that is held out", minimum=1e-6, maximum=0.5)
    shuffle_seed: int = setting(0, "seed of the permutation of documents; its prefixes are the pools", minimum=0)
    num_tokens: int | None = setting(
        None, "pool of distinct training tokens, a prefix of the permutation; none: all", unit="tokens", minimum=1
    )
    sequence_length: int = setting(128, "length of what the model sees", unit="tokens", minimum=2)
    raw_length: int | None = setting(
        None,
        "tokens of a window before corruption, to give several objectives the same windows; none: as many as the "
        "objective turns into sequence_length",
        unit="tokens",
        minimum=2,
        since=2,
    )
    packing: str = setting(
        "stream",
        "`stream` cuts the documents laid end to end; `fit` places whole documents into windows",
        choices=("stream", "fit"),
    )
    prefetch: int = setting(
        2, "batches prepared ahead; 0 prepares each when it is asked for", unit="batches", minimum=0, execution=True
    )


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
    """The tokenizer: a sentencepiece model trained on the training documents, or any that is given."""

    kind: str = setting("bpe", "algorithm of sentencepiece", choices=("bpe", "unigram"))
    vocab_size: int = setting(
        4096, "number of ids, special ones and 256 bytes included", unit="tokens", minimum=300, maximum=2**20
    )
    path: str = setting(
        "",
        "an existing tokenizer: sentencepiece model, tokenizer.json or directory of Hugging Face; empty: train one",
        resumable=True,
    )
    training_bytes: int = setting(
        50_000_000, "text that the tokenizer is trained on, at most", unit="bytes", minimum=1000
    )

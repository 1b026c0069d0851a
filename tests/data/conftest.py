from collections.abc import Iterator
from pathlib import Path

import pytest

from research.data.prepare import Prepared, prepare
from tests.data.corpora import documents, text_settings, write_texts


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a cache of its own."""
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    """300 short documents, prepared once a module."""
    folder = tmp_path_factory.mktemp("corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOFLOP_CACHE", str(folder / "cache"))
        yield prepare(text_settings(write_texts(folder / "texts", documents(300))))

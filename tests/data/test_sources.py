import gzip
import json
import sys
from pathlib import Path

import pytest

from research.data.cleaning import Counts, clean
from research.data.sources import PACKAGES, Document, docstring_files, docstrings, open_source
from research.errors import UserError
from research.settings import DataSettings
from tests.data.corpora import write_texts


def read(source: str, path: Path | str, **keys: str) -> list[Document]:
    return list(open_source(DataSettings(source=source, path=str(path), **keys)).documents())


def test_a_text_file_is_a_document_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name, text in [
        ("b/2.txt", "two"),
        ("a.txt", "one\r\n"),
        ("b/10.txt", "ten"),
        (".hidden", "no"),
        ("b/.x", "no"),
    ]:
        (tmp_path / name).write_bytes(text.encode())
    assert [d.text for d in read("text", tmp_path)] == ["one\r\n", "ten", "two"]
    assert [d.origin for d in read("text", tmp_path)] == ["a.txt", "b/10.txt", "b/2.txt"]
    assert [d.text for d in read("text", tmp_path / "b" / "*.txt")] == ["ten", "two"]
    assert [d.text for d in read("text", tmp_path / "**" / "1*.txt")] == ["ten"]


def test_a_moved_corpus_is_the_same_corpus(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        write_texts(tmp_path / folder, ["one", "two"])
    for pattern in ("", "*.txt"):
        first, second = (
            open_source(DataSettings(source="text", path=str(tmp_path / f / pattern))) for f in ("here", "there")
        )
        assert first.description == second.description


@pytest.mark.parametrize(
    "text", ["a paragraph of words\n\n" * 2000, "a line\n" * 9000, "x" * 9000, "one\n\n" + "y\n" * 9000]
)
def test_one_long_file_is_cut_and_nothing_is_lost(tmp_path: Path, text: str) -> None:
    (tmp_path / "long.txt").write_text(text)
    found = read("text", tmp_path / "long.txt")
    assert "".join(document.text for document in found) == text
    assert ("\n" not in text) == (len(found) == 1)
    assert len({document.origin for document in found}) == len(found)


@pytest.mark.parametrize("compressed", [False, True])
def test_json_lines(tmp_path: Path, compressed: bool) -> None:
    rows = [{"text": "one\nline"}, {"text": "zwei ß", "id": 3}]
    data = ("\ufeff" + "\n\n".join(json.dumps(row) for row in rows)).encode()
    path = tmp_path / ("rows.jsonl.gz" if compressed else "rows.jsonl")
    path.write_bytes(gzip.compress(data) if compressed else data)
    for where in (path, tmp_path):
        assert [(d.text, d.origin) for d in read("jsonl", where)] == [
            ("one\nline", f"{path.name}:1"),
            ("zwei ß", f"{path.name}:3"),
        ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{not json", "not valid JSON"),
        (b'["text"]', "no key 'text'"),
        (b'{"body": "x"}', r"no key 'text' \(the keys are body\); set data.text_key"),
        (b'{"text": 3}', "'text' holds int, not text"),
        (b'{"text": "\\ud800"}', "surrogate"),
        (b'{"text": "\xff"}', "not UTF-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b"\n")
    with pytest.raises(UserError, match=message) as caught:
        read("jsonl", path)
    assert f"{path}, line 3:" in str(caught.value)


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "x"}\n' * 10_000)[:-20])
    with pytest.raises(UserError, match=r"rows\.jsonl\.gz, after line \d+: the file is damaged"):
        read("jsonl", path)


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt is not UTF-8 text \(byte 3 is 0xe9\)"):
        read("text", tmp_path / "latin.txt")


@pytest.mark.parametrize("name", ["nowhere", "nowhere/*.txt", "empty"])
def test_a_missing_corpus_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"data\.path=.*: no file") as caught:
        read("text", tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_documentation_strings_of_a_module(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        '"""Module.\n\n    indented\n    """\nif True:\n  class A:\n    """Class."""\n'
        '    async def f(self):\n      """Method."""\n      def g():\n        """Inner."""\n'
        'try:\n  pass\nexcept OSError:\n  def h():\n    """Handler."""\nx = """no documentation"""\n'
    )
    assert [(d.text, d.origin) for d in docstrings(path, "p/module.py")] == [
        ("Module.\n\nindented", "p/module.py"),
        ("Class.", "p/module.py:A"),
        ("Method.", "p/module.py:A:f"),
        ("Inner.", "p/module.py:A:f:g"),
        ("Handler.", "p/module.py:h"),
    ]
    path.write_text('"""Not Python""" (')
    assert docstrings(path, "p") == []


def test_installing_something_else_leaves_the_embedded_corpus_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, files = open_source(DataSettings()), docstring_files()
    assert len(files) > 2000 and before.description["versions"].keys() == {"python", *PACKAGES}
    (tmp_path / "jax_extra-1.0.dist-info").mkdir()
    (tmp_path / "jax_extra-1.0.dist-info" / "METADATA").write_text("Name: jax-extra\nVersion: 1.0\n")
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "extra.py").write_text('"""Something else."""')
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert open_source(DataSettings()) == before and docstring_files() == files


def test_cleaning_counts_what_it_drops() -> None:
    documents = [Document(text, str(place)) for place, text in enumerate(["aaa", "b", "aaa", "ccc", ""])]
    counts = Counts()
    kept = [document.text for document, _ in clean(documents, counts, min_characters=2, deduplicate=True)]
    assert kept == ["aaa", "ccc"] and counts == Counts(read=5, short=2, duplicate=1, kept=2)
    counts = Counts()
    digests = [digest for _, digest in clean(documents, counts, min_characters=1, deduplicate=False)]
    assert counts == Counts(read=5, short=1, duplicate=0, kept=4) and digests[0] == digests[2] != digests[1]

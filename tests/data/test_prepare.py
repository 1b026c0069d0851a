import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from research.data import prepare as job
from research.data.prepare import Prepared, cached, open_prepared, prepare
from research.data.shards import ShardReader
from research.errors import UserError
from research.settings import DataSettings, Settings, TokenizerSettings
from tests.data.corpora import documents, text_settings, tree_hashes, write_texts

TEXTS = documents(120)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return text_settings(write_texts(tmp_path / "texts", TEXTS))


def texts_of(prepared: Prepared, reader: ShardReader) -> list[str]:
    offsets = reader.document_offsets.tolist()
    return [prepared.tokenizer.decode(reader.read(start, stop)) for start, stop in itertools.pairwise(offsets)]


def splits_of(prepared: Prepared) -> tuple[list[str], list[str]]:
    return texts_of(prepared, prepared.train), texts_of(prepared, prepared.heldout)


def changed(settings: Settings, **data: Any) -> Settings:
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, **data))


def test_every_document_comes_back_from_one_of_the_splits(settings: Settings) -> None:
    prepared = prepare(settings)
    train, heldout = splits_of(prepared)
    assert sorted(train + heldout) == sorted(TEXTS)
    for reader, texts in ((prepared.train, train), (prepared.heldout, heldout)):
        assert reader.document_bytes.tolist() == [len(text.encode()) for text in texts]
        ends = reader.document_offsets[1:] - 1
        assert (reader.at(ends) == prepared.tokenizer.vocabulary.eos).all()
        assert np.count_nonzero(reader.read(0, reader.num_tokens) == prepared.tokenizer.vocabulary.eos) == len(texts)


def test_the_same_input_gives_the_same_bytes(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(settings)
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "other"))
    second = prepare(settings)
    assert first.directory != second.directory
    assert tree_hashes(first.directory.parent) == tree_hashes(second.directory.parent)
    assert first.data_hash == second.data_hash


def test_the_cache_is_found_again_whatever_windows_are_cut(settings: Settings) -> None:
    assert cached(settings) is None
    made: list[str] = []
    prepared = prepare(settings, made.append)
    assert made
    for same in (settings, changed(settings, sequence_length=7, num_tokens=5, packing="fit", prefetch=0)):
        assert cached(same) == prepared.directory
        made.clear()
        assert prepare(same, made.append).data_hash == prepared.data_hash and not made
    for other in ({"min_characters": 2}, {"shuffle_seed": 1}, {"validation_fraction": 0.2}, {"deduplicate": False}):
        assert cached(changed(settings, **other)) is None
    assert cached(dataclasses.replace(settings, tokenizer=TokenizerSettings(vocab_size=321))) is None
    (Path(settings.data.path) / "0000.txt").write_text("changed")
    assert cached(settings) is None


def test_a_document_keeps_its_split_whatever_is_added(settings: Settings) -> None:
    train, heldout = splits_of(prepare(settings))
    write_texts(Path(settings.data.path), TEXTS + documents(60, seed=9))
    more_train, more_heldout = splits_of(prepare(settings))
    assert set(train) <= set(more_train) and set(heldout) <= set(more_heldout)
    assert [text for text in more_train if text in set(train)] == train  # and its place in the order
    _, larger = splits_of(prepare(changed(settings, validation_fraction=0.3)))
    assert set(heldout) < set(larger)


def test_the_seed_shuffles_the_training_documents_alone(settings: Settings) -> None:
    train, heldout = splits_of(prepare(settings))
    other_train, other_heldout = splits_of(prepare(changed(settings, shuffle_seed=1)))
    assert train != other_train and sorted(train) == sorted(other_train) and heldout == other_heldout


def test_duplicates_stay_on_one_side(tmp_path: Path) -> None:
    settings = text_settings(write_texts(tmp_path / "texts", TEXTS + TEXTS), deduplicate=False)
    train, heldout = splits_of(prepare(settings))
    assert len(train) + len(heldout) == 240 and not set(train) & set(heldout)
    once = prepare(changed(settings, deduplicate=True))
    assert once.manifest["documents"] == {"read": 240, "short": 0, "duplicate": 120, "kept": 120}


def test_the_tokenizer_sees_training_documents_alone(tmp_path: Path) -> None:
    texts = [f"{text} {chr(0x4E00 + index) * 40}" for index, text in enumerate(TEXTS)]
    prepared = prepare(text_settings(write_texts(tmp_path / "texts", texts), vocab_size=420))
    _, heldout = splits_of(prepared)
    pieces = {prepared.tokenizer.piece(token) for token in range(420)}
    assert heldout and not any(text[-1] in piece for text in heldout for piece in pieces)


def test_a_given_tokenizer_is_used(settings: Settings) -> None:
    trained = prepare(settings)
    path = str(trained.directory / "tokenizer.model")
    given = prepare(dataclasses.replace(settings, tokenizer=TokenizerSettings(path=path)))
    assert given.directory != trained.directory and given.tokenizer.hash == trained.tokenizer.hash
    assert splits_of(given) == splits_of(trained)


def test_the_licence_is_restated_and_changes_no_data(settings: Settings) -> None:
    first = prepare(settings)
    second = prepare(changed(settings, license="CC0-1.0"))
    assert first.manifest["license"] == "unstated" and first.data_hash == second.data_hash
    again = open_prepared(first.directory)
    assert again.manifest["license"] == "CC0-1.0" and "CC0-1.0" in (again.directory / "card.md").read_text()
    assert again.data_hash == first.data_hash and again.card == (again.directory / "card.md").read_text()


def test_prepared_data_says_nothing_of_place_and_time(settings: Settings, tmp_path: Path) -> None:
    prepared = prepare(settings)
    for path in prepared.directory.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()


@pytest.mark.parametrize("texts", [[], [""], ["alone"]])
def test_a_corpus_too_small_to_split(tmp_path: Path, texts: list[str], cache: Path) -> None:
    folder = write_texts(tmp_path / "texts", ["", *texts])
    with pytest.raises(UserError, match=r"the corpus .* has (no documents|one document)") as caught:
        prepare(text_settings(folder))
    assert str(folder) in str(caught.value)
    assert not list(cache.rglob("*.bin"))


def test_both_splits_get_a_document(tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "texts", documents(2, longest=300))
    for fraction in (1e-6, 0.5):
        prepared = prepare(text_settings(folder, vocab_size=300, validation_fraction=fraction))
        assert prepared.train.num_documents == prepared.heldout.num_documents == 1


# --- damage -----------------------------------------------------------------------------------------------------------


def files_of(prepared: Prepared) -> list[str]:
    return sorted(path.name for path in prepared.directory.iterdir() if path.name not in {"card.md", "manifest.json"})


def test_damage_to_any_file_is_noticed_and_named(settings: Settings) -> None:
    prepared = prepare(settings)
    for name in files_of(prepared):
        path = prepared.directory / name
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        for damaged in (bytes(flipped), whole[:-2], b"", None):
            path.write_bytes(damaged) if damaged is not None else path.unlink()
            with pytest.raises(UserError, match="run `isoflop prepare` again") as caught:
                prepare(settings)
            assert str(path) in str(caught.value) and f"delete {prepared.directory}" in str(caught.value)
            path.write_bytes(whole)
    assert prepare(settings).data_hash == prepared.data_hash


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 1, "files": 3, "splits": {}}'])
def test_a_damaged_manifest_is_named(settings: Settings, text: str) -> None:
    directory = prepare(settings).directory
    (directory / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json is damaged.*delete"):
        open_prepared(directory)


def edit_manifest(directory: Path, **changes: Any) -> None:
    path = directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_tokenizer_of_another_corpus_is_refused(settings: Settings) -> None:
    prepared = prepare(settings)
    other = prepare(changed(settings, shuffle_seed=1))
    larger = prepare(dataclasses.replace(settings, tokenizer=TokenizerSettings(vocab_size=330)))
    for source in (other, larger):
        if source.tokenizer.hash != prepared.tokenizer.hash:
            shutil.copy(source.directory / "tokenizer.model", prepared.directory / "tokenizer.model")
            with pytest.raises(UserError, match=r"tokenizer\.model is damaged.*manifest"):
                open_prepared(prepared.directory)
    # Even where the manifest was made to agree with the smaller tokenizer, ids must be below its size.
    edit_manifest(larger.directory, vocab_size=320, files=prepared.manifest["files"])
    shutil.copy(other.directory / "tokenizer.model", larger.directory / "tokenizer.model")
    edit_manifest(larger.directory, files={"tokenizer": other.manifest["files"]["tokenizer"]})
    with pytest.raises(UserError, match=r"train-00000\.bin is damaged, it has the id 3\d\d, the tokenizer has 320"):
        open_prepared(larger.directory)


def test_a_manifest_that_leads_out_of_its_folder_is_refused(settings: Settings, tmp_path: Path) -> None:
    prepared = prepare(settings)
    entry = prepared.manifest["files"]["tokenizer"]
    edit_manifest(prepared.directory, files={"tokenizer": entry | {"name": "../tokenizer.model"}})
    with pytest.raises(UserError, match="leads out of the folder"):
        open_prepared(prepared.directory)


def test_another_format_or_no_data_at_all(settings: Settings, tmp_path: Path) -> None:
    directory = prepare(settings).directory
    edit_manifest(directory, format=99)
    with pytest.raises(UserError, match="has format 99"):
        open_prepared(directory)
    with pytest.raises(UserError, match="no prepared data at"):
        open_prepared(tmp_path / "nowhere")


# --- the cache folder -------------------------------------------------------------------------------------------------


def test_a_cache_that_cannot_be_written_to(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write prepared data to .*set ISOFLOP_CACHE"):
        prepare(settings)


def test_the_cache_is_in_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ISOFLOP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert job.cache_directory() == tmp_path / "isoflop"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert job.cache_directory() == Path.home() / ".cache" / "isoflop"


PROCESS = """
import resource, sys, time
from pathlib import Path
from research.data.prepare import prepare
from research.errors import UserError
from tests.data.corpora import text_settings

def progress(message):
    print(message, flush=True)
    if sys.argv[2] == "stop" and "training" in message:
        time.sleep(600)

if sys.argv[2] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
while sys.argv[2] == "wait" and not Path(sys.argv[1], "..", "go").exists():
    time.sleep(0.001)
try:
    print("HASH", prepare(text_settings(Path(sys.argv[1])), progress).data_hash)
except UserError as error:
    print("REFUSED", error)
"""


def start(settings: Settings, mode: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROCESS, settings.data.path, mode]
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)}
    )


def test_two_processes_that_prepare_at_once_both_succeed(settings: Settings, tmp_path: Path, cache: Path) -> None:
    processes = [start(settings, "wait") for _ in range(2)]
    time.sleep(1.0)
    (tmp_path / "go").touch()
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    hashes = {line for output in outputs for line in output.splitlines() if line.startswith("HASH")}
    assert hashes == {f"HASH {prepare(settings).data_hash}"}
    assert len(list((cache / "prepared").iterdir())) == 1


def test_what_a_killed_process_leaves_is_never_used_and_removed(settings: Settings, cache: Path) -> None:
    process = start(settings, "stop")
    assert process.stdout is not None
    while "training" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    (left,) = (cache / "prepared").iterdir()
    assert left.name.startswith(".tmp~") and cached(settings) is None
    prepared = prepare(settings)
    assert list((cache / "prepared").iterdir()) == [prepared.directory]


def test_what_a_living_process_writes_is_left_alone(settings: Settings, cache: Path) -> None:
    process = start(settings, "stop")
    assert process.stdout is not None
    while "training" not in process.stdout.readline():
        assert process.poll() is None
    prepare(settings)
    assert len(list((cache / "prepared").iterdir())) == 2
    process.kill()
    process.communicate(timeout=60)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(settings: Settings, cache: Path) -> None:
    output = start(settings, "full").communicate(timeout=60)[0]
    assert "REFUSED cannot write prepared data to" in output and "ISOFLOP_CACHE" in output
    assert not list((cache / "prepared").iterdir())


# --- the embedded corpus ----------------------------------------------------------------------------------------------


def test_the_embedded_corpus() -> None:
    settings = Settings(data=DataSettings(), tokenizer=TokenizerSettings(vocab_size=2048))
    prepared = prepare(settings)
    counts = prepared.manifest["documents"]
    assert counts["kept"] > 20_000 and counts["duplicate"] > 100
    assert prepared.train.num_bytes + prepared.heldout.num_bytes > 10_000_000
    assert prepared.train.num_bytes / prepared.train.num_tokens > 2.7
    assert "PSF" in prepared.manifest["license"] and "jax" in prepared.manifest["source"]["versions"]
    with (prepared.directory / "documents.jsonl").open(encoding="utf-8") as lines:
        snapshot = [json.loads(line)["text"] for line in lines]
    train, heldout = splits_of(prepared)
    assert sorted(snapshot) == sorted(train + heldout) and len(set(snapshot)) == len(snapshot)

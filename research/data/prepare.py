"""The offline job: documents to tokenizer, token shards, manifest and data card, in a content-addressed cache."""

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from research.data import sentencepieces
from research.data import tokenizer as tokenizers
from research.data.card import data_card
from research.data.cleaning import Counts, clean
from research.data.draws import keyed_hash
from research.data.sentencepieces import SentencepieceTokenizer
from research.data.shards import HashedFile, ShardReader, ShardWriter, token_dtype
from research.data.sources import Source, open_source
from research.data.spool import Spool
from research.data.tokenizer import Tokenizer
from research.errors import UserError
from research.settings import DataSettings, Settings

# Raise it when the same key would mean other bytes: another split, order, cleaning or layout.
FORMAT_VERSION = 1
# Below this size every start verifies the hashes of all files (about a second); above it their sizes alone.
VERIFY_BYTES = 2**30
SPLITS = ("train", "heldout")
_MANIFEST_KEYS = {"source", "license", "data", "tokenizer", "vocab_size", "documents", "files", "splits"}
_STALE_SECONDS = 7 * 24 * 3600
_BATCH_DOCUMENTS = 1000

Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared corpus, opened.

    Attributes:
      directory: its entry in the cache.
      manifest: counts, sizes and hashes of all files, versions, licence.
      tokenizer: the tokenizer of the shards.
      data_hash: 16 hexadecimal digits that name tokens, split, order and tokenizer (not the licence).
      train: the training split.
      heldout: the held-out split.
    """

    directory: Path
    manifest: dict[str, Any]
    tokenizer: Tokenizer
    data_hash: str
    train: ShardReader
    heldout: ShardReader

    @property
    def card(self) -> str:
        """The data card, Markdown."""
        return data_card(self.manifest, self.train, self.heldout)


def cache_directory() -> Path:
    """Where prepared data lives: `$ISOFLOP_CACHE`, or `isoflop` in the user's cache folder."""
    if chosen := os.environ.get("ISOFLOP_CACHE"):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "isoflop"


def prepare(settings: Settings, progress: Progress | None = None) -> Prepared:
    """The prepared corpus of the settings, from the cache or made now.

    Two processes that prepare the same at once both succeed; one of them keeps its work. Preparing the same corpus with
    another `data.license` restates the licence in the manifest and the card.

    Args:
      settings: `data` and `tokenizer` are used.
      progress: is told in a few words what is being done.

    Raises:
      UserError: no corpus, an unreadable one, a tokenizer that does not fit, or a cache that cannot be written to.
    """
    source, given = open_source(settings.data), _given_tokenizer(settings)
    directory = _entry(source, given, settings)
    if not directory.exists():
        with _writing(directory.parent):
            _make(directory, source, given, settings, progress or (lambda _: None))
    prepared = open_prepared(directory)
    if prepared.manifest["license"] != source.license:
        manifest = {**prepared.manifest, "license": source.license}
        prepared = dataclasses.replace(prepared, manifest=manifest)
        with _writing(directory):
            _replace(directory / "manifest.json", _to_json(manifest))
            _replace(directory / "card.md", prepared.card)
    return prepared


def cached(settings: Settings) -> Path | None:
    """The entry of the settings in the cache, or none where it has to be prepared first."""
    directory = _entry(open_source(settings.data), _given_tokenizer(settings), settings)
    return directory if directory.exists() else None


# --- identity ---------------------------------------------------------------------------------------------------------


def _given_tokenizer(settings: Settings) -> Tokenizer | None:
    return tokenizers.load(settings.tokenizer.path) if settings.tokenizer.path else None


def _tokenizer_description(given: Tokenizer | None, settings: Settings) -> dict[str, Any]:
    if given:
        return {"given": given.hash} | ({} if given.exact else {"exact": False})
    trained = dataclasses.asdict(settings.tokenizer) | {"sentencepiece": sentencepiece.__version__}
    del trained["path"]
    return trained


def _data_description(data: DataSettings) -> dict[str, Any]:
    names = ("min_characters", "deduplicate", "validation_fraction", "shuffle_seed")
    return {name: getattr(data, name) for name in names}


def _entry(source: Source, given: Tokenizer | None, settings: Settings) -> Path:
    content = {
        "format": FORMAT_VERSION,
        "source": source.description,
        "data": _data_description(settings.data),
        "tokenizer": _tokenizer_description(given, settings),
    }
    return cache_directory() / "prepared" / hashlib.sha256(_to_json(content).encode()).hexdigest()[:32]


def _to_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def _data_hash(manifest: dict[str, Any]) -> str:
    named = {name: value for name, value in manifest.items() if name != "license"}
    return hashlib.sha256(_to_json(named).encode()).hexdigest()[:16]


# --- making -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write prepared data to {directory} ({error.strerror or error}): "
            "set ISOFLOP_CACHE to a folder that you may write to and that has room"
        ) from error


def _make(directory: Path, source: Source, given: Tokenizer | None, settings: Settings, progress: Progress) -> None:
    """Writes the entry beside its place, then renames it: nothing half-written is ever found there."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(directory.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".tmp~{platform.node()}~{os.getpid()}~", dir=directory.parent))
    try:
        _write_entry(temporary, source, given, settings, progress)
        temporary.chmod(0o755)
        try:
            temporary.rename(directory)
        except OSError:
            if not directory.exists():  # Otherwise another process was first, with the same bytes.
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_stale(directory: Path) -> None:
    """Removes what killed processes of this machine left behind, and anybody's leftovers after a week."""
    for path in directory.glob(".tmp~*~*~*"):
        _, host, process, _ = path.name.split("~", 3)
        with contextlib.suppress(FileNotFoundError):
            dead = host == platform.node() and not _alive(int(process))
            if dead or time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _write_entry(
    directory: Path, source: Source, given: Tokenizer | None, settings: Settings, progress: Progress
) -> None:
    progress("reading documents")
    counts = Counts()
    documents = clean(
        source.documents(),
        counts,
        min_characters=settings.data.min_characters,
        deduplicate=settings.data.deduplicate,
    )
    files = {}
    with Spool(directory / "documents.tmp") as spool:
        snapshot = HashedFile(directory / "documents.jsonl") if source.kind == "docstrings" else None
        for document, digest in documents:
            spool.append(document.text, digest)
            if snapshot:
                row = {"origin": document.origin, "text": document.text}
                snapshot.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
        if snapshot:
            files["documents"] = snapshot.close()
        orders = dict(zip(SPLITS, split_documents(spool.digests(), counts, settings.data), strict=True))

        progress("training the tokenizer" if given is None else "using the given tokenizer")
        texts = _first_texts(spool, orders["train"], settings.tokenizer.training_bytes)
        tokenizer = given or SentencepieceTokenizer(sentencepieces.train(texts, settings.tokenizer))
        for number, (name, content) in enumerate(tokenizer.files.items()):
            part = HashedFile(directory / name)
            part.write(content)
            files[f"tokenizer_{number}" if number else "tokenizer"] = part.close()
        splits = {
            split: _write_split(directory, split, spool, order, tokenizer, progress) for split, order in orders.items()
        }
    manifest = {
        "format": FORMAT_VERSION,
        "source": source.description,
        "license": source.license,
        "data": _data_description(settings.data),
        "tokenizer": _tokenizer_description(given, settings),
        "vocab_size": tokenizer.vocabulary.size,
        "documents": dataclasses.asdict(counts),
        "files": files,
        "splits": splits,
    }
    (directory / "manifest.json").write_text(_to_json(manifest), encoding="utf-8")
    readers = [ShardReader(directory, split, splits[split]) for split in SPLITS]
    (directory / "card.md").write_text(data_card(manifest, *readers), encoding="utf-8")


def split_documents(digests: np.ndarray, counts: Counts, data: DataSettings) -> tuple[np.ndarray, np.ndarray]:
    """Documents of the training split in the order of the seeded permutation, and of the held-out split by digest.

    A document is held out for its text, wherever it stands; a larger share holds out the same documents and more. Each
    split gets at least one.
    """
    texts = np.unique(digests)
    if len(texts) < 2:
        where = data.path or data.source
        dropped = (
            f"{counts.read} read, {counts.short} shorter than data.min_characters={data.min_characters}, "
            f"{counts.read - counts.short - len(texts)} equal to another"
        )
        what = "has no documents" if not len(texts) else "has one document, and one is needed to be held out as well"
        raise UserError(f"the corpus {where} {what} ({dropped}): give more text")
    share = int(np.count_nonzero(texts < np.uint64(data.validation_fraction * 2.0**64)))
    last = texts[min(max(share, 1), len(texts) - 1) - 1]
    train, heldout = np.flatnonzero(digests > last), np.flatnonzero(digests <= last)
    shuffled = np.argsort(keyed_hash(digests[train], data.shuffle_seed), kind="stable")
    return train[shuffled], heldout[np.argsort(digests[heldout], kind="stable")]


def _first_texts(spool: Spool, order: np.ndarray, limit: int) -> Iterator[str]:
    """Training documents from the first until `limit` bytes are reached."""
    before = np.cumsum(spool.num_bytes()[order]) - spool.num_bytes()[order]
    for numbers in _batches(order[before < limit]):
        yield from spool.texts(numbers)


def _batches(order: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(order), _BATCH_DOCUMENTS):
        yield order[start : start + _BATCH_DOCUMENTS]


def _write_split(
    directory: Path, split: str, spool: Spool, order: np.ndarray, tokenizer: Tokenizer, progress: Progress
) -> dict[str, Any]:
    """Encodes documents in their order, each ended by `eos`, and returns the split's entry in the manifest."""
    vocabulary, num_bytes = tokenizer.vocabulary, spool.num_bytes()
    writer = ShardWriter(directory, split, token_dtype(vocabulary.size))
    eos = np.array([vocabulary.eos], dtype=np.int32)
    for count, numbers in enumerate(_batches(order)):
        if count % 10 == 0:
            progress(f"encoding {split} documents: {count * _BATCH_DOCUMENTS} of {len(order)}")
        encoded = tokenizer.encode_many(spool.texts(numbers))
        writer.write([np.concatenate([ids, eos]) for ids in encoded], num_bytes[numbers])
    return writer.close()


def _replace(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8", delete=False) as file:
        file.write(text)
    os.replace(file.name, path)


# --- opening ----------------------------------------------------------------------------------------------------------


def open_prepared(directory: str | Path) -> Prepared:
    """Opens a prepared corpus and checks it against its manifest.

    Sizes are always checked; hashes and token ids while the corpus is smaller than `VERIFY_BYTES`.

    Raises:
      UserError: a file is missing, truncated or altered, or belongs to another tokenizer; the sentence names it.
    """
    directory = Path(directory)
    manifest, entries = _read_manifest(directory)
    total = sum(entry["bytes"] for entry in entries)
    for entry in entries:
        path = directory / entry["name"]
        if Path(entry["name"]).name != entry["name"] or path.is_symlink():
            raise _damaged(directory, entry["name"], "leads out of the folder")
        if not path.is_file():
            raise _damaged(directory, entry["name"], "is missing")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise _damaged(directory, entry["name"], f"has {size} bytes, the manifest says {entry['bytes']}")
        if total <= VERIFY_BYTES or entry in tokenizer_files(manifest):
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                    raise _damaged(directory, entry["name"], "does not match the hash in the manifest")
    tokenizer = tokenizers.load(directory / manifest["files"]["tokenizer"]["name"])
    size = tokenizer.vocabulary.size
    if size != manifest["vocab_size"]:
        raise _damaged(directory, tokenizer.file_name, f"has {size} ids, the manifest says {manifest['vocab_size']}")
    readers = []
    for split in SPLITS:
        reader = ShardReader(directory, split, manifest["splits"][split])
        problem = reader.problem(size if total <= VERIFY_BYTES else None)
        if problem:
            raise _damaged(directory, *problem)
        readers.append(reader)
    return Prepared(directory, manifest, tokenizer, _data_hash(manifest), *readers)


def _read_manifest(directory: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The manifest, and its entries of single files: name, bytes, sha256."""
    if not directory.is_dir():
        raise UserError(f"there is no prepared data at {directory}: run `isoflop prepare`")
    try:
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        version = manifest["format"]
        entries = list(manifest["files"].values())
        for split in SPLITS:
            entry = manifest["splits"][split]
            entries += [*entry["shards"], entry["offsets"], entry["document_bytes"]]
        complete = manifest.keys() >= _MANIFEST_KEYS and all(e.keys() == {"name", "bytes", "sha256"} for e in entries)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(directory, "manifest.json", "is missing or no manifest") from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"{directory} has format {version}, this Isoflop reads {FORMAT_VERSION}: "
            "delete it and run `isoflop prepare`"
        )
    if not complete:
        raise _damaged(directory, "manifest.json", "lacks keys")
    return manifest, entries


def tokenizer_files(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The manifest's entries of the tokenizer's files: name, bytes, sha256."""
    return [entry for key, entry in manifest["files"].items() if key.startswith("tokenizer")]


def _damaged(directory: Path, name: str, what: str) -> UserError:
    return UserError(f"{directory / name} is damaged, it {what}: delete {directory} and run `isoflop prepare` again")

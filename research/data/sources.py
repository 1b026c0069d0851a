"""Where documents come from: text files, JSON lines, and the documentation strings of this Python installation."""

import ast
import dataclasses
import gc
import glob
import gzip
import hashlib
import importlib.metadata
import json
import platform
import re
import sysconfig
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from research.errors import UserError
from research.settings import DataSettings

# Whose documentation strings are the embedded corpus. Named, so that installing anything else changes nothing.
PACKAGES = (
    "jax",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "scipy",
    "ml_collections",
    "etils",
    "absl-py",
    "opt_einsum",
    "treescope",
    "rich",
    "jaxtyping",
)
DOCSTRINGS_LICENSE = (
    "PSF-2.0 (Python), Apache-2.0, BSD-3-Clause and MIT (the packages named): not for redistribution as one work"
)
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "_bundled", "__pycache__"}
_SCOPES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
_SURROGATE = re.compile("[\ud800-\udfff]")
# A corpus of one file is cut into documents of at least this many characters, so that some can be held out.
_CUT_CHARACTERS = 4096


@dataclasses.dataclass(frozen=True)
class Document:
    """A text, and where it came from (`file`, `file:line` or `package/module.py:name`)."""

    text: str
    origin: str


@dataclasses.dataclass(frozen=True)
class Source:
    """A corpus that can be read.

    Attributes:
      kind: `text`, `jsonl` or `docstrings`.
      description: what decides its documents, as JSON: file names with hashes, or packages with versions.
      license: licence for the data card.
      files: the files to read, with the names that they go by in the description (not for docstrings).
      text_key: field of a JSON line that holds the text.
    """

    kind: str
    description: dict[str, Any]
    license: str
    files: tuple[tuple[str, Path], ...] = ()
    text_key: str = "text"

    def documents(self) -> Iterator[Document]:
        """The documents, in an order that depends on nothing but the description.

        Raises:
          UserError: a file that cannot be read, is not UTF-8, or has a line without the text.
        """
        if self.kind == "docstrings":
            for name, path in docstring_files():
                yield from docstrings(path, name)
        elif self.kind == "jsonl":
            for name, path in self.files:
                yield from _json_lines(path, name, self.text_key)
        elif len(self.files) == 1:
            yield from _cut(Document(_read_text(self.files[0][1]), self.files[0][0]))
        else:
            for name, path in self.files:
                yield Document(_read_text(path), name)


def open_source(settings: DataSettings) -> Source:
    """The corpus that the settings name; files are hashed, not kept in memory.

    Raises:
      UserError: nothing is there, or it cannot be read.
    """
    if settings.source == "docstrings":
        if settings.path:
            raise UserError(
                f"data.path={settings.path} is given, but data.source=docstrings reads no files: "
                "set data.source to text or jsonl"
            )
        versions = {"python": platform.python_version()} | {name: _installed(name).version for name in PACKAGES}
        return Source("docstrings", {"kind": "docstrings", "versions": versions}, DOCSTRINGS_LICENSE)
    files = _find(settings.path, (".jsonl", ".jsonl.gz") if settings.source == "jsonl" else ())
    hashes = [{"name": name, "sha256": _hash(path)} for name, path in files]
    description: dict[str, Any] = {"kind": settings.source, "files": hashes}
    if settings.source == "jsonl":
        description["text_key"] = settings.text_key
    return Source(settings.source, description, settings.license, tuple(files), settings.text_key)


# --- files ------------------------------------------------------------------------------------------------------------


def _find(path: str, endings: tuple[str, ...]) -> list[tuple[str, Path]]:
    """The files below a file, directory or pattern, by name: directories recursively, hidden files left out."""
    root = Path(path).expanduser()
    if root.is_file():
        return [(root.name, root)]
    if root.is_dir():
        found = [file for file in root.rglob("*") if file.is_file() and file.name.endswith(endings or ("",))]
        found = [file for file in found if not any(part.startswith(".") for part in file.relative_to(root).parts)]
    else:
        matches = [Path(name) for name in glob.glob(str(root), recursive=True)]
        found = [file for file in matches if file.is_file()]
        # Names are relative to the part of the pattern that has no wildcard, so that a moved corpus is the same corpus.
        fixed = next((n for n, part in enumerate(root.parts) if glob.has_magic(part)), len(root.parts) - 1)
        root = Path(*root.parts[:fixed])
    if not found:
        kinds = f" ending in {' or '.join(endings)}" if endings and Path(path).expanduser().is_dir() else ""
        raise UserError(
            f"data.path={path}: no file{kinds} found; give a file, a directory or a pattern such as texts/*.txt"
        )
    return sorted((file.relative_to(root).as_posix(), file) for file in found)


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot read {path}: {error.strerror or error}; mend it or take it out of data.path")


def _not_utf8(path: Path, error: UnicodeDecodeError) -> UserError:
    where = f"byte {error.start} is {error.object[error.start]:#04x}"
    return UserError(f"{path} is not UTF-8 text ({where}): convert it, or take it out of data.path")


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error


def _cut(document: Document) -> Iterator[Document]:
    """A long text as documents that end at a blank line, or at a line end where none is near; nothing is lost."""
    text, start, number = document.text, 0, 1
    while start < len(text):
        end = text.find("\n\n", start + _CUT_CHARACTERS, start + 2 * _CUT_CHARACTERS) + 2
        if end < 2:
            end = text.find("\n", start + _CUT_CHARACTERS) + 1 or len(text)
        yield Document(text[start:end], f"{document.origin}:{number}")
        start, number = end, number + 1


def _json_lines(path: Path, name: str, text_key: str) -> Iterator[Document]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    text = _text_of(line.decode("utf-8-sig"), f"{path}, line {number}", text_key)
                    yield Document(text, f"{name}:{number}")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {number}: not UTF-8 text; convert the file") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}, after line {number}: the file is damaged ({error}); copy it again") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _text_of(line: str, where: str, text_key: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not valid JSON ({error.msg} at column {error.colno}); mend or drop the line"
        ) from error
    if not isinstance(row, dict) or text_key not in row:
        known = f"the keys are {', '.join(row)}" if isinstance(row, dict) else "it is no object"
        raise UserError(f"{where}: no key {text_key!r} ({known}); set data.text_key to the one that holds the text")
    text = row[text_key]
    if not isinstance(text, str):
        raise UserError(
            f"{where}: {text_key!r} holds {type(text).__name__}, not text; mend the line or set data.text_key"
        )
    if _SURROGATE.search(text):
        raise UserError(f"{where}: half of a surrogate pair, which is no character; mend or drop the line")
    return text


# --- documentation strings --------------------------------------------------------------------------------------------


def _installed(package: str) -> importlib.metadata.Distribution:
    """A package that pip installed, with the list of its files."""
    try:
        distribution = importlib.metadata.distribution(package)
        if distribution.files is not None:
            return distribution
    except importlib.metadata.PackageNotFoundError:
        pass
    raise UserError(
        f"data.source=docstrings needs the package {package}, which pip has not installed here: "
        "install Isoflop again, or set data.source and data.path"
    )


def docstring_files() -> list[tuple[str, Path]]:
    """Names and paths of the modules of the standard library and the named packages, without their tests, by name."""
    library = Path(sysconfig.get_path("stdlib"))
    files = [(f"python/{file.relative_to(library).as_posix()}", file) for file in library.rglob("*.py")]
    for package in PACKAGES:
        distribution = _installed(package)
        files += [
            (f"{package}/{file.as_posix()}", Path(str(distribution.locate_file(file))))
            for file in distribution.files or ()
            if file.suffix == ".py" and ".." not in file.parts
        ]
    return sorted((name, file) for name, file in files if _NOT_LIBRARY.isdisjoint(name.split("/")) and file.is_file())


def docstrings(path: Path, name: str) -> list[Document]:
    """The documentation strings of a module, its classes and functions, in their order; none where it is no Python.

    Names under `if`, `try` and `with` are found too; the indentation that the source adds is removed (PEP 257).
    """
    source = path.read_bytes()
    if b'"""' not in source and b"'''" not in source:
        return []
    collecting = gc.isenabled()
    gc.disable()  # A syntax tree has no cycles: looking for them while it grows takes a third of the time.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return list(_docstrings_in(ast.parse(source), name))
    except (SyntaxError, ValueError):
        return []
    finally:
        if collecting:
            gc.enable()


def _docstrings_in(module: ast.Module, name: str) -> Iterator[Document]:
    pending: list[tuple[ast.AST, str]] = [(module, name)]
    while pending:
        node, origin = pending.pop()
        if isinstance(node, _SCOPES):
            text = ast.get_docstring(node)
            if text and not _SURROGATE.search(text):
                yield Document(text, origin)
        inner = [child for block in _BLOCKS for child in getattr(node, block, ())]
        for child in reversed(inner):
            named = isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            pending.append((child, f"{origin}:{child.name}" if named else origin))

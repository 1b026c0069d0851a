"""What the layers in pyproject.toml cannot state: which library is imported where, names and sizes of files."""

import ast
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("research", "launch", "configs", "experiments")
MAXIMUM_LINES = {"research/train/loop.py": 199}  # the file that a newcomer reads from top to bottom
DEFAULT_MAXIMUM_LINES = 400
VAGUE_NAMES = {"util", "utils", "helper", "helpers", "common", "misc", "manager"}

# What may be imported only under one path, so that it can be replaced there.
ONLY_IN = {
    "flax": "research/models/",
    "orbax": "research/checkpoint/",
    "grain": "research/data/loader.py",
    "beartype": "tests/",
    "research.cli": "research/cli/",
    "configs": ("configs/", "research/cli/"),
    "experiments": ("experiments/", "research/cli/"),
    "launch": ("launch/", "research/cli/"),
}
# What must not be imported under a path.
NEVER_IN = {"research/data/": ("jax", "jaxlib")}
# What of `research` a path may import at most, itself apart.
AT_MOST = {
    "launch/": ("research.config", "research.settings", "research.errors"),
    "research/scaling/": (
        "research.scaling",
        "research.settings",
        "research.trees",
        "research.models.flops",
        "research.errors",
        "research.train.curves",  # its report: how curves are thinned, how files are written, how pages look
        "research.train.metrics",
        "research.train.page",
    ),
}


def house_files() -> dict[str, str]:
    """The source of every module of the house, by its path from the root."""
    files = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    return {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files}


def imported_names(path: str, source: str) -> Iterator[str]:
    """The full name of everything that a module imports, wherever in the file: `research.models.flops.model_flops`."""
    package = path.split("/")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base += [node.module] if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)


def identifiers(source: str) -> set[str]:
    """Every bare name, attribute and part of an imported name in a module."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            parts = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found.update(part for name in parts for part in name.split("."))
    return found


def is_within(name: str, modules: str | tuple[str, ...]) -> bool:
    """Whether a full name is one of the modules or lies in one."""
    modules = (modules,) if isinstance(modules, str) else modules
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def import_violations(path: str, source: str) -> list[str]:
    """One sentence for each import that the three tables above do not allow."""
    found = []
    for name in imported_names(path, source):
        for library, places in ONLY_IN.items():
            if is_within(name, library) and not path.startswith(places):
                found.append(f"{path} imports {name}: {library} is imported in {places} alone")
        for place, libraries in NEVER_IN.items():
            if path.startswith(place) and is_within(name, libraries):
                found.append(f"{path} imports {name}: nothing in {place} imports {libraries}")
        for place, allowed in AT_MOST.items():
            if path.startswith(place) and is_within(name, "research") and not is_within(name, allowed):
                found.append(f"{path} imports {name}: {place} may import only {allowed}")
    if "shard_map" in identifiers(source) and not path.startswith("research/kernels/"):
        found.append(f"{path} names shard_map, which is used in research/kernels/ alone")
    return found


def shape_violations(path: str, source: str) -> list[str]:
    """One sentence for a file that is too long or has a name that says nothing."""
    found = []
    lines, maximum = len(source.splitlines()), MAXIMUM_LINES.get(path, DEFAULT_MAXIMUM_LINES)
    if lines > maximum:
        found.append(f"{path} has {lines} lines, {maximum} at most: look for the concept that wants its own file")
    for part in pathlib.PurePosixPath(path).with_suffix("").parts:
        if vague := VAGUE_NAMES & set(part.split("_")):
            found.append(f"{path}: {sorted(vague)} says nothing; name the file after what it is")
    return found


def test_libraries_stay_where_they_can_be_replaced() -> None:
    assert [line for path, source in house_files().items() for line in import_violations(path, source)] == []


def test_files_are_short_and_named_after_what_they_are() -> None:
    assert [line for path, source in house_files().items() for line in shape_violations(path, source)] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("research/train/step.py", "import flax.linen as nn"),
        ("research/train/step.py", "from orbax import checkpoint"),
        ("research/data/shards.py", "import grain"),
        ("research/data/loader.py", "def late():\n    import jax.numpy as jnp"),
        ("research/parallel/mesh.py", "from jax.experimental.shard_map import shard_map as mapped"),
        ("research/parallel/mesh.py", "import jax\njax.shard_map(len)"),
        ("research/train/loop.py", "from research import cli"),
        ("research/train/loop.py", "from ..cli import main"),
        ("research/config.py", "import configs.base"),
        ("launch/slurm.py", "from research.models import build"),
        ("research/scaling/fit.py", "from research.models import build"),
    ],
)
def test_a_broken_import_rule_is_found(path: str, source: str) -> None:
    assert import_violations(path, source) != []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("research/models/layers.py", "import flax.linen as nn\nimport jax"),
        ("research/data/loader.py", "import grain.python as grain\nimport jaxtyping"),
        ("research/kernels/dispatch.py", "import jax\njax.shard_map(len)"),
        ("research/scaling/fit.py", "from research.models.flops import model_flops\nfrom . import ladder"),
        ("launch/slurm.py", "from launch import local\nfrom research.settings import Settings"),
        ("research/cli/main.py", "import launch"),
    ],
)
def test_an_allowed_import_is_not_found(path: str, source: str) -> None:
    assert import_violations(path, source) == []


@pytest.mark.parametrize(
    ("path", "lines"), [("research/train/loop.py", 200), ("configs/base.py", 401), ("research/data_utils.py", 1)]
)
def test_a_broken_shape_rule_is_found(path: str, lines: int) -> None:
    assert shape_violations(path, "pass\n" * lines) != []

"""What a sweep is: a question, a recipe, and its points; and what its cells are."""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from research import config
from research.errors import UserError
from research.settings import Settings
from research.sweeps.algebra import Point, canonical
from research.sweeps.resolve import FROM_STEP, TRUNK, base_record, keys_of, resolved, trunk_of

ID_DIGITS = 10
KEEPS = ("best", "last", "all", "none")
ANALYSES = ("fit", "isoflop", "verdict", "transfer")
FITS = ("fit", "isoflop")
# Of the columns of rows.csv; beside them `heldout_loss_NAME` and `heldout_accuracy_NAME` of an objective's own terms.
YARDSTICKS = ("bits_per_byte", "heldout_loss", "heldout_perplexity", "heldout_accuracy", "train_loss")
NOT_STATED = "not stated"
ONE_FOR_ALL = "one learning rate and one batch for all sizes: a fit over sizes measures their mistuning as well"
# Keys of the shape come first in a name, the length and the seed last.
_LAST = ("train.num_steps", FROM_STEP, "seed")
# Names have to fit beside figures in 80 columns.
_CALLED = {"learning_rate": "lr", "weight_decay": "wd", "batch_size": "batch", "sequence_length": "length"}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep file's `get_sweep()` returns.

    Attributes:
      question: that the sweep answers, one sentence.
      recipe: as `--config` takes it: `configs/causal.py:tiny`.
      points: overrides of the recipe, one mapping a cell; see `research/sweeps/algebra.py`.
      baseline: keys that the cells have with which others are compared; none: there is no such cell.
      held_out: which points are predicted, not fitted; none: all are fitted.
      yardstick: figure of a cell that is compared and fitted, a column of rows.csv.
      keep: which checkpoints of a finished cell stay: the `best`, the `last`, `all` or `none`.
      analyses: what the report works out, of `fit`, `isoflop`, `verdict`, `transfer`.
      max_epochs: cells that would see the pool of distinct tokens more often are refused.
      tuning: how learning rate and batch were chosen at each size: what `by_rule` or `by_tuning` say, or a sentence.
    """

    question: str
    recipe: str
    points: tuple[Point, ...]
    baseline: Point | None = None
    held_out: Callable[[Point], bool] | None = None
    yardstick: str = "bits_per_byte"
    keep: str = "best"
    analyses: tuple[str, ...] = ANALYSES
    max_epochs: float = 1.0
    tuning: str = NOT_STATED

    def __post_init__(self) -> None:
        if not self.points:
            raise UserError(f"the sweep {self.question!r} has no points: give at least one")
        given: Any = self.analyses
        unknown = [given] if isinstance(given, str) else [name for name in given if name not in ANALYSES]
        if unknown:
            raise UserError(f"analyses={unknown[0]!r} of a sweep: give a tuple of {', '.join(ANALYSES)}")
        if self.yardstick not in YARDSTICKS and not self.yardstick.startswith(("heldout_loss_", "heldout_accuracy_")):
            raise UserError(f"yardstick={self.yardstick!r} of a sweep: choose one of {', '.join(YARDSTICKS)}")
        if self.held_out is not None and not callable(self.held_out):
            raise UserError(f"held_out={self.held_out!r} of a sweep: give a function of a point, or leave it out")
        if self.keep not in KEEPS:
            raise UserError(f"keep={self.keep!r} of a sweep: choose one of {', '.join(KEEPS)}")
        if not self.max_epochs > 0:
            raise UserError(f"max_epochs={self.max_epochs} of a sweep: it has to be more than 0")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
      id: ten digits of the scientific hash of its settings; of a branch, of its trunk and first step as well.
      name: what differs from other cells, to read.
      point: overrides of the recipe.
      settings: all that the run is.
      after: id of the trunk whose checkpoint it begins with; none: it begins anew.
      from_step: updates that the trunk had then.
      held_out: it is predicted, not fitted.
    """

    id: str
    name: str
    point: Point
    settings: Settings
    after: str | None = None
    from_step: int | None = None
    held_out: bool = False


@dataclasses.dataclass(frozen=True)
class Refused:
    """A point that cannot be a cell, and the sentence that says why."""

    name: str
    point: Point
    reason: str


def load_sweep(path: Path) -> Sweep:
    """The sweep of a sweep file, which may import the files beside it.

    Sweep files are Python and run with your rights: read what you run.

    Raises:
      UserError: there is no such file, it is no sweep file, or what it does fails.
    """
    if not path.is_file():
        known = ", ".join(sorted(map(str, Path("experiments").glob("*/sweep.py"))))
        raise UserError(f"there is no sweep file {path}" + (f"; sweeps here: {known}" if known else ""))
    spec = importlib.util.spec_from_file_location(f"isoflop_sweep_{path.parent.name}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file: a sweep file is called sweep.py")
    module = importlib.util.module_from_spec(spec)
    try:
        with _importable(path.parent):
            spec.loader.exec_module(module)
            made = getattr(module, "get_sweep", None)
            sweep = made() if callable(made) else made
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except SyntaxError as error:
        raise UserError(f"{path} is not Python: {error.msg} in line {error.lineno}") from error
    except (ArithmeticError, AttributeError, ImportError, LookupError, NameError, TypeError, ValueError) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f" in line {lines[-1]}" if lines else ""
        raise UserError(f"{path} fails{where}: {type(error).__name__}: {error}") from error
    if sweep is None:
        raise UserError(f"{path} has no function get_sweep that returns a Sweep")
    if not isinstance(sweep, Sweep):
        raise UserError(f"{path}: get_sweep gives {type(sweep).__name__}, not a Sweep: return research.sweeps.Sweep")
    return sweep


@contextlib.contextmanager
def _importable(directory: Path) -> Iterator[None]:
    """While it is open, modules of a directory can be imported; another sweep's of the same name are other modules."""
    place, before = str(directory.resolve()), set(sys.modules)
    sys.path.insert(0, place)
    try:
        yield
    finally:
        sys.path.remove(place)
        for name in set(sys.modules) - before:
            if os.path.dirname(getattr(sys.modules[name], "__file__", None) or "") == place:
                del sys.modules[name]


def text_hash(path: Path) -> str:
    """16 hexadecimal digits of a sweep file's text."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def cells_of(sweep: Sweep) -> tuple[list[Cell], list[Refused]]:
    """The cells of a sweep, and the points that cannot be one.

    Raises:
      UserError: two points are one run, a branch has no trunk among the points, all cells are held out, or the
        baseline is not one kind of cells.
    """
    base, names = base_record(sweep.recipe), names_of(sweep.points)
    cells: list[Cell] = []
    refused: list[Refused] = []
    check_baseline(sweep)
    for point, name in zip(sweep.points, names, strict=True):
        held_out = _held_out(sweep, point)
        try:
            cells.append(make_cell(base, point, name, sweep.keep, held_out=held_out))
        except UserError as error:
            refused.append(Refused(name, point, str(error)))
    check_ids(cells)
    if cells and all(cell.held_out for cell in cells) and {*FITS} & {*sweep.analyses}:
        raise UserError(
            f"held_out of a sweep takes all {len(cells)} cells, and nothing predicts them: leave some to fit"
        )
    return with_trunks(cells, dict(zip(names, sweep.points, strict=True))), refused


def check_baseline(sweep: Sweep) -> None:
    """Raises `UserError` where verdicts are asked for and the baseline is none or several kinds of cells."""
    if sweep.baseline is None or "verdict" not in sweep.analyses:
        return
    asked = dict(sweep.baseline)
    own = [keys_of(point) for point in sweep.points]
    kinds = {
        canonical({key: value for key, value in point.items() if key != "seed"})
        for point in own
        if all(point.get(key) == value for key, value in asked.items())
    }
    if len(kinds) != 1:
        raise UserError(
            f"baseline={asked} of a sweep is {len(kinds)} kinds of its cells: give keys and values that the points of "
            "one kind have, and no other"
        )


def _held_out(sweep: Sweep, point: Point) -> bool:
    try:
        return bool(sweep.held_out(keys_of(point))) if sweep.held_out else False
    except (ArithmeticError, AttributeError, LookupError, NameError, TypeError, ValueError) as error:
        raise UserError(
            f"held_out of the sweep fails for the point {canonical(keys_of(point))}: {type(error).__name__}: {error}"
        ) from error


def make_cell(base: Mapping[str, Any], point: Point, name: str, keep: str, *, held_out: bool = False) -> Cell:
    """The cell of a point over a recipe's record.

    Raises:
      UserError: the settings cannot be.
    """
    settings = retained(resolved(base, point), keep)
    trunk, step = trunk_of(point), point.get(FROM_STEP)
    if trunk is None:
        return Cell(cell_id(settings), name, point, settings, held_out=held_out)
    after = cell_id(resolved(base, trunk))
    return Cell(cell_id(settings, after, step), name, point, settings, after, step, held_out)


def tuning_of(sweep: Sweep, cells: Sequence[Settings]) -> str:
    """How learning rates and batches of a sweep were chosen; of one that does not state it, whether all are the same.

    Args:
      sweep: that may state it.
      cells: settings of its cells.
    """
    standard = [settings for settings in cells if settings.model.parametrisation == "standard"]
    sizes = {(settings.model.num_layers, settings.model.embed_dim) for settings in standard}
    choices = {(settings.optimizer.learning_rate, settings.train.batch_size) for settings in standard}
    untuned = sweep.tuning == NOT_STATED and len(sizes) > 1 and len(choices) == 1
    return ONE_FOR_ALL if untuned else sweep.tuning


def cell_id(settings: Settings, after: str | None = None, from_step: int | None = None) -> str:
    """What names a cell: its settings, and for a branch where it begins."""
    own = config.scientific_hash(settings)
    text = own if after is None else hashlib.sha256(f"{own} {after} {from_step}".encode()).hexdigest()
    return text[:ID_DIGITS]


def retained(settings: Settings, keep: str) -> Settings:
    """Settings under which a run leaves the checkpoints that `keep` wants; what is too many goes when it is done."""
    every = settings.train.checkpoint_every if keep == "all" else settings.train.keep_every
    return dataclasses.replace(settings, train=dataclasses.replace(settings.train, keep_every=every))


def check_ids(cells: Sequence[Cell]) -> None:
    """Raises `UserError` where two cells have one id."""
    seen: dict[str, Cell] = {}
    for cell in cells:
        if other := seen.get(cell.id):
            raise UserError(
                f"two points are one run, {cell.id}: {canonical(other.point)} and {canonical(cell.point)} differ in no "
                "key that changes a result: drop one of them"
            )
        seen[cell.id] = cell


def with_trunks(cells: Sequence[Cell], points: Mapping[str, Point]) -> list[Cell]:
    """The cells, each trunk before its branches and with checkpoints at the steps where they begin.

    Raises:
      UserError: a branch whose trunk is not there.
    """
    steps: dict[str, list[int]] = {}
    for cell in cells:
        if cell.after is not None and cell.from_step is not None:
            steps.setdefault(cell.after, []).append(cell.from_step)
    known = {cell.id for cell in cells}
    for cell in cells:
        if cell.after is not None and cell.after not in known:
            raise UserError(
                f"the cell {cell.name} branches from a run that is no cell of this sweep "
                f"({canonical(points[cell.name][TRUNK])}): keep what branch() gives together"
            )
    found = [_keeping(cell, steps[cell.id]) if cell.id in steps else cell for cell in cells]
    return sorted(found, key=lambda cell: cell.after is not None)


def _keeping(trunk: Cell, steps: Sequence[int]) -> Cell:
    every = math.gcd(*steps)
    train = dataclasses.replace(trunk.settings.train, checkpoint_every=every, keep_every=every)
    return dataclasses.replace(trunk, settings=dataclasses.replace(trunk.settings, train=train))


# --- names ------------------------------------------------------------------------------------------------------------


def names_of(points: Sequence[Point]) -> list[str]:
    """A name for each point: the keys in which points differ, as few as tell them apart."""
    keys = [key for key in dict.fromkeys(key for point in points for key in point) if key != TRUNK]
    values = {key: [json.dumps(point.get(key)) for point in points] for key in keys}
    varying = [key for key in keys if len(set(values[key])) > 1]
    words = {key for key in varying if all(isinstance(point.get(key, ""), str) for point in points)}
    varying.sort(
        key=lambda key: (_LAST.index(key) if key in _LAST else -1, -len(set(values[key])), key not in words, key)
    )
    shown: list[str] = []
    told = [""] * len(points)
    for key in varying:
        finer = [f"{before} {value}" for before, value in zip(told, values[key], strict=True)]
        if len(set(finer)) > len(set(told)):
            shown.append(key)
            told = finer
    texts = {key: _texts([point[key] for point in points if key in point]) for key in shown}
    found = [word for key in words & set(shown) for word in texts[key].values()]
    bare = {key for key in words & set(shown) if all(word and found.count(word) == 1 for word in texts[key].values())}
    called = {key: "" if key in bare else f"{name}=" for key, name in _short(shown).items()}
    return [
        " ".join(called[key] + texts[key][json.dumps(point[key])] for key in shown if key in point) or "only"
        for point in points
    ]


def _short(keys: Sequence[str]) -> dict[str, str]:
    last = {key: key.rsplit(".", 1)[-1].removeprefix("num_").removesuffix("_dim") for key in keys}
    last = {key: _CALLED.get(name, name) for key, name in last.items()}
    found = list(last.values())
    return {key: name if found.count(name) == 1 else key for key, name in last.items()}


def _texts(values: Sequence[Any]) -> dict[str, str]:
    """Values as they are written in names, by their JSON; numbers with as few digits as tell them apart, from three."""
    distinct = {json.dumps(value): value for value in values}
    for digits in range(3, 18):
        found = {text: _text(value, digits) for text, value in distinct.items()}
        if len(set(found.values())) == len(found):
            break
    return found


def _text(value: Any, digits: int) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value).replace("null", "none")
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)

"""Other layouts of the same run: which fit, which are fastest, and which is the nearest that fits."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from research import config
from research.errors import UserError
from research.parallel.mesh import axis_sizes
from research.plan.compiled import check_compiler
from research.plan.planning import Plan, Tell, plan
from research.plan.topologies import Topology
from research.settings import AXES, Settings

Changes = dict[str, Any]

# From what computes least again to what keeps least; those that the settings know.
REMATS = tuple(config.KEYS["parallel.remat"].metadata["choices"])
MOST_ACCUMULATION = 32
# The analysis counts what is kept, not what the compiler makes of it: what it finds this much too large may still fit.
MARGIN = 1.15


class Candidate(NamedTuple):
    """A layout: the keys that differ from the settings asked about, which turn these into the plan's, and its plan."""

    changes: Changes
    plan: Plan


class Found(NamedTuple):
    """The outcome of a search.

    Attributes:
      ranked: what fits, the fastest first; compiled ones before others where the compiler was asked.
      tried: layouts that were analysed.
      indivisible: layouts that the settings do not divide over.
      too_large: layouts that do not fit.
      compiled: layouts that were compiled.
    """

    ranked: tuple[Candidate, ...]
    tried: int
    indivisible: int
    too_large: int
    compiled: int


def changed(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """The settings with dotted keys changed."""
    return config.from_nested({name: settings[name] for name in config.KEYS} | dict(changes))


def meshes(settings: Settings, topology: Topology) -> Iterator[Changes]:
    """Layouts of the devices: slices or nodes as replicas, and data, fsdp, tensor and expert axes within."""
    inside = topology.num_devices // topology.slices
    experts = settings.model.num_experts
    for tensor, expert in itertools.product((1, 2, 4, 8), _divisors(experts) if experts else (1,)):
        if inside % (tensor * expert):
            continue
        rest = inside // (tensor * expert)
        for data in dict.fromkeys((1, rest, *(size for size in (2, 4, 8) if rest % size == 0 and rest // size >= 8))):
            sizes = {"replica": topology.slices, "data": data, "fsdp": rest // data, "expert": expert, "tensor": tensor}
            preset = "fsdp_tp" if tensor > 1 else "fsdp"
            yield {"parallel.preset": preset} | {f"parallel.mesh.{axis}": sizes.get(axis, 1) for axis in AXES}


def accumulations(settings: Settings) -> list[int]:
    """Numbers of micro-batches that divide the batch, from one on."""
    rows = settings.train.batch_size
    return [number for number in (1, 2, 4, 8, 16, 32) if rows % number == 0 and number <= MOST_ACCUMULATION]


def search(
    settings: Settings, topology: Topology, *, compiles: int = 0, price: float | None = None, tell: Tell = print
) -> Found:
    """Layouts of the run that fit, ranked by their estimated time.

    All are analysed; of those that fit, or nearly, the fastest are compiled until `compiles` of them fit.

    Raises:
      UserError: no layout divides over the devices, or the compiler that is asked for is not there.
    """
    if compiles:
        check_compiler(topology)
    fitting, tried, indivisible, reason = [], 0, 0, None
    layouts = [_shortest(settings, mesh, topology.num_devices) for mesh in meshes(settings, topology)]
    for remat, accumulation in itertools.product(REMATS, accumulations(settings)):
        tell(f"analysing remat {remat}, accumulation {accumulation}")
        for mesh in layouts:
            changes = _differing(settings, mesh | {"parallel.remat": remat, "train.accumulation": accumulation})
            tried += 1
            try:
                made = plan(changed(settings, changes), topology, compiles=False, price=price)
            except UserError as error:
                indivisible, reason = indivisible + 1, error
                continue
            if made.needed <= made.capacity * (MARGIN if compiles else 1.0):
                fitting.append(Candidate(changes, made))
    if indivisible == tried:
        assert reason is not None
        raise UserError(f"no layout of {topology.label} divides this run; the last refusal: {reason}")
    too_large = tried - indivisible - len(fitting)
    fitting.sort(key=_rank)
    if not compiles:
        return Found(tuple(fitting), tried, indivisible, too_large, 0)
    good: list[Candidate] = []
    asked = 0
    for candidate in fitting:
        if len(good) == compiles or asked == 3 * compiles:
            break
        asked += 1
        tell(f"compiling {describe(candidate.changes)}")
        made = plan(candidate.plan.settings, topology, price=price, tell=tell)
        if made.fits:
            good.append(Candidate(candidate.changes, made))
    good.sort(key=_rank)
    return Found(tuple(good), tried, indivisible, too_large, asked)


def nearest(of: Plan, *, compiles: bool, tell: Tell = print) -> Candidate | None:
    """The layout with the fewest changed keys that fits, the fastest of these; none: none does.

    Analysis decides first, corrected by what the compiler asked for; then the compiler, where it was asked before.
    """
    correction = max(1.0, of.needed / of.memory.total) if of.compiled is not None else 1.0
    fitting: list[tuple[int, Candidate]] = []
    for listed in _smaller(of.settings, of.topology):
        changes = _differing(of.settings, listed)
        if not changes:
            continue
        try:
            made = plan(changed(of.settings, changes), of.topology, compiles=False, price=of.price)
        except UserError:
            continue
        if made.memory.total * correction <= of.capacity:
            fitting.append((len(changes), Candidate(changes, made)))
        if fitting and len(changes) > min(count for count, _ in fitting) + 1:
            break
    fitting.sort(key=lambda found: (found[0], _rank(found[1])))
    if not compiles:
        return fitting[0][1] if fitting else None
    for _, candidate in fitting[:3]:
        tell(f"verifying {describe(candidate.changes)}")
        made = plan(candidate.plan.settings, of.topology, price=of.price, tell=tell)
        if made.fits:
            return Candidate(candidate.changes, made)
    return None


def _smaller(settings: Settings, topology: Topology) -> Iterator[Changes]:
    """Changes that need less memory, fewer of them first."""
    own = settings.train.accumulation
    smaller: list[Changes] = [
        {"train.accumulation": number} for number in accumulations(settings) if number > own and number % own == 0
    ]
    place = REMATS.index(settings.parallel.remat)
    kept: list[Changes] = [{"parallel.remat": remat} for remat in REMATS if remat != REMATS[place] and remat != "none"]
    free = {f"parallel.mesh.{axis}": None for axis in AXES if settings[f"parallel.mesh.{axis}"] is not None}
    sharded: list[Changes] = []
    if settings.parallel.preset in {"dp", "tp"}:
        presets = ["fsdp", "fsdp_tp"] if settings.parallel.preset == "dp" else ["fsdp_tp"]
        replicas = {"parallel.mesh.replica": topology.slices} if topology.slices > 1 else {}
        sharded = [{"parallel.preset": preset} | free | replicas for preset in presets]
    else:
        sharded = list(_gathered(settings, topology))
    kinds = (smaller, kept, sharded)
    for count in (1, 2, 3):
        for chosen in itertools.combinations(kinds, count):
            for parts in itertools.product(*chosen):
                yield {key: value for part in parts for key, value in part.items()}


def _gathered(settings: Settings, topology: Topology) -> Iterator[Changes]:
    """Meshes whose copies of the weights are split over `fsdp`, within a slice."""
    sizes = axis_sizes(settings.parallel, topology.num_devices)
    copies = {"data": sizes["data"], "replica": sizes["replica"] // topology.slices}
    for merged in ({"data"}, {"replica"}, {"data", "replica"}):
        if any(copies[axis] == 1 for axis in merged):
            continue
        fsdp = sizes["fsdp"] * math.prod(copies[axis] for axis in merged)
        wanted = sizes | {axis: sizes[axis] // copies[axis] for axis in merged} | {"fsdp": fsdp}
        yield {f"parallel.mesh.{axis}": size for axis, size in wanted.items() if size != sizes[axis]}


def describe(changes: Mapping[str, Any]) -> str:
    """The changes as a command takes them."""
    return " ".join(f"--config.{key}={'none' if value is None else value}" for key, value in changes.items())


def _differing(settings: Settings, changes: Changes) -> Changes:
    return {key: value for key, value in changes.items() if settings[key] != value}


def _shortest(settings: Settings, changes: Changes, devices: int) -> Changes:
    """The changes without sizes of axes that are not set and come out the same unsaid."""
    wanted = axis_sizes(changed(settings, changes).parallel, devices)
    found = _differing(settings, changes)
    for axis in AXES:
        key = f"parallel.mesh.{axis}"
        if key not in found or settings[key] is not None:
            continue
        fewer = {name: value for name, value in found.items() if name != key}
        try:
            same = axis_sizes(changed(settings, fewer).parallel, devices) == wanted
        except UserError:
            continue
        found = fewer if same else found
    return found


def _rank(candidate: Candidate) -> tuple[float, int, int]:
    """The fastest first; where nothing says how fast, the fewest operations; then what needs least memory."""
    roof = candidate.plan.roofline
    return (roof.step_seconds or roof.executed_flops, candidate.plan.settings.train.accumulation, candidate.plan.needed)


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def record(found: Found) -> dict[str, Any]:
    """The outcome as plain JSON."""
    return {
        "tried": found.tried,
        "indivisible": found.indivisible,
        "too_large": found.too_large,
        "compiled": found.compiled,
        "ranked": [
            {
                "changes": candidate.changes,
                "command": describe(candidate.changes),
                "step_seconds": candidate.plan.roofline.step_seconds,
                "needed": candidate.plan.needed,
                "compiled": candidate.plan.counted,
            }
            for candidate in found.ranked
        ],
    }

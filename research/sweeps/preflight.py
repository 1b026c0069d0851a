"""Before anything is submitted: is every cell possible, are there data enough, does it fit, what will it all take."""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from research.data import prepare
from research.data.prepare import Prepared
from research.data.windows import make_plan
from research.errors import UserError
from research.plan import memory, planning, verdict
from research.plan.topologies import Topology
from research.settings import OptimizerSettings, ParallelSettings, Settings
from research.sweeps.budgets import figures
from research.sweeps.sweep import Cell
from research.train.assembly import Assembly, assemble
from research.train.state import state_shapes

Tell = Callable[[str], None]
GIB = 2**30
# Of a machine's memory, what the cells may be planned to take: the estimate knows neither Python nor the compiler.
SHARE = 0.9


@dataclasses.dataclass(frozen=True)
class Place:
    """Where cells will run, as far as it decides whether they fit.

    Attributes:
      topology: named chips; none: this machine, or devices of which nothing is known.
      price: of a chip for an hour; none: unknown.
      here: the devices of this process are those that cells will see.
      memory: bytes that a cell may take of this machine; none: not checked.
    """

    topology: Topology | None = None
    price: float | None = None
    here: bool = True
    memory: int | None = None


@dataclasses.dataclass(frozen=True)
class Checked:
    """A cell with what it will take, or the sentence that says why it cannot be run.

    Attributes:
      cell: of the sweep.
      plan: `flops, required_flops, tokens, parameters, non_embedding_parameters, epochs`, `bytes` of the checkpoints
        that stay, `memory` in bytes of a device, and `seconds, chip_hours, cost` (none where nothing is known).
      data_hash: of its data; empty where there are none.
      problem: none where it can be run.
    """

    cell: Cell
    plan: Mapping[str, Any]
    data_hash: str
    problem: str | None


def here(workers: int) -> Place:
    """This machine, shared by so many workers; its memory is checked unless the cells will run on accelerators."""
    accelerated = any(os.path.exists(f"/dev/{name}") for name in ("nvidia0", "accel0", "kfd", "vfio/0"))
    if accelerated or not hasattr(os, "sysconf"):
        return Place(here=not accelerated)
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Place(memory=int(SHARE * whole / workers))


def preflight(
    cells: Sequence[Cell], place: Place, *, keep: str, max_epochs: float, tell: Tell = lambda line: None
) -> list[Checked]:
    """Checks and plans every cell, prepares their data, and refuses none of the others for one that cannot be."""
    corpora: dict[Any, Prepared | UserError] = {}
    shapes: dict[Any, dict[str, Any]] = {}
    found = []
    for cell in cells:
        plan: dict[str, Any] = {}
        data_hash, problem = "", None
        try:
            prepared = _prepared(cell.settings, corpora, tell)
            data_hash = prepared.data_hash
            assembly = _assembled(cell.settings, prepared, place)
            plan = counts(cell) | {"epochs": epochs(assembly, prepared)}
            if plan["epochs"] > max_epochs:
                raise _too_few(cell, prepared, plan["epochs"], max_epochs)
            plan |= _shape_plan(assembly, place, shapes, tell)
            plan |= _priced(cell, plan, place)
            plan["bytes"] = plan.pop("state_bytes") * kept(cell, keep)
        except UserError as error:
            problem = str(error)
        found.append(Checked(cell, plan, data_hash, problem))
    return found


def counts(cell: Cell) -> dict[str, Any]:
    """What a cell computes, from its settings alone; of a branch, what its trunk has not computed already."""
    of, steps = figures(cell.settings), cell.settings.train.num_steps - (cell.from_step or 0)
    return {
        "flops": steps * of.step_flops,
        "required_flops": steps * of.step_required_flops,
        "tokens": steps * of.step_tokens,
        "parameters": of.parameters,
        "non_embedding_parameters": of.non_embedding_parameters,
    }


def data_hashes(cells: Sequence[Cell], tell: Tell = lambda line: None) -> dict[str, str]:
    """The hash of the data that each cell would have now, by its id.

    Raises:
      UserError: the data are gone.
    """
    corpora: dict[Any, Prepared | UserError] = {}
    return {cell.id: _prepared(cell.settings, corpora, tell).data_hash for cell in cells}


def epochs(assembly: Assembly, prepared: Prepared) -> float:
    """How often a run sees its pool of distinct tokens.

    Raises:
      UserError: the corpus has fewer tokens than `data.num_tokens`, or not one window of them.
    """
    data, train = assembly.settings.data, assembly.settings.train
    plan = make_plan(prepared.train, data.packing, assembly.raw_length, data.num_tokens)
    return train.num_steps * train.batch_size / plan.num_windows


def _too_few(cell: Cell, prepared: Prepared, passes: float, most: float) -> UserError:
    pool = cell.settings.data.num_tokens
    limit = f"data.num_tokens={pool}" if pool else f"the corpus has {prepared.train.num_tokens} tokens"
    return UserError(
        f"train.num_steps={cell.settings.train.num_steps} would see the training tokens {passes:.2f} times, and the "
        f"sweep allows max_epochs={most:g} ({limit}): give more text, shorten the run, or raise max_epochs"
    )


def _prepared(settings: Settings, corpora: dict[Any, Prepared | UserError], tell: Tell) -> Prepared:
    data = dataclasses.replace(settings.data, num_tokens=None, sequence_length=2, raw_length=None, packing="stream")
    key = (data, settings.tokenizer)
    if key not in corpora:
        try:
            corpora[key] = prepare.prepare(settings, tell)
        except UserError as error:
            corpora[key] = error
    found = corpora[key]
    if isinstance(found, UserError):
        raise found
    return found


def _assembled(settings: Settings, prepared: Prepared, place: Place) -> Assembly:
    vocabulary = prepared.tokenizer.vocabulary
    if place.topology is not None:
        return assemble(settings, vocabulary, place.topology.devices())
    if place.here:
        return assemble(settings, vocabulary)
    alone = dataclasses.replace(settings, parallel=ParallelSettings())
    return assemble(alone, vocabulary, jax.devices("cpu")[:1])


def _shape_plan(assembly: Assembly, place: Place, shapes: dict[Any, dict[str, Any]], tell: Tell) -> dict[str, Any]:
    """Memory and, of named chips, the time of an update: the same for all cells that differ in numbers alone."""
    key = of_one_shape(assembly.settings)
    if key not in shapes:
        tell(f"planning {assembly.count.parameters:,} parameters")
        shapes[key] = _planned(dataclasses.replace(assembly, settings=key), place)
    found = shapes[key]
    if "problem" in found:
        raise UserError(found["problem"])
    return dict(found)


def _planned(assembly: Assembly, place: Place) -> dict[str, Any]:
    settings = assembly.settings
    state = state_shapes(settings, assembly.model, assembly.mesh, settings.parallel.preset)
    size = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(state.kept()))
    found: dict[str, Any] = {"state_bytes": size, "memory": None, "step_seconds": None, "chips": None}
    if place.topology is not None:
        plan = planning.plan(settings, place.topology, compiles=False, price=place.price)
        seconds = plan.roofline.step_seconds or None
        found |= {"memory": plan.needed, "step_seconds": seconds, "chips": place.topology.num_devices}
        return found if plan.fits else {"problem": verdict.sentence(plan, None)}
    if place.here and place.memory is not None:
        needed = memory.memory(assembly).total * assembly.mesh.size
        found["memory"] = needed
        if needed > place.memory:
            return {
                "problem": f"the run needs about {needed / GIB:.3g} GiB of memory, and a worker has "
                f"{place.memory / GIB:.3g} GiB: lower --parallel, or raise train.accumulation, or set parallel.remat"
            }
    return found


def _priced(cell: Cell, plan: dict[str, Any], place: Place) -> dict[str, Any]:
    step, chips = plan.pop("step_seconds"), plan.pop("chips")
    if step is None or chips is None:
        return {"seconds": None, "chip_hours": None, "cost": None}
    seconds = step * (cell.settings.train.num_steps - (cell.from_step or 0))
    hours = seconds * chips / 3600
    return {"seconds": seconds, "chip_hours": hours, "cost": None if place.price is None else place.price * hours}


def of_one_shape(settings: Settings) -> Settings:
    """The settings with all that changes no shape, and nothing but a shape's numbers, at one value."""
    rule, plain = settings.optimizer, OptimizerSettings()
    numbers = ("learning_rate", "warmup_steps", "decay_steps", "final_fraction", "weight_decay", "epsilon", "clip_norm")
    same = dataclasses.replace(rule, **{name: getattr(plain, name) for name in numbers})
    train = dataclasses.replace(settings.train, num_steps=1000)
    data = dataclasses.replace(settings.data, num_tokens=None)
    return dataclasses.replace(settings, seed=0, optimizer=same, train=train, data=data)


def kept(cell: Cell, keep: str) -> int:
    """Checkpoints that stay of a finished cell."""
    train = cell.settings.train
    if keep == "all" or train.keep_every is not None:
        every = train.checkpoint_every if keep == "all" else train.keep_every or train.checkpoint_every
        return -(-(train.num_steps - (cell.from_step or 0)) // every)
    return 0 if keep == "none" else 1


def totals(checked: Sequence[Checked]) -> dict[str, float | None]:
    """Sums over the cells that can be run; none where nothing is known."""
    found: dict[str, float | None] = {}
    for name in ("flops", "tokens", "bytes", "chip_hours", "cost"):
        values = [one.plan.get(name) for one in checked if one.problem is None]
        known = [value for value in values if value is not None]
        found[name] = sum(known) if known else None
    return found

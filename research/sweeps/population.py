"""Which cells can train together in one program, and whether it pays."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from research import config
from research.checkpoint.record import committed_steps
from research.checkpoint.restore import absolute
from research.errors import UserError
from research.objectives import build as build_objective
from research.objectives import raw_length
from research.parallel.chips import Chip, chip_of
from research.plan import memory
from research.plan.compiler import vocabulary_of
from research.plan.roofline import roofline
from research.plan.topologies import Topology
from research.settings import Settings
from research.sweeps import branching
from research.sweeps.folder import Folder
from research.sweeps.sweep import Cell
from research.train.assembly import assemble

# What decides no program: the traced numbers of `Hyper`, the seed, and what only the host reads, to choose the windows
# and to corrupt them. Where one of them is in use at all may decide one: see `program_of`.
NUMBERS = frozenset(
    {
        "seed",
        "data.num_tokens",
        "model.dropout",
        "objective.mask_rate",
        "objective.mask_rate_start",
        "objective.mask_token_rate",
        "objective.random_token_rate",
        "objective.masking",
        "objective.prefix_fraction",
        "objective.corruption_rate",
        "objective.mean_span_length",
        "objective.fim_rate",
        "objective.fim_spm_rate",
        "optimizer.learning_rate",
        "optimizer.warmup_steps",
        "optimizer.decay_steps",
        "optimizer.final_fraction",
        "optimizer.weight_decay",
        "optimizer.beta1",
        "optimizer.beta2",
        "optimizer.epsilon",
        "optimizer.clip_norm",
        "optimizer.momentum",
        "optimizer.muon_scale",
        "optimizer.ema_decay",
    }
)
# Of a mesh that a stacked dimension does not disturb: batches and weights are cut, activations are not.
UNCUT = ("expert", "sequence", "tensor")

# Seconds that a cell alone spends on its start and on compiling, and the seconds of its updates that a pack saves or
# costs on a CPU, over the same alone: `benchmarks/results/population-tiny.json`, two cores.
CPU_START, CPU_SLOWER = 1.0, 0.15
# FLOP/s of a core in updates of small models, for cells that no plan has timed: the same measurement.
CPU_CORE = 3.0e10
# Seconds of an update in which an accelerator waits for the host or starts operations: an assumption, a layer's being
# those of about 100 operations.
STEP_IDLE, LAYER_IDLE = 1e-3, 2e-4
# Of an accelerator's memory, what a pack may be planned to take.
SHARE = 0.9


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How many cells of a kind are to train together, 1 for none, and why: one line."""

    count: int
    reason: str


@functools.lru_cache(maxsize=4096)
def program_of(settings: Settings) -> tuple[Any, ...]:
    """What decides the programs of a run and the course of its loop: equal for runs that can train together."""
    rule, objective = settings.optimizer, build_objective(settings, vocabulary_of(settings))
    fixed = tuple(settings[name] for name in config.KEYS if name not in NUMBERS)
    used = (rule.momentum_or_default is None, rule.ema_decay is None, settings.model.dropout > 0.0)
    raw = raw_length(objective, settings)
    lengths = objective.lengths(raw)
    return (*fixed, *used, raw, lengths, objective.max_targets(lengths.sequence))


def packable(folder: Folder, cell: Cell) -> bool:
    """Whether a cell can train with others at all: branches and trunks run alone, and so do runs of many processes."""
    if cell.after is not None or branching.is_trunk(folder, cell) or jax.process_count() > 1:
        return False
    layout = cell.settings.parallel
    return layout.preset in ("dp", "fsdp") and all((getattr(layout.mesh, axis) or 1) == 1 for axis in UNCUT)


def partners(folder: Folder, first: Cell, cells: Sequence[Cell]) -> list[Cell]:
    """Those of the cells that can train with the first, in their order.

    A cell that has begun goes on with those that have a checkpoint of the same update, unless that costs one of them
    more than the updates between two checkpoints.
    """
    program, saved = program_of(first.settings), _steps(folder, first)
    found = []
    for cell in cells:
        if cell.id == first.id or not packable(folder, cell) or program_of(cell.settings) != program:
            continue
        own = _steps(folder, cell)
        shared = saved & own
        lost = max(saved | own, default=0) - max(shared, default=0)
        if lost <= first.settings.train.checkpoint_every and bool(shared) == bool(saved | own):
            found.append(cell)
            saved = shared
    return found


def _steps(folder: Folder, cell: Cell) -> frozenset[int]:
    return frozenset(committed_steps(absolute(folder.run(cell.id) / "checkpoints")))


# --- whether it pays --------------------------------------------------------------------------------------------------


def check_pack(pack: int) -> int:
    """The most cells of a pack.

    Raises:
      UserError: it is less than 1.
    """
    if pack < 1:
        raise UserError(f"--pack={pack}: a pack has at least one cell, and 1 trains each alone")
    return pack


def verdict(settings: Settings, plan: Mapping[str, Any], most: int) -> Verdict:
    """How many cells of a plan pay to be packed on the devices of this process, `most` at most."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return on_cpu(plan, most, cores, free_memory())
    chip = chip_of(device.device_kind)
    if chip is None:
        return Verdict(1, f"nothing is known of {device.device_kind}: each cell trains alone")
    return on_chip(settings, chip, most, devices=jax.devices())


def on_cpu(plan: Mapping[str, Any], most: int, cores: int, room: int | None = None) -> Verdict:
    """A pack saves all starts and compilations but one, and its updates may be slower; `room` is memory in bytes."""
    seconds = plan.get("seconds") or plan["flops"] / (CPU_CORE * cores)
    if room is not None and plan.get("memory"):
        most = min(most, int(SHARE * room // plan["memory"]))
    if most < 2:
        return Verdict(1, "a CPU: memory holds one cell alone")
    saved, lost = CPU_START * (most - 1) / most, CPU_SLOWER * seconds
    said = f"a CPU: about {seconds:.1f} s of updates a cell, of which packing may cost {lost:.1f} s; it saves"
    if saved > lost:
        return Verdict(most, f"{said} {saved:.1f} s of start and compilation")
    return Verdict(1, f"{said} only {saved:.1f} s of start and compilation: each cell trains alone")


def free_memory() -> int | None:
    """Bytes that this machine can give; none where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def on_chip(settings: Settings, chip: Chip, most: int, devices: Sequence[Any] | None = None) -> Verdict:
    """As many as fit, where the chip would wait for longer than it computes."""
    topology = Topology(chip.name, chip, (1, 1))
    assembly = assemble(settings, vocabulary_of(settings), topology.devices() if devices is None else devices)
    needed = memory.memory(assembly)
    busy = roofline(assembly, topology, needed, ()).step_seconds
    idle = STEP_IDLE + LAYER_IDLE * (settings.model.num_layers + settings.model.encoder_layers)
    fits = int(SHARE * chip.hbm_bytes // max(1, needed.total))
    said = f"{chip.name}: an update computes for {1e3 * busy:.2g} ms and waits for about {1e3 * idle:.2g} ms by plan"
    if busy > idle:
        return Verdict(1, f"{said}: each cell trains alone")
    if fits < 2:
        return Verdict(1, f"{said}, but memory holds one cell alone")
    count = min(most, fits)
    return Verdict(count, f"{said}, and memory holds {fits} cells")

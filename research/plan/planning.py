"""A plan: whether settings fit a topology, how long a run takes there, and what that rests on."""

import dataclasses
from collections.abc import Callable
from typing import Any

from research import config
from research.plan import memory, roofline, weights
from research.plan.compiled import Compiled, check_compiler, compiled
from research.plan.compiler import vocabulary_of
from research.plan.memory import Memory
from research.plan.roofline import Roofline
from research.plan.topologies import Topology
from research.plan.traffic import Flow
from research.settings import Settings
from research.train.assembly import Assembly, assemble

SCHEMA = 1
Tell = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Of settings on a topology.

    Attributes:
      settings: of the run.
      topology: the devices.
      assembly: the run on stand-ins for them.
      memory: bytes of a device by analysis.
      compiled: what the compiler says; none: it was not asked.
      flows: collectives of a step: the compiled ones, or an estimate.
      roofline: the estimate of time.
      price: of a chip for an hour; none: unknown.
    """

    settings: Settings
    topology: Topology
    assembly: Assembly
    memory: Memory
    compiled: Compiled | None
    flows: tuple[Flow, ...]
    roofline: Roofline
    price: float | None = None

    @property
    def capacity(self) -> int:
        """Bytes of a device that a program may use."""
        return self.topology.chip.hbm_bytes

    @property
    def needed(self) -> int:
        """Bytes of a device: by the compiler where it was asked, else by analysis."""
        if self.compiled is None:
            return self.memory.total
        if self.compiled.refused is None:
            return self.compiled.peak
        refused = self.compiled.refused
        return refused.needed + (self.memory.given if refused.temporaries else 0)

    @property
    def fits(self) -> bool:
        """The compiler's verdict where it was asked, else that of the analysis."""
        if self.compiled is not None and self.compiled.refused is not None:
            return False
        return self.needed <= self.capacity

    @property
    def kinds(self) -> list[tuple[str, int, str]]:
        """`(kind, bytes, how it was found)` of what fills a device, for the waterfall; arguments first."""
        rows = [(kind, size, "exact") for kind, size in self.memory.arguments.items()]
        if self.compiled is None or self.compiled.refused is not None:
            return rows + [(kind, size, "estimate") for kind, size in self.memory.estimates.items()]
        of = self.compiled.memory
        rows.append(("padding", max(0, of["argument"] - self.memory.given), "compiler"))
        rows.append(("temporaries", of["temp"], "compiler"))
        rows.append(("program", of["generated_code"] + of["output"] - of["alias"], "compiler"))
        return [row for row in rows if row[1] > 0]

    @property
    def largest(self) -> list[tuple[str, int]]:
        """Kinds by the bytes that they take, the largest first, by analysis."""
        known = {**self.memory.arguments, **self.memory.estimates}
        return sorted(known.items(), key=lambda item: -item[1])

    def record(self) -> dict[str, Any]:
        """All of it as plain JSON; bytes, seconds, FLOPs."""
        roof, steps, made = self.roofline, self.settings.train.num_steps, self.compiled
        timed = roof.step_seconds > 0
        hours = roof.chip_hours(steps)
        return {
            "schema": SCHEMA,
            "config_hash": config.scientific_hash(self.settings),
            "topology": {
                "name": self.topology.name,
                "slices": self.topology.slices,
                "devices": self.topology.num_devices,
                "chip": self.topology.chip.name,
            },
            "layout": layout(self.settings),
            "mesh": {axis: size for axis, size in self.assembly.mesh.shape.items() if size > 1},
            "kernels": dict(self.assembly.kernels.names),
            "parameters": self.assembly.count.parameters,
            "fits": self.fits,
            "compiled": made is not None,
            "memory": {
                "capacity": self.capacity,
                "needed": self.needed,
                "arguments": self.memory.arguments,
                "estimates": self.memory.estimates,
                "compiler": made.memory if made else None,
            },
            "flows": [flow._asdict() for flow in self.flows],
            "flows_from": "compiler" if self.counted else "analysis",
            "unknown_loops": list(made.unknown_loops) if made else [],
            "custom_kernels": made.custom_kernels if made else None,
            "flops": {"model": roof.model_flops, "required": roof.required_flops, "executed": roof.executed_flops},
            "estimate": {
                "step_seconds": roof.step_seconds,
                "compute_seconds": roof.compute_seconds,
                "memory_seconds": roof.memory_seconds,
                "communication_seconds": roof.communication,
                "bound": roof.bound,
                "utilisation": roof.utilisation,
                "intensity": roof.intensity,
                "tokens_per_step": roof.tokens,
                "tokens_per_second": roof.tokens_per_second,
                "tokens_per_day": 86_400 * roof.tokens_per_second,
                "num_steps": steps,
                "days": roof.days(steps),
                "chip_hours": hours,
                "cost": None if self.price is None or not timed else self.price * hours,
            },
            "assumptions": roofline.assumptions(self.topology),
            "versions": made.versions if made else {},
            "compile_seconds": made.seconds if made else None,
        }

    @property
    def counted(self) -> bool:
        """Whether the collectives are those of a compiled program."""
        return self.compiled is not None and self.compiled.refused is None


def assembled(settings: Settings, topology: Topology) -> Assembly:
    """The run on stand-ins for the topology's devices.

    Raises:
      UserError: batch, weights or mesh do not divide over the devices, or the mesh cannot be laid on the torus.
    """
    return assemble(settings, vocabulary_of(settings), topology.devices())


def layout(settings: Settings) -> dict[str, Any]:
    """The keys of execution that a plan turns on."""
    return {
        "parallel.preset": settings.parallel.preset,
        "parallel.remat": settings.parallel.remat,
        "train.batch_size": settings.train.batch_size,
        "train.accumulation": settings.train.accumulation,
    }


def plan(
    settings: Settings,
    topology: Topology,
    *,
    compiles: bool = True,
    price: float | None = None,
    tell: Tell = lambda line: None,
) -> Plan:
    """The plan of settings on a topology.

    Args:
      settings: of the run; neither data nor tokenizer need exist.
      topology: the devices, which need not be here.
      compiles: ask the compiler; otherwise all is analysis.
      price: of a chip for an hour.
      tell: is given a line for what takes long.

    Raises:
      UserError: the settings do not divide over the devices, or there is no compiler.
    """
    if compiles:
        check_compiler(topology)
    assembly = assembled(settings, topology)
    bytes_of = memory.memory(assembly)
    made = compiled(settings, topology, tell) if compiles else None
    counted = made is not None and made.refused is None
    flows = made.flows if made is not None and counted else tuple(weights.estimated_flows(assembly))
    temporaries = made.memory["temp"] if made is not None and counted else None
    estimate = roofline.roofline(assembly, topology, bytes_of, flows, temporaries)
    return Plan(settings, topology, assembly, bytes_of, made, flows, estimate, price)

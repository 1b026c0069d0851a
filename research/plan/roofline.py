"""The time of a step as the slowest of what it must do, under assumptions that are stated: an estimate."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from research.plan import memory
from research.plan.memory import Memory
from research.plan.operations import Operations
from research.plan.topologies import Topology, wire
from research.plan.trace import trace
from research.plan.traffic import Flow
from research.plan.weights import stored
from research.train.assembly import Assembly

# Share of a chip's peak that large products reach, and of communication that nothing hides.
ATTAINABLE, EXPOSED = 0.6, 0.1


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Of one step. Zero where no data sheet says how fast the devices are.

    Attributes:
      model_flops: of all devices, attention in full, nothing computed twice (`research/models/flops.py`).
      required_flops: the same of what the objective needs: utilisation is counted on these, as in training.
      executed_flops: of all devices, with what is computed again.
      hbm_bytes: that a device reads and writes.
      compute_seconds: of the products at the attainable share of the peak.
      memory_seconds: of `hbm_bytes` at the memory's bandwidth.
      communication: seconds by network; `host`: of what is offloaded to the host's memory and fetched again.
      step_seconds: the slowest of these, and the exposed share of communication.
      bound: what is slowest: `compute`, `memory` or a network.
      devices: how many.
      peak_flops: of a device: that of bfloat16, of int8 where products are quantised.
      tokens: raw tokens of a step.
    """

    model_flops: float
    required_flops: float
    executed_flops: float
    hbm_bytes: float
    compute_seconds: float
    memory_seconds: float
    communication: dict[str, float]
    step_seconds: float
    bound: str
    devices: int
    peak_flops: float
    tokens: float

    @property
    def utilisation(self) -> float:
        """Required FLOPs a second over the peak of all devices."""
        return self._rate(self.required_flops / (self.devices * self.peak_flops)) if self.peak_flops else 0.0

    @property
    def intensity(self) -> float:
        """Executed FLOPs of a device over the bytes that it reads and writes."""
        return self.executed_flops / self.devices / self.hbm_bytes

    @property
    def tokens_per_second(self) -> float:
        """Of all devices."""
        return self._rate(self.tokens)

    def days(self, num_steps: int) -> float:
        """Of a run."""
        return num_steps * self.step_seconds / 86_400

    def chip_hours(self, num_steps: int) -> float:
        """Of a run."""
        return 24 * self.days(num_steps) * self.devices

    def _rate(self, amount: float) -> float:
        return amount / self.step_seconds if self.step_seconds else 0.0


def roofline(
    assembly: Assembly, topology: Topology, bytes_of: Memory, moves: Sequence[Flow], temporaries: int | None = None
) -> Roofline:
    """The estimate for a step with the collectives `moves`; `temporaries` are a compiler's bytes, where it is known."""
    train, chip = assembly.settings.train, topology.chip
    tokens = float(train.batch_size * assembly.raw_length)
    model = tokens * assembly.count.model_flops
    done = executed(assembly)
    moved = hbm_bytes(assembly, bytes_of, temporaries)
    rate = chip.peak_flops * ATTAINABLE
    if chip.platform == "gpu" and assembly.settings.model.compute_dtype == "float32":
        rate /= 2  # TF32
    networks: dict[str, float] = {}
    if chip.peak_flops:
        for flow in moves:
            over = wire(topology, assembly.mesh, flow.axes)
            networks[over.network] = networks.get(over.network, 0.0) + flow.bytes / over.bandwidth
        if away := memory.offloaded(assembly):
            networks["host"] = 2 * train.accumulation * away / chip.host_bandwidth
    compute = 0.0
    if rate:
        coarse = done.int8 / (chip.int8_flops * ATTAINABLE)
        compute = ((done.total - done.int8) / rate + coarse) / assembly.mesh.size
    traffic = moved / chip.hbm_bandwidth if chip.hbm_bandwidth else 0.0
    parts = {"compute": compute, "memory": traffic, **networks}
    slowest = max(parts, key=lambda name: parts[name])
    step = parts[slowest] + EXPOSED * sum(networks.values())
    return Roofline(
        model_flops=model,
        required_flops=tokens * assembly.count.required_flops,
        executed_flops=done.total,
        hbm_bytes=moved,
        compute_seconds=compute,
        memory_seconds=traffic,
        communication=networks,
        step_seconds=step,
        bound=slowest if chip.peak_flops else "unknown",
        devices=assembly.mesh.size,
        peak_flops=chip.peak_flops if assembly.settings.model.quantisation == "none" else chip.int8_flops,
        tokens=tokens,
    )


def executed(assembly: Assembly) -> Operations:
    """Operations of all devices in a step, as traced: with what is computed again.

    Attention's kernels compute what the mask lets them see.
    """
    found = trace(assembly)
    return Operations().plus(found.operations, assembly.settings.train.batch_size / found.rows)


def hbm_bytes(assembly: Assembly, bytes_of: Memory, temporaries: int | None = None) -> float:
    """Bytes that a device reads and writes in a step.

    Each micro-batch reads the layers' weights in the type of computation in every pass, and writes and reads each
    activation, whether it is kept, sent to the host or computed again; the update reads and writes weights, gradients
    and the optimizer's state. Where a compiler's temporaries are known and smaller than their estimate, activations
    are as many times smaller.
    """
    settings = assembly.settings
    width = np.dtype(settings.model.compute_dtype).itemsize
    passes = 2 if settings.parallel.remat == "none" else 3
    part = sum(weight.part for weight in stored(assembly)) / assembly.count.parameters
    read = passes * assembly.count.active_parameters * width * part
    moved = 2 * memory.all_activations(assembly)
    if temporaries is not None:
        moved *= min(1.0, temporaries / sum(bytes_of.estimates.values()))
    parameters = bytes_of.arguments[memory.PARAMETERS]
    optimizer = bytes_of.arguments.get(memory.OPTIMIZER, 0)
    return settings.train.accumulation * (read + moved) + 4.0 * parameters + 2.0 * optimizer


def assumptions(topology: Topology) -> list[str]:
    """What the estimate rests on, a sentence each."""
    chip = topology.chip
    if not chip.peak_flops:
        return ["No data sheet says how fast these devices are: there is no estimate of time."]
    found = [
        f"Matrix products reach {ATTAINABLE:.0%} of the chip's {chip.peak_flops / 1e12:.0f} TFLOP/s (bfloat16).",
        "Attention's kernels compute what pattern and windows let be seen, and scores twice more for the gradient.",
        f"HBM moves {chip.hbm_bandwidth / 1e9:,.0f} GB/s; elementwise work is fused into what moves anyway; an "
        "activation is written and read once, whether it is kept or computed again.",
        f"What parallel.remat=offload sends to the host and fetches moves at {chip.host_bandwidth / 1e9:.0f} GB/s each "
        "way.",
    ]
    if chip.platform == "gpu":
        found.append("Products in float32 go as TF32, at half of that rate.")
    found.append(
        f"Products in int8 (model.quantisation) reach as much of their peak, {chip.int8_flops / 1e12:.0f} TOP/s, and "
        "utilisation is counted at that; gradients of weights, attention, experts and the head are not in int8."
    )
    if chip.dimensions:
        found.append(
            f"A link of the torus carries {chip.link_bandwidth / 1e9:.0f} GB/s each way; a mesh axis uses every side "
            "that it runs along, both ways where the side is a ring; collectives take ring algorithms."
        )
    else:
        found.append(f"NVLink carries {chip.link_bandwidth / 1e9:.0f} GB/s each way within a node.")
    if topology.slices > 1:  # as of libtpu 0.0.42 and 0.0.50, whoever wrote the program
        found.append(
            "In a program for several slices the TPU compiler gathers weights within a slice by adding up padded "
            "shards, twice the bytes of a gather; where nothing is compiled, gathers are counted."
        )
    found += [
        f"Between slices or nodes a device sends {chip.network_bandwidth / 1e9:.3g} GB/s.",
        f"Communication hides behind computation but for {EXPOSED:.0%} of it; input, checkpoints and evaluation cost "
        "nothing.",
    ]
    return found

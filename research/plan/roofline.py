"""The time of a step as the slowest of what it must do, under assumptions that are stated: an estimate."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from research.plan import memory
from research.plan.memory import Memory
from research.plan.topologies import Topology, wire
from research.plan.trace import trace
from research.plan.traffic import Flow
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
      communication: seconds by network.
      step_seconds: the slowest of these, and the exposed share of communication.
      bound: what is slowest: `compute`, `memory` or a network.
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


def roofline(assembly: Assembly, topology: Topology, bytes_of: Memory, flows: Sequence[Flow]) -> Roofline:
    """The estimate for a step with these collectives."""
    train, chip = assembly.settings.train, topology.chip
    tokens = float(train.batch_size * assembly.raw_length)
    model = tokens * assembly.count.model_flops
    executed = executed_flops(assembly)
    moved = hbm_bytes(assembly, bytes_of)
    rate = chip.peak_flops * ATTAINABLE
    if chip.platform == "gpu" and assembly.settings.model.compute_dtype == "float32":
        rate /= 2  # TF32
    networks: dict[str, float] = {}
    if chip.peak_flops:
        for flow in flows:
            over = wire(topology, assembly.mesh, flow.axes)
            networks[over.network] = networks.get(over.network, 0.0) + flow.bytes / over.bandwidth
    compute = executed / assembly.mesh.size / rate if rate else 0.0
    traffic = moved / chip.hbm_bandwidth if chip.hbm_bandwidth else 0.0
    parts = {"compute": compute, "memory": traffic, **networks}
    slowest = max(parts, key=lambda name: parts[name])
    step = parts[slowest] + EXPOSED * sum(networks.values())
    return Roofline(
        model_flops=model,
        required_flops=tokens * assembly.count.required_flops,
        executed_flops=executed,
        hbm_bytes=moved,
        compute_seconds=compute,
        memory_seconds=traffic,
        communication=networks,
        step_seconds=step,
        bound=slowest if chip.peak_flops else "unknown",
        devices=assembly.mesh.size,
        peak_flops=chip.peak_flops,
        tokens=tokens,
    )


def executed_flops(assembly: Assembly) -> float:
    """Operations of all devices in a step: traced products, and attention kernels by their own count.

    A Pallas kernel of attention computes what the mask lets it see: two products forwards, seven in its two kernels
    backwards, where scores are computed again in each (Dao 2024, section 2.3), and two more in every other call.
    """
    train = assembly.settings.train
    found = trace(assembly)
    products = found.product_flops * train.batch_size / found.rows
    if not found.kernel_calls:
        return products
    layers = assembly.settings.model.num_layers + assembly.settings.model.encoder_layers
    again = max(0.0, found.kernel_calls / layers - 3)
    return products + attention_flops(assembly) * (9 + 2 * again) / 6


def attention_flops(assembly: Assembly) -> float:
    """Of the two products of attention in a step, forward and backward, in full."""
    settings = assembly.settings
    layers, length = settings.model.num_layers, settings.data.sequence_length
    width = settings.model.num_heads * settings.model.head_width
    seen = 0.5 if assembly.objective.pattern.causal else 1.0
    return 12.0 * layers * width * length**2 * settings.train.batch_size * seen


def hbm_bytes(assembly: Assembly, bytes_of: Memory) -> float:
    """Bytes that a device reads and writes in a step.

    Each micro-batch reads the layers' weights in the type of computation in every pass and writes and reads what is
    kept; the update reads and writes weights, gradients and the optimizer's state.
    """
    settings, mesh = assembly.settings, assembly.mesh
    width = np.dtype(settings.model.compute_dtype).itemsize
    passes = 2 if settings.parallel.remat == "none" else 3
    read = passes * assembly.count.active_parameters * width / mesh.shape["tensor"] / mesh.shape["expert"]
    kept = 2 * bytes_of.estimates[memory.ACTIVATIONS]
    stored = bytes_of.arguments[memory.PARAMETERS]
    optimizer = bytes_of.arguments.get(memory.OPTIMIZER, 0)
    return settings.train.accumulation * (read + kept) + 4.0 * stored + 2.0 * optimizer


def estimated_flows(assembly: Assembly) -> list[Flow]:
    """Collectives of a step by analysis, where nothing was compiled.

    `fsdp` gathers the weights for either pass of every micro-batch and scatters the sum of the gradients; `replica`,
    `data` (and `expert`, for what is no expert) add gradients up; `tensor` adds two activations a layer and pass;
    `sequence` gathers keys and values; `expert` exchanges the tokens of each routed layer twice a pass.
    """
    settings, mesh = assembly.settings, assembly.mesh
    core, shape, parts = settings.model, mesh.shape, settings.train.accumulation
    weights = sum(parameter.size for parameter in assembly.model.parameters().values()) / shape["tensor"]
    width = np.dtype(core.compute_dtype).itemsize
    layers = core.num_layers + core.encoder_layers
    data = shape["replica"] * shape["data"] * shape["fsdp"] * shape["expert"]
    tokens = settings.train.batch_size * settings.data.sequence_length / data / shape["sequence"]

    def ring(axis: str) -> float:
        return (shape[axis] - 1) / shape[axis]

    gradients = weights * 4 / shape["fsdp"]
    found = [
        Flow("all-gather", ("fsdp",), 2.0 * parts, 2 * parts * weights * width * ring("fsdp")),
        Flow("reduce-scatter", ("fsdp",), float(parts), parts * weights * 4 * ring("fsdp")),
        Flow("all-reduce", ("data",), 1.0, 2 * gradients * ring("data")),
        Flow("all-reduce", ("replica",), 1.0, 2 * gradients * ring("replica")),
        Flow("all-reduce", ("tensor",), 4.0 * layers, 8 * layers * tokens * core.embed_dim * width * ring("tensor")),
    ]
    keys = 2 * core.kv_heads * core.head_width / shape["tensor"]
    gathered = 4 * layers * tokens * keys * width * (shape["sequence"] - 1)
    found.append(Flow("all-gather", ("sequence",), 4.0 * layers, gathered))
    routed = 4 * layers * tokens * core.experts_per_token * core.embed_dim * width * ring("expert")
    found.append(Flow("all-to-all", ("expert",), 4.0 * layers, routed if core.num_experts else 0.0))
    return sorted((flow for flow in found if shape[flow.axes[0]] > 1 and flow.bytes), key=lambda flow: -flow.bytes)


def assumptions(topology: Topology) -> list[str]:
    """What the estimate rests on, a sentence each."""
    chip = topology.chip
    if not chip.peak_flops:
        return ["No data sheet says how fast these devices are: there is no estimate of time."]
    found = [
        f"Matrix products reach {ATTAINABLE:.0%} of the chip's {chip.peak_flops / 1e12:.0f} TFLOP/s (bfloat16).",
        f"HBM moves {chip.hbm_bandwidth / 1e9:,.0f} GB/s; elementwise work is fused into what moves anyway.",
    ]
    if chip.dimensions:
        found.append(
            f"A link of the torus carries {chip.link_bandwidth / 1e9:.0f} GB/s each way; a mesh axis uses every side "
            "that it runs along, both ways where the side is a ring; collectives take ring algorithms."
        )
    else:
        found.append(f"NVLink carries {chip.link_bandwidth / 1e9:.0f} GB/s each way within a node.")
    found += [
        f"Between slices or nodes a device sends {chip.network_bandwidth / 1e9:.3g} GB/s.",
        f"Communication hides behind computation but for {EXPOSED:.0%} of it; input, checkpoints and evaluation cost "
        "nothing.",
    ]
    return found

"""Where a run is executed and over how many devices. Nothing here changes what is computed."""

import dataclasses
from typing import Any

from research.settings.fields import setting

PRESETS = ("dp", "fsdp", "tp", "fsdp_tp", "fsdp_sp", "fsdp_ep", "fsdp_tp_sp")
AXES = ("replica", "data", "fsdp", "expert", "sequence", "tensor")


def _axis(meaning: str) -> Any:
    return setting(
        None, f"{meaning}; none: by the preset, -1: all remaining devices", unit="devices", minimum=-1, execution=True
    )


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """Sizes of the mesh axes; their product is the number of devices."""

    replica: int | None = _axis("copies across slices or nodes")
    data: int | None = _axis("copies within a slice")
    fsdp: int | None = _axis("shards of parameters, gathered for each use")
    expert: int | None = _axis("shards of experts")
    sequence: int | None = _axis("shards of the sequence")
    tensor: int | None = _axis("shards of heads, MLP and vocabulary")


@dataclasses.dataclass(frozen=True)
class ParallelSettings:
    """Mesh, sharding table and how the layers are executed."""

    preset: str = setting("dp", "table from dimensions to mesh axes", choices=PRESETS, execution=True)
    mesh: MeshSettings = dataclasses.field(default_factory=MeshSettings)
    layers: str = setting(
        "auto", "how the stacked layers are executed", choices=("auto", "scan", "unroll"), execution=True
    )
    scan_unroll: int = setting(
        1, "periods of layers that one turn of the scan executes", unit="periods", minimum=1, execution=True
    )
    remat: str = setting(
        "none",
        "what the backward pass computes again: nothing (none), what lies between matrix products (dots), attention's "
        "output projection too (most), the MLP's inner products instead (narrow), all but queries, keys and values "
        "(heads), everything (full); offload: as dots, but kept in the host's memory",
        choices=("none", "dots", "most", "narrow", "heads", "full", "offload"),
        execution=True,
    )
    kernels: str = setting(
        "auto",
        "implementations of attention, head, products and experts; reference: the formulas as they stand",
        choices=("auto", "reference"),
        execution=True,
    )
    attention: str = setting(
        "auto",
        "the implementation of attention; auto: splash on TPUs, cudnn on GPUs, blocked elsewhere",
        choices=("auto", "reference", "blocked", "splash", "cudnn", "xla"),
        execution=True,
    )
    sequence_attention: str = setting(
        "auto",
        "how devices that share a sequence see its keys: gathered, or sent around; auto: gathered",
        choices=("auto", "gather", "ring"),
        execution=True,
    )
    coordinator_address: str = setting("", "host:port of process 0; empty: from the environment", execution=True)
    num_processes: int | None = setting(
        None, "processes of a multi-host run; none: from the environment", minimum=1, execution=True
    )
    process_id: int | None = setting(None, "this process; none: from the environment", minimum=0, execution=True)

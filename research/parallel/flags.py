"""Compiler options and communication variables of each platform, versioned with the run.

Options go into the compilation itself, not into `XLA_FLAGS`: that variable is read by whatever backend starts first,
and a TPU's library ends the process at a name that it does not know. What the user names there, or in
`LIBTPU_INIT_ARGS`, is left to the user.
"""

import os
import re
from collections.abc import Mapping

from jax.sharding import Mesh

from research.parallel.chips import chip_of

VERSION = 2  # goes up with every change of a value below

Option = bool | int | str

# Reductions over replicas run beside the backward pass, gathers beside products.
_TPU: dict[str, Option] = {
    "xla_tpu_overlap_compute_collective_tc": True,
    "xla_enable_async_all_gather": True,
    "xla_tpu_enable_data_parallel_all_reduce_opt": True,
    "xla_tpu_data_parallel_opt_different_sized_ops": True,
}
# Gathers fused with the products beside them. On other TPUs libtpu 0.0.50 refuses it, for fear of wrong results.
_V5E = _TPU | {
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
}
_GPU: dict[str, Option] = {
    "xla_gpu_enable_latency_hiding_scheduler": True,
    "xla_gpu_enable_triton_gemm": False,
    "xla_gpu_enable_pipelined_all_gather": True,
    "xla_gpu_enable_pipelined_reduce_scatter": True,
    "xla_gpu_enable_pipelined_all_reduce": True,
    "xla_gpu_enable_while_loop_double_buffering": True,
    "xla_gpu_all_gather_combine_threshold_bytes": 134_217_728,
    "xla_gpu_reduce_scatter_combine_threshold_bytes": 33_554_432,
    "xla_gpu_all_reduce_combine_threshold_bytes": 134_217_728,
}
# By chip (`research.parallel.chips`), else by platform: for one device, and for several.
OPTIONS: dict[str, tuple[dict[str, Option], dict[str, Option]]] = {
    "cpu": ({}, {}),
    "gpu": ({"xla_gpu_enable_triton_gemm": False}, _GPU),
    "tpu": ({}, _TPU),
    "v5e": ({}, _V5E),
}
# Of NCCL, which reads them when the first communicator is made: fewer bytes for buffers, all protocols.
ENVIRONMENT: dict[str, str] = {
    "NCCL_LL128_BUFFSIZE": "-2",
    "NCCL_LL_BUFFSIZE": "-2",
    "NCCL_PROTO": "SIMPLE,LL,LL128",
}


def named_by_user(environment: Mapping[str, str]) -> set[str]:
    """The options that the user's environment sets."""
    text = " ".join(environment.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"))
    return set(re.findall(r"--(\w+)", text))


def compiler_options(mesh: Mesh, kernels: str = "auto") -> dict[str, Option]:
    """Options for `lowered.compile(compiler_options=...)` on a mesh's devices, without those that the user names.

    Args:
      mesh: the devices.
      kernels: `parallel.kernels`; `reference` turns these off, too.
    """
    if kernels == "reference":
        return {}
    device = mesh.devices.flat[0]
    chip = chip_of(device.device_kind)
    platform = {"cuda": "gpu", "rocm": "gpu"}.get(device.platform, device.platform)
    single, several = OPTIONS[chip.name if chip is not None and chip.name in OPTIONS else platform]
    taken = named_by_user(os.environ)
    return {name: value for name, value in (single if mesh.size == 1 else several).items() if name not in taken}


def set_environment() -> None:
    """Sets the variables that are not set, before a backend starts; they mean nothing without NVIDIA's library."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def record(mesh: Mesh, kernels: str = "auto") -> dict[str, object]:
    """What the run's record keeps: the version of these sets, the options, and what the user set."""
    own = {name: os.environ[name] for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS", *ENVIRONMENT) if name in os.environ}
    return {"flags_version": VERSION, "compiler_options": compiler_options(mesh, kernels), "environment": own}

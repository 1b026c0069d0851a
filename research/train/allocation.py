"""How a run on one CPU device holds its memory: what a step gives back is kept for the next.

XLA allocates the temporaries of a step anew each time. The C library takes such large blocks from the kernel and gives
them back at once, and the kernel clears each of their pages at first touch: a quarter of a step's CPU time at the sizes
of `benchmarks/`. Kept, they cost nothing; `benchmarks/README.md` has the figures.
"""

import ctypes
import gc
import os
import re

import jax
from jax.sharding import Mesh

# Of glibc's <malloc.h>: bytes at the top of the heap above which it gives memory back, and blocks mapped on their own.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def one_step_at_a_time() -> None:
    """Lets a CPU backend of one device compute where it is called. Must run before the backend starts.

    A step that is dispatched while another runs has temporaries of its own already, and doubles the memory. Devices
    that share a step are left alone, since they would wait for one another's collectives; other backends take no
    notice.
    """
    forced = re.search(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    devices = int(forced[1]) if forced else max(1, jax.config.values["jax_num_cpu_devices"])
    if devices == 1 and not jax.distributed.is_initialized():
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def keep(mesh: Mesh, kernels: str = "auto") -> bool:
    """Gives back what compiling left behind, then keeps whatever the process holds; returns whether it could.

    Does nothing on accelerators, on several devices, with another C library than glibc, or where
    `parallel.kernels=reference` turns all such means off.
    """
    if mesh.size > 1 or mesh.devices.flat[0].platform != "cpu" or kernels == "reference":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "malloc_trim"):
        return False
    gc.collect()
    library.malloc_trim(0)
    return bool(library.mallopt(_MMAP_MAX, 0) and library.mallopt(_TRIM_THRESHOLD, -1))

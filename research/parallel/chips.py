"""What accelerators can do at most, from their vendors' data sheets. The only table of its kind.

Sources, read again in November 2026:
  TPU   docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, section "System architecture"; what they leave out
        (int8 of v5p, PCIe) from "How to Scale Your Model", jax-ml.github.io/scaling-book/tpus, section "TPU specs".
  GPU   NVIDIA's data sheets of A100 80GB SXM, H100 SXM, H200 SXM and HGX B200, whose rates with sparsity are halved.
"""

import dataclasses
import math

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX sees it.

    Attributes:
      name: as a topology names it.
      platform: `tpu`, `gpu` or `cpu`.
      kind: what `jax.Device.device_kind` begins with.
      peak_flops: dense bfloat16 products, FLOP/s; 0 where no data sheet is known.
      int8_flops: dense products in int8, operations/s.
      hbm_bytes: memory that a program may use.
      hbm_bandwidth: bytes/s.
      link_bandwidth: bytes/s one way of one link of the torus (TPU), or to all devices of the node together (GPU).
      network_bandwidth: bytes/s one way of a device to other slices or nodes.
      host_bandwidth: bytes/s one way of a device to its host's memory (PCIe).
      dimensions: of the torus; 0 where all devices of a node see one another.
      per_host: devices of a host.
      slice_chips: of the largest slice.
    """

    name: str
    platform: str
    kind: str
    peak_flops: float
    int8_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    host_bandwidth: float
    dimensions: int = 0
    per_host: int = 8
    slice_chips: int = 0

    def wraps(self, shape: tuple[int, ...], axis: int) -> bool:
        """Whether the axis of a slice is a ring: of v5e and v6e where 16 chips long, of the others in whole cubes."""
        if self.dimensions == 2:
            return shape[axis] == 16
        return self.dimensions == 3 and all(size % 4 == 0 for size in shape)


def _gib(number: float) -> int:
    return math.floor(number * GIB)


# TPUs. HBM: what the compiler gives a program of the documented 32, 16, 95 and 32 GiB. Links: the documented bandwidth
# of a chip both ways (v4 300, v5e 400, v5p 1200, v6e 800 GB/s), over its 6 or 4 links and two directions; the book
# counts with nine tenths of these. Network: documented, 50 Gbit/s a chip of v4 and v5p, 6.4 and 25.6 Tbit/s a pod of
# 256 of v5e and v6e. Host: PCIe as the book has it. Slices: the largest that is documented.
# GPUs. HBM: 92 % of the memory for a program (the rest is the driver's, NCCL's and fragmentation). Links: one way of
# NVLink. Network: one adapter a GPU of 200 (A100) or 400 Gbit/s. Host: one way of 16 lanes of PCIe 4.0 (A100) or 5.0.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "tpu", "TPU v4", 275e12, 275e12, _gib(30.75), 1228e9, 50e9, 6.25e9, 16e9, 3, 4, 4096),
        Chip("v5e", "tpu", "TPU v5 lite", 197e12, 393e12, _gib(15.75), 819e9, 50e9, 3.125e9, 16e9, 2, 4, 256),
        Chip("v5p", "tpu", "TPU v5", 459e12, 918e12, _gib(95.74), 2765e9, 100e9, 6.25e9, 16e9, 3, 4, 6144),
        Chip("v6e", "tpu", "TPU v6 lite", 918e12, 1836e12, _gib(31.25), 1638e9, 100e9, 12.5e9, 32e9, 2, 4, 256),
        Chip("a100", "gpu", "NVIDIA A100", 312e12, 624e12, int(0.92 * 80e9), 2039e9, 300e9, 25e9, 32e9),
        Chip("h100", "gpu", "NVIDIA H100", 989e12, 1979e12, int(0.92 * 80e9), 3350e9, 450e9, 50e9, 64e9),
        Chip("h200", "gpu", "NVIDIA H200", 989e12, 1979e12, int(0.92 * 141e9), 4800e9, 450e9, 50e9, 64e9),
        Chip("b200", "gpu", "NVIDIA B200", 2250e12, 4500e12, int(0.92 * 180e9), 8000e9, 900e9, 50e9, 64e9),
    )
}

# Other names of the same kinds.
_ALIASES = {"TPU v5e": "v5e", "TPU v5p": "v5p", "TPU v6e": "v6e"}


def chip_of(kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`; none where no data sheet is known."""
    kinds = {chip.kind: chip for chip in CHIPS.values()} | {name: CHIPS[chip] for name, chip in _ALIASES.items()}
    best = max((name for name in kinds if kind.startswith(name)), key=len, default=None)
    return None if best is None else kinds[best]

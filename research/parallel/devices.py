"""What a device can do at most."""

import jax

# Dense bfloat16 products, FLOP/s, from the vendors' data sheets.
_PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """FLOP/s of a device's matrix units in bfloat16; none where no data sheet is known (CPUs)."""
    kind = device.device_kind
    best = max((name for name in _PEAKS if kind.startswith(name)), key=len, default=None)
    return None if best is None else _PEAKS[best]

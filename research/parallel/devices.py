"""What a device can do at most."""

import jax

from research.parallel.chips import chip_of


def peak_flops(device: jax.Device) -> float | None:
    """FLOP/s of a device's matrix units in bfloat16; none where no data sheet is known (CPUs)."""
    chip = chip_of(device.device_kind)
    return None if chip is None else chip.peak_flops


def int8_rate(device: jax.Device) -> float:
    """How many times faster than in bfloat16 products in int8 are; 2, as for most, where no data sheet is known."""
    chip = chip_of(device.device_kind)
    return 2.0 if chip is None else chip.int8_flops / chip.peak_flops

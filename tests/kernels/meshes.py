"""Meshes of the eight forced devices, with tables, for kernels that split their own work."""

import jax

from research.kernels import Layout
from research.parallel import mesh, rules
from research.settings import MeshSettings, ParallelSettings


def layout(preset: str = "dp", devices: int = 8, **axes: int) -> Layout:
    """The layout of a preset with sizes of axes."""
    settings = ParallelSettings(preset=preset, mesh=MeshSettings(**axes))
    return rules.layout(mesh.make_mesh(settings, jax.devices()[:devices]), preset)

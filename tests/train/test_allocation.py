"""What a step gives back is kept for the next: the kernel clears no page twice."""

import os
import platform
import subprocess
import sys

import pytest

# In a process of its own, which keeps its memory for good.
PROGRAM = """
import resource, sys
import jax, jax.numpy as jnp
from jax.sharding import Mesh
from research.train import allocation

allocation.one_step_at_a_time()
mesh = Mesh(jax.devices()[:1], ("data",))
x = jnp.ones((4096, 4096))
step = jax.jit(lambda x: jnp.sum(jnp.sin(x) @ jnp.cos(x)[:, :8])).lower(x).compile()
if sys.argv[1] == "keep":
    print(int(allocation.keep(mesh, sys.argv[2])))
for _ in range(3):
    began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - began)
"""


def told(*arguments: str) -> list[int]:
    alone = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # one device, as on a laptop
    command = [sys.executable, "-c", PROGRAM, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=alone)
    return [int(line) for line in run.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_a_step_finds_the_memory_of_the_last_one() -> None:
    """Without keeping it, a step with temporaries of 64 MiB and more is given thousands of fresh pages each time."""
    kept, faults = told("keep", "auto")
    (fresh,) = told("leave")
    assert kept == 1
    assert faults < 100 < 10_000 < fresh


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_one_key_turns_it_off() -> None:
    kept, faults = told("keep", "reference")
    assert kept == 0 and faults > 10_000

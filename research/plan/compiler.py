"""The child process that compiles the update for devices that are not here; `research.plan.compiled` starts it.

    python -m research.plan.compiler REQUEST.json RESULT.json

The request holds a saved config's record and a topology. Its environment is set before it starts: JAX reads it once.
"""

import gzip
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax

from research import config
from research.errors import UserError
from research.parallel import flags
from research.plan import hlo, traffic
from research.plan.topologies import Topology, parse
from research.plan.trace import batch_shapes
from research.settings import Settings
from research.train.assembly import Assembly, assemble
from research.train.state import state_shapes
from research.train.step import make_step
from research.vocabulary import Vocabulary

_MEMORY = ("argument", "output", "alias", "temp", "generated_code", "host_argument", "host_output", "host_temp")


def vocabulary_of(settings: Settings) -> Vocabulary:
    """A vocabulary of the size of the settings': a plan needs no tokenizer."""
    size = settings.tokenizer.vocab_size
    return Vocabulary(size, 0, 1, 2, 3, 4, word_starts=(True,) * size)


def devices_of(topology: Topology) -> list[Any]:
    """The devices of a topology that a compiler accepts: the TPU compiler's own, or made-up CPUs of this process.

    Raises:
      UserError: the compiler knows no such topology.
    """
    if topology.chip.platform == "cpu":
        return jax.devices("cpu")[: topology.num_devices]
    from jax.experimental import topologies

    # A side that is not said to be a ring is taken for a line, over which other algorithms gather.
    rings = [topology.chip.wraps(topology.shape, side) for side in range(len(topology.shape))]
    described: dict[str, Any] = {"wrap": (*rings, False)[:3]}
    if topology.slices > 1:
        described["num_slices"] = topology.slices
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **described)
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--topology={topology.name}: the TPU compiler refuses it ({reason}): choose another shape"
        ) from error
    return list(found.devices)


def lowered(assembly: Assembly) -> Any:
    """The update of a run, its state donated, ready to be compiled."""
    settings = assembly.settings
    state = state_shapes(settings, assembly.model, assembly.mesh, settings.parallel.preset)
    update = jax.jit(make_step(settings, assembly.model, assembly.objective), donate_argnums=0)
    # All shardings name their mesh. As a context it would have constants of kernels made on devices that are not here.
    return update.lower(state, batch_shapes(assembly))


def compile_update(settings: Settings, topology: Topology, keep: Path | None = None) -> dict[str, Any]:
    """Memory of a device, collectives and custom kernels of the compiled update; or how the compiler refused it."""
    assembly = assemble(settings, vocabulary_of(settings), devices_of(topology))
    began = time.perf_counter()
    options = flags.compiler_options(assembly.mesh, settings.parallel.kernels)  # as the loop compiles
    program = lowered(assembly)
    traced = time.perf_counter()
    try:
        compiled = program.compile(compiler_options=options or None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"refused": str(error), "compile_seconds": round(time.perf_counter() - traced, 1)}
    seconds = time.perf_counter() - traced
    stats, text = compiled.memory_analysis(), compiled.as_text()
    if keep is not None:
        keep.write_bytes(gzip.compress(text.encode(), 6))
    read = hlo.read(text, assembly.mesh.size)
    return {
        "memory": {name: int(getattr(stats, f"{name}_size_in_bytes", 0)) for name in _MEMORY},
        "flows": [flow._asdict() for flow in traffic.flows(read.collectives, assembly.mesh)],
        "unknown_loops": list(read.unknown_loops),
        "kernels": [list(pair) for pair in assembly.kernels.names],
        "custom_kernels": text.count('custom_call_target="tpu_custom_call"'),
        "trace_seconds": round(traced - began, 1),
        "compile_seconds": round(seconds, 1),
    }


def main() -> int:
    """Compiles what the request asks for; the result tells a user's mistake from a refusal for want of memory."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    target = Path(sys.argv[2])
    try:
        settings = config.from_record(request["record"])
        topology = parse(request["topology"], request["slices"])
        result = compile_update(settings, topology, keep=target.with_suffix(".hlo.gz"))
    except UserError as error:
        result = {"mistake": str(error)}
    target.write_text(json.dumps(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Compiled updates of topologies: asked of a child process, one at a time, and kept."""

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import research
from research import config
from research.data.prepare import cache_directory
from research.errors import UserError
from research.plan import refusal
from research.plan.topologies import Topology
from research.plan.traffic import Flow
from research.settings import Settings

_PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax")
# What does not enter a compiled update.
_OUTSIDE = (
    "cli",
    "scaling",
    "sweeps",
    "train/page",
    "plan/memory",
    "plan/page",
    "plan/planning",
    "plan/refusal",
    "plan/roofline",
    "plan/search",
    "plan/verdict",
    "plan/weights",
    "checkpoint",
    "interop",
    "generate",
    "evaluate",
    "doctor",
)
_LAST_LINES = 12
# What the child does not inherit: flags of this machine's devices, and strictness that the kernels of JAX itself lack.
_LEFT_OUT = {"XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_NUMPY_DTYPE_PROMOTION", "JAX_NUMPY_RANK_PROMOTION"}

Tell = Callable[[str], None]


class Compiled(NamedTuple):
    """What the compiler says of an update.

    Attributes:
      refused: why it does not fit, in numbers; none: it fits.
      memory: bytes of a device: `argument`, `output`, `alias`, `temp`, `generated_code`, and those on the host.
      flows: collectives by kind and mesh axes.
      unknown_loops: loops whose trip count could not be told.
      kernels: the kernels chosen, by name.
      custom_kernels: calls of Pallas kernels in the program.
      seconds: that compiling took, when it was done.
      cached: it was not done now.
      versions: of the compiler and what traced the program.
    """

    refused: refusal.Refusal | None
    memory: dict[str, int]
    flows: tuple[Flow, ...]
    unknown_loops: tuple[str, ...]
    kernels: dict[str, str]
    custom_kernels: int
    seconds: float
    cached: bool
    versions: dict[str, str]

    @property
    def peak(self) -> int:
        """Bytes of a device while the program runs: arguments and temporaries, and outputs that reuse neither."""
        of = self.memory
        return of["argument"] + of["temp"] + of["generated_code"] + of["output"] - of["alias"]


def compiled(settings: Settings, topology: Topology, tell: Tell = lambda line: None) -> Compiled:
    """The update of the settings, compiled for a topology that need not be here; from the cache where it was before.

    Raises:
      UserError: there is no compiler for it, or the settings do not fit the topology.
    """
    check_compiler(topology)
    versions = versions_here()
    request = {"record": config.to_record(settings), "topology": topology.name, "slices": topology.slices}
    key = hashlib.sha256(
        json.dumps([request, versions, source_digest()], sort_keys=True).encode()
    ).hexdigest()[:24]  # fmt: skip
    folder = cache_directory() / "plans"
    path = folder / f"{key}.json"
    cached = path.exists()
    if not cached:
        folder.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(folder / "compiler.lock", tell):
            tell(f"compiling for {topology.label}")
            _ask(request, topology, path)
    result = json.loads(path.read_text(encoding="utf-8"))
    if "mistake" in result:
        raise UserError(result["mistake"])
    refused = refusal.read(result["refused"]) if "refused" in result else None
    return Compiled(
        refused,
        result.get("memory", {}),
        tuple(
            Flow(flow["kind"], tuple(flow["axes"]), flow["times"], flow["bytes"]) for flow in result.get("flows", ())
        ),
        tuple(result.get("unknown_loops", ())),
        dict(pair[:2] for pair in result.get("kernels", ())),
        result.get("custom_kernels", 0),
        result["compile_seconds"],
        cached,
        versions,
    )


def check_compiler(topology: Topology) -> None:
    """Raises `UserError` where nothing here compiles for the topology."""
    if not topology.compiled:
        raise UserError(
            f"--topology={topology.name} has no compiler that runs without it: add --no-compile for analysis alone"
        )
    if topology.chip.platform == "tpu" and importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={topology.name} needs the TPU compiler, which is not installed: pip install 'isoflop[tpu]', "
            "or add --no-compile for analysis alone"
        )


def versions_here() -> dict[str, str]:
    """Of what traces and compiles."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def sources() -> dict[str, Path]:
    """The source that traces a program and reads the compiled one, by its name below `research`."""
    root = Path(research.__file__).parent
    named = {file.relative_to(root).as_posix(): file for file in sorted(root.rglob("*.py"))}
    return {name: file for name, file in named.items() if not name.startswith(_OUTSIDE)}


def source_digest() -> str:
    """Of `sources`, so that a changed one is compiled anew."""
    digest = hashlib.sha256()
    for name, file in sources().items():
        digest.update(name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _ask(request: dict[str, Any], topology: Topology, path: Path) -> None:
    """Runs the child process, which writes the result."""
    asked, unfinished = path.with_suffix(".request.json"), path.with_suffix(".unfinished.json")
    asked.write_text(json.dumps(request), encoding="utf-8")
    command = [sys.executable, "-m", "research.plan.compiler", str(asked), str(unfinished)]
    done = subprocess.run(command, env=_environment(topology), capture_output=True, text=True, errors="replace")
    if done.returncode or not unfinished.exists():
        log = path.with_suffix(".log")
        log.write_text(done.stdout + done.stderr, encoding="utf-8")
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-_LAST_LINES:])
        raise RuntimeError(f"the compiler's process ended with status {done.returncode}; its log is {log}:\n{last}")
    with contextlib.suppress(FileNotFoundError):
        os.replace(unfinished.with_suffix(".hlo.gz"), path.with_suffix(".hlo.gz"))
    os.replace(unfinished, path)
    asked.unlink()


def _environment(topology: Topology) -> dict[str, str]:
    """Of the child: no accelerator is looked for, and libtpu is not asked who else holds it."""
    found = {name: value for name, value in os.environ.items() if name not in _LEFT_OUT}
    paths = [str(Path(research.__file__).parents[1]), found.get("PYTHONPATH", "")]
    found |= {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        # A compiled program for other devices cannot be kept by JAX's own cache.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
    if topology.chip.platform == "cpu":
        found["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={topology.num_devices}"
    return found


@contextlib.contextmanager
def _one_at_a_time(path: Path, tell: Tell) -> Iterator[None]:
    """Holds a lock: a compiler takes gigabytes and all cores, and only one process may hold libtpu."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(f"waiting for another plan that compiles (lock {path})")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield

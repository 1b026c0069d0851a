"""Training steps of others, each as its own project writes it: who they are, and where they are found.

Those of a package registry (Hugging Face, litgpt) live in an environment of their own, `.venv-peers`, which
`make benchmark` makes; the others in checkouts that environment variables name. Nothing of theirs is copied here: their
models, optimizers and, where they have one that can be called, their training steps are imported and called.
"""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.shapes import Shape

ROOT = Path(__file__).parents[2]
OWN, PEERS = sys.executable, str(ROOT / ".venv-peers" / "bin" / "python")


@dataclasses.dataclass(frozen=True)
class Peer:
    """A project that is raced.

    Attributes:
      name: of the contestant, and of its module here.
      plays: families and objectives that it has.
      python: where it runs unless an environment variable says otherwise.
      package: what must be importable there.
      source: the repository whose checkout an environment variable names; none: `package` is the project.
      compiles: it can also be run through `torch.compile`.
    """

    name: str
    plays: tuple[tuple[str, str], ...]
    python: str
    package: str
    source: str | None = None
    compiles: bool = False

    @property
    def variable(self) -> str:
        """The environment variable of its checkout."""
        return f"ISOFLOP_BENCH_{self.name.upper()}"


ALL = (
    Peer("nanogpt", (("gpt", "causal"),), PEERS, "torch", "karpathy/nanoGPT", compiles=True),
    Peer(
        "huggingface",
        (("gpt", "causal"), ("llama", "causal"), ("bert", "masked"), ("t5", "seq2seq")),
        PEERS,
        "transformers",
        compiles=True,
    ),
    Peer("litgpt", (("gpt", "causal"), ("llama", "causal")), PEERS, "litgpt", compiles=True),
    Peer("nanodo", (("gpt", "causal"),), OWN, "flax", "google-deepmind/nanodo"),
    Peer("maxtext", (("gpt", "causal"), ("llama", "causal")), OWN, "maxtext", "AI-Hypercomputer/maxtext"),
)


@dataclasses.dataclass(frozen=True)
class Found:
    """Who can take part: requests to `benchmarks.contestants` by name, and a line for each who cannot."""

    requests: Mapping[str, Mapping[str, Any]]
    absent: tuple[str, ...]


def find(shape: Shape, compiled: bool = False, environment: Mapping[str, str] = os.environ) -> Found:
    """Looks for the peers that have the shape's family and objective.

    Args:
      shape: what is raced.
      compiled: those that can also take part through `torch.compile`.
      environment: names checkouts, `ISOFLOP_BENCH_NANOGPT=/path`, and another Python, `ISOFLOP_BENCH_NANOGPT_PYTHON`.
    """
    requests: dict[str, dict[str, Any]] = {}
    absent = []
    for peer in ALL:
        if (shape.family, shape.asks) not in peer.plays:
            continue
        python = environment.get(f"{peer.variable}_PYTHON", peer.python)
        checkout = environment.get(peer.variable)
        reason = _missing(peer, python, checkout)
        if reason:
            absent.append(f"{peer.name} is absent: {reason}")
            continue
        request = {"name": peer.name, "python": python, "checkout": checkout}
        requests[peer.name] = request
        if compiled and peer.compiles:
            requests[f"{peer.name}-compiled"] = request | {"compiled": True}
    return Found(requests, tuple(absent))


def _missing(peer: Peer, python: str, checkout: str | None) -> str | None:
    if peer.source is not None and checkout is None:
        return f"set {peer.variable} to a checkout of {peer.source}"
    if checkout is not None and not Path(checkout).is_dir():
        return f"{peer.variable}={checkout} is no directory"
    if not Path(python).exists():
        return f"there is no {python}: `make benchmark` makes it, or set {peer.variable}_PYTHON"
    # A checkout may hold the package itself.
    asked = [python, "-c", f"import importlib.util, sys; sys.exit(not importlib.util.find_spec({peer.package!r}))"]
    paths = os.pathsep.join([checkout, f"{checkout}/src"]) if checkout else ""
    ran = subprocess.run(asked, env=os.environ | {"PYTHONPATH": paths}, capture_output=True)
    return f"{python} has no {peer.package}" if ran.returncode else None

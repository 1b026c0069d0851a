"""What a compiled update spends its time on: operations of a profiler's trace, grouped by part of the model and kind.

A trace says which operation of the compiled program ran when. The program's text says what each one computes, and from
which line of the model it came: modules and named scopes stand in `op_name`, the backward pass as `transpose(...)`.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from jax.profiler import ProfileData

from research.errors import UserError

PRODUCTS, KERNELS, COPIES, COLLECTIVES, OTHER = "products", "kernels", "copies", "collectives", "other"
KINDS = (PRODUCTS, KERNELS, COPIES, COLLECTIVES, OTHER)

# Part of the model, by what a step of the path in `op_name` contains; the first that fits.
PARTS = (
    ("attention norm", r"attention_norm$"),
    ("MLP norm", r"mlp_norm$"),
    ("experts", r"experts|router|moe"),
    ("attention", r"attention$|attention\b"),
    ("MLP", r"mlp$"),
    ("head", r"^(head|vocabulary|vocabulary_loss|split)$"),
    ("embedding", r"^embedding$"),
    ("optimizer", r"^optimizer$"),
    ("statistics", r"^statistics$"),
)
REST_OF_MODEL, REST_OF_UPDATE, UNNAMED = "embedding, head, loss", "optimizer, statistics", "without a name"

# Loops, branches and calls are not operations of their own: what they run is traced too.
CONTROL = frozenset({"while", "conditional", "call"})
_PRODUCTS = frozenset({"dot", "convolution", "ragged-dot"})
_COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute", "send", "recv")
_MOVES = frozenset(
    {"copy", "copy-start", "copy-done", "transpose", "bitcast", "reshape", "slice", "concatenate", "pad", "broadcast"}
    | {"parameter", "constant", "tuple", "get-tuple-element", "dynamic-slice", "dynamic-update-slice", "reverse"}
)
_MATRIX_LIBRARIES = ("matmul", "gemm", "conv")

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|[\s)}\]])([a-z][a-z0-9\-]*)\(")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a compiled program: `path` is where in the model it came from."""

    opcode: str
    path: str
    kind: str

    @property
    def part(self) -> str:
        """The part of the model."""
        steps = re.split(r"[/()]", self.path)
        for name, pattern in PARTS:
            if any(re.search(pattern, step) for step in steps):
                return name
        if not self.path:
            return UNNAMED
        return REST_OF_MODEL if "jvp(" in self.path else REST_OF_UPDATE

    @property
    def backward(self) -> bool:
        """It belongs to the backward pass."""
        return "transpose(" in self.path


@dataclasses.dataclass(frozen=True)
class Row:
    """One operation over the traced updates.

    Attributes:
      name: of the instruction.
      part: of the model.
      kind: of `KINDS`.
      backward: it belongs to the backward pass.
      path: where in the model it came from.
      calls: how often it ran.
      seconds: in all, on the thread or stream that ran it.
    """

    name: str
    part: str
    kind: str
    backward: bool
    path: str
    calls: int
    seconds: float


def instructions(text: str) -> dict[str, Instruction]:
    """The instructions of a compiled program by name, from `compiled.as_text()`."""
    bodies: dict[str, list[str]] = defaultdict(list)
    lines: dict[str, tuple[str, str]] = {}
    body: list[str] = []
    for line in text.splitlines():
        if opened := _COMPUTATION.match(line):
            body = bodies[opened[1]]
        elif found := _INSTRUCTION.match(line):
            opcode = _OPCODE.search(found[2])
            lines[found[1]] = (opcode[1] if opcode else "", found[2])
            body.append(lines[found[1]][0])
    return {name: _instruction(opcode, line, bodies) for name, (opcode, line) in lines.items()}


def _instruction(opcode: str, line: str, bodies: Mapping[str, list[str]]) -> Instruction:
    path, called = re.search(r'op_name="([^"]*)"', line), re.search(r"calls=%?([\w.\-]+)", line)
    inside = bodies.get(called[1], [opcode]) if called and opcode == "fusion" else [opcode]
    if opcode == "custom-call":
        target = re.search(r'custom_call_target="([^"]*)"', line)
        library = any(word in target[1].lower() for word in _MATRIX_LIBRARIES) if target else False
        kind = PRODUCTS if library else KERNELS
    elif any(code in _PRODUCTS for code in inside):
        kind = PRODUCTS
    elif any(code.startswith(_COLLECTIVES) for code in inside):
        kind = COLLECTIVES
    else:
        kind = COPIES if all(code in _MOVES for code in inside) else OTHER
    return Instruction(opcode, path[1] if path else "", kind)


def events(data: ProfileData, program: str) -> Iterable[tuple[str, float]]:
    """Name and seconds of each operation of a program that a trace holds, on hosts and accelerators alike."""
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" in stats and stats.get("hlo_module", program) == program:
                    yield str(stats["hlo_op"]), event.duration_ns * 1e-9


def table(found: Iterable[tuple[str, float]], program: Mapping[str, Instruction]) -> list[Row]:
    """Operations with their sums, the longest first; what a loop runs counts, the loop itself does not."""
    calls: dict[str, int] = defaultdict(int)
    seconds: dict[str, float] = defaultdict(float)
    for name, duration in found:
        calls[name] += 1
        seconds[name] += duration
    rows = []
    for name, spent in seconds.items():
        one = program.get(name, Instruction("", "", OTHER))
        if one.opcode not in CONTROL:
            rows.append(Row(name, one.part, one.kind, one.backward, one.path, calls[name], spent))
    return sorted(rows, key=lambda row: -row.seconds)


def grouped(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """Seconds by part and kind, the longest part first."""
    sums: dict[str, dict[str, float]] = {}
    for row in rows:
        kinds = sums.setdefault(row.part, dict.fromkeys(KINDS, 0.0))
        kinds[row.kind] += row.seconds
    return dict(sorted(sums.items(), key=lambda item: -sum(item[1].values())))


def read_trace(directory: Path) -> ProfileData:
    """The newest trace below a directory that `jax.profiler.trace` wrote.

    Raises:
      UserError: there is none.
    """
    files = sorted(directory.glob("plugins/profile/*/*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise UserError(f"{directory} holds no trace: let the profile run again")
    return ProfileData.from_file(str(files[-1]))

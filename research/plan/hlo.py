"""Reads an optimised HLO module: computations, how often each instruction runs, and its collectives.

Form: github.com/openxla/xla, xla/hlo/parser and xla/hlo/ir/replica_group.h.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

# Bits of an element; what has no entry (tokens, opaque) has no size.
_BITS = {"pred": 8, "bf16": 16} | {f"{kind}{bits}": bits for kind in "suf" for bits in (4, 8, 16, 32, 64)}
_BITS |= {"f8e4m3fn": 8, "f8e5m2": 8, "f8e4m3b11fnuz": 8, "c64": 64, "c128": 128}
KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: its name, shape as text, operation, names of its operands, and what follows them."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    arguments: str
    attributes: str

    def called(self, key: str) -> str:
        """The computation that an attribute names."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        assert found is not None, f"{self.name} has no {key}"
        return found[1]


@dataclasses.dataclass(frozen=True)
class Module:
    """Computations by name, each with its instructions by name in order; the roots; and the entry."""

    computations: dict[str, dict[str, Instruction]]
    roots: dict[str, str]
    entry: str


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of the program.

    Attributes:
      kind: one of `KINDS`.
      bytes_in: operands of one device.
      groups: devices that exchange, a row a group; of a permutation: pairs (from, to).
      times: how often it runs in an execution of the module.
      source: the operation of the program that it comes from.
    """

    kind: str
    bytes_in: int
    groups: Int[np.ndarray, "groups members"]
    times: float
    source: str

    def sent(self, num_devices: int) -> float:
        """Bytes that a device sends each time, in the mean, by ring algorithms.

        In a group of n: n - 1 times the shard for a gather, (n - 1) / n of the operand for a scatter and an exchange,
        twice that for a reduction on all (Thakur et al. 2005, section 4).
        """
        size = self.groups.shape[1]
        if self.kind == "collective-permute":
            return self.bytes_in * float(np.sum(self.groups[:, 0] != self.groups[:, 1])) / num_devices
        factor = {"all-gather": size - 1.0, "all-reduce": 2.0 * (size - 1) / size, "collective-broadcast": 1.0}
        return self.bytes_in * factor.get(self.kind, (size - 1) / size)


@dataclasses.dataclass(frozen=True)
class Program:
    """What was read: collectives with their counts, and loops whose count could not be told (taken as one)."""

    collectives: tuple[Collective, ...]
    unknown_loops: tuple[str, ...]


def read(text: str, num_devices: int) -> Program:
    """The collectives of a module for `num_devices`, each with how often it runs.

    Loops multiply by their trip counts. A conditional counts as its costliest branch. An asynchronous collective counts
    where it starts; a reduction that a fusion cuts to a shard counts as a reduce-scatter.
    """
    module = parse(text)
    unknown: list[str] = []

    @functools.cache
    def inside(name: str) -> tuple[Collective, ...]:
        found: list[Collective] = []
        computation = module.computations[name]
        chain_starts = any('custom_call_target="AsyncCollectiveStart"' in i.attributes for i in computation.values())
        for instruction in computation.values():
            opcode = instruction.opcode
            if opcode.removesuffix("-start") in KINDS:
                if "chain_id=" not in instruction.attributes or chain_starts:
                    found.append(_collective(instruction, computation, name, num_devices))
            elif opcode == "send" and "_xla_megascale_transfer_type" in instruction.attributes:
                found.append(_between_slices(instruction, computation, num_devices))
            elif opcode == "while":
                times = trip_count(module, computation, instruction)
                if times is None:
                    unknown.append(instruction.name)
                body = inside(instruction.called("body"))
                found += [dataclasses.replace(one, times=one.times * (1 if times is None else times)) for one in body]
            elif opcode == "conditional":
                branches = [inside(branch) for branch in _branches(instruction)]
                found += max(branches, key=lambda ones: sum(one.sent(num_devices) * one.times for one in ones))
            elif opcode in {"fusion", "call", "async-start"} and "calls=" in instruction.attributes:
                found += inside(instruction.called("calls"))
            elif opcode == "call":
                found += inside(instruction.called("to_apply"))
        return tuple(found)

    return Program(inside(module.entry), tuple(dict.fromkeys(unknown)))


def parse(text: str) -> Module:
    """Computations and instructions of a module's text."""
    computations: dict[str, dict[str, Instruction]] = {}
    roots: dict[str, str] = {}
    entry = current = ""
    for line in text.splitlines():
        if not current and line.endswith("{") and (head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)):
            current = head[2]
            computations[current] = {}
            entry = current if head[1] else entry
        elif line == "}" or line.startswith("}, execution_thread="):
            current = ""  # attributes of kernels run over several lines, some of which begin with a brace
        elif current and (instruction := _instruction(line)):
            computations[current][instruction.name] = instruction
            if line.lstrip().startswith("ROOT "):
                roots[current] = instruction.name
    assert entry, "not the text of an HLO module"
    return Module(computations, roots, entry)


def _instruction(line: str) -> Instruction | None:
    found = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line)
    if not found:
        return None
    rest = line[found.end() :]
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opened = rest.index("(")
    closed = _closing(rest, opened)
    arguments = rest[opened + 1 : closed - 1]
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
    return Instruction(found[1], shape, rest[:opened], operands, arguments, rest[closed:])


def _closing(text: str, opened: int) -> int:
    """The place behind the parenthesis that closes the one at `opened`."""
    depth = 0
    for place in range(opened, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place + 1
    raise AssertionError(f"no closing parenthesis in {text[:80]}")


def shape_bytes(shape: str) -> int:
    """Bytes of an array or a tuple of arrays, without the padding of its layout."""
    total = 0
    for kind, sizes in re.findall(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\]", shape):
        count = math.prod(int(size.lstrip("<=")) for size in sizes.split(",") if size)
        total += count * _BITS.get(kind, 0)
    return total // 8


def _collective(
    instruction: Instruction, computation: dict[str, Instruction], name: str, num_devices: int
) -> Collective:
    kind = instruction.opcode.removesuffix("-start")
    if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
    operands = instruction.operands[:1] if kind == "ragged-all-to-all" else instruction.operands
    bytes_in = sum(shape_bytes(computation[operand].shape) for operand in operands)
    attributes = instruction.attributes
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{([\d{},\s]*)\}", attributes)
        assert pairs is not None, instruction.name
        groups = np.array([int(number) for number in re.findall(r"\d+", pairs[1])]).reshape(-1, 2)
    else:
        groups = replica_groups(attributes, num_devices)
    source = re.search(r'op_name="([^"]*)"', attributes)
    return Collective(kind, bytes_in, groups, 1.0, source[1] if source else "")


def _between_slices(instruction: Instruction, computation: dict[str, Instruction], num_devices: int) -> Collective:
    """What a slice hands to the others through its hosts: devices at the same place of each slice exchange."""
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    target = re.search(r'_xla_megascale_target="\{([\d,:]+)\}', instruction.attributes)
    assert kind is not None and target is not None, instruction.name
    ends = [[int(number) for number in part.split(":")] for part in target[1].split(",")]
    slices = sum(part[-1] - part[0] + 1 for part in ends)
    groups = np.arange(num_devices).reshape(slices, -1).T
    bytes_in = shape_bytes(computation[instruction.operands[0]].shape)
    return Collective(kind[1].lower().replace("_", "-"), bytes_in, groups, 1.0, instruction.name)


def replica_groups(attributes: str, num_devices: int) -> Int[np.ndarray, "groups members"]:
    """Groups of devices in any of the forms that XLA writes.

    Lists `{{0,1},{2,3}}` (empty: all devices), a reshaped and transposed range `[2,2]<=[4]T(1,0)`, and axes of a mesh
    `mesh['a'=2,'b'=2] {'b'}`, whose axes may be parts `'b':(1)2` and whose devices may be given as a list, as a range,
    or as a range of the mesh's own shape, `[2,2]T(1,0)`.
    """
    if listed := re.search(r"replica_groups=\{((?:\{[\d,\s]*\},?\s*)*)\}", attributes):
        rows = [[int(number) for number in row.split(",")] for row in re.findall(r"\{([\d,\s]+)\}", listed[1])]
        return np.array(rows) if rows else np.arange(num_devices)[None]
    if ranged := re.search(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", attributes):
        return _range(ranged[1])
    meshed = re.search(r"replica_groups=@?mesh\[([^\]]*)\](.*?)\s*\{([^}]*)\}", attributes)
    assert meshed is not None, f"replica groups of an unknown form: {attributes[:200]}"
    sizes = {name: int(size) for name, size in re.findall(r"'?([\w.]+)'?=(\d+)", meshed[1])}
    devices = np.arange(math.prod(sizes.values()))
    if "<=" in meshed[2]:
        ranged_ids = re.search(r"\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?", meshed[2])
        assert ranged_ids is not None, meshed[2]
        devices = _range(ranged_ids[0]).reshape(-1)
    elif turned := re.search(r"\[[\d,]+\]T\([\d,]+\)", meshed[2]):
        devices = _range(f"[{devices.size}]<={turned[0]}")
    elif numbers := re.findall(r"\d+", meshed[2]):
        devices = np.array([int(number) for number in numbers])
    return _along(devices, sizes, re.findall(r"'?([\w.]+)'?(?::\((\d+)\)(\d+))?", meshed[3]))


def _range(text: str) -> np.ndarray:
    shape, source, order = re.fullmatch(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()  # type: ignore[union-attr]
    sizes = [int(size) for size in source.split(",")]
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    if order:
        numbers = numbers.transpose([int(place) for place in order.split(",")])
    return numbers.reshape([int(size) for size in shape.split(",")])


def _along(devices: np.ndarray, sizes: dict[str, int], axes: list[tuple[str, str, str]]) -> np.ndarray:
    """Devices in groups along axes of a mesh, or along parts of them: those behind `before`, `size` of them."""
    shape: list[int] = []
    places: dict[str, int] = {}
    for name, size in sizes.items():
        part = next(((int(before), int(own)) for axis, before, own in axes if axis == name and own), None)
        places[name] = len(shape) + (1 if part else 0)
        shape += [part[0], part[1], size // (part[0] * part[1])] if part else [size]
    chosen = [places[name] for name, _, _ in axes]
    rest = [place for place in range(len(shape)) if place not in chosen]
    members = math.prod(shape[place] for place in chosen)
    return devices.reshape(shape).transpose(rest + chosen).reshape(-1, members)


# --- loops ------------------------------------------------------------------------------------------------------------


def trip_count(module: Module, computation: dict[str, Instruction], loop: Instruction) -> int | None:
    """How often a loop's body runs: as XLA knows it, or from its counter's start, step and limit; none: unknown.

    A counter whose start or step is not a constant is taken to count from 0 by 1, as JAX's loops do.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
        return int(known[1])
    condition = module.computations[loop.called("condition")]
    compared = _comparison(module, loop.called("condition"))
    if compared is None:
        return None
    place, limit, direction = compared
    del condition
    start, step = 0, 1
    carried = _resolve(computation, loop.operands[0])
    if carried.opcode == "tuple":
        start = _constant(_resolve(computation, carried.operands[place])) or 0
    body = loop.called("body")
    root = module.computations[body][module.roots[body]]
    if root.opcode == "tuple":
        added = _resolve(module.computations[body], root.operands[place])
        if added.opcode == "add":
            numbers = [_constant(_resolve(module.computations[body], operand)) for operand in added.operands]
            step = next((number for number in numbers if number), 1)
    span = limit - start + (1 if direction == "LE" else 0)
    return max(0, -(-span // step))


def _comparison(module: Module, name: str) -> tuple[int, int, str] | None:
    """`(place of the counter in the tuple, limit, direction)` of a loop's condition."""
    computation = module.computations[name]
    root = computation[module.roots[name]]
    outer: dict[str, Instruction] = {}
    if root.opcode == "fusion":  # the comparison within, its parameters resolved without
        inner = root.called("calls")
        parameters = [i for i in module.computations[inner].values() if i.opcode == "parameter"]
        outer = {i.name: _resolve(computation, root.operands[int(i.arguments)]) for i in parameters}
        computation, root = module.computations[inner], module.computations[inner][module.roots[inner]]
    if root.opcode != "compare":
        return None
    direction = re.search(r"direction=(\w+)", root.attributes)
    place = limit = None
    for operand in root.operands:
        found = _resolve(computation, operand)
        found = outer.get(found.name, found)
        if found.opcode == "get-tuple-element":
            place = int(re.search(r"index=(\d+)", found.attributes)[1])  # type: ignore[index]
        elif (number := _constant(found)) is not None:
            limit = number
    if place is None or limit is None or direction is None or direction[1] not in {"LT", "LE", "NE"}:
        return None
    return place, limit, direction[1]


def _resolve(computation: dict[str, Instruction], name: str) -> Instruction:
    """What a value is, behind copies and reshapes."""
    found = computation[name]
    while found.opcode in {"copy", "bitcast", "reshape", "convert"} and found.operands[0] in computation:
        found = computation[found.operands[0]]
    return found


def _constant(instruction: Instruction) -> int | None:
    whole = instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.arguments)
    return int(instruction.arguments) if whole else None


def _branches(instruction: Instruction) -> Iterator[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    if listed:
        yield from (name.strip().lstrip("%") for name in listed[1].split(","))
    else:
        yield from (instruction.called("true_computation"), instruction.called("false_computation"))

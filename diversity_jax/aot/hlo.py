"""Analyses a compiled program's text (HLO): traffic between devices, memory traffic, and custom kernels.

A loop's body counts once per round; XLA's own cost analysis counts it once, so a scanned model counts as one layer.
For several TPU slices the compiler emits the program of one slice: its collectives join partitions of that slice, and
traffic between slices is a `send` and a `recv` of the host's Megascale runtime, whose attributes name the collective.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
import itertools
import math
import re

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body|(?:true|false)_computation)=%([\w.\-]+)|branch_computations=\{([^}]*)\}")
# Operations without memory traffic, or whose traffic is counted at their other half (start, done).
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"}
_FREE |= {"partition-id", "replica-id", "opt-barrier", "add-dependency", "domain", "iota"}
_FREE |= {"async-start", "async-update", "async-done"}
# Megascale's names, ALL_REDUCE and so on; ONE_TO_ONE is a collective-permute.
_BETWEEN_SLICES = {name.upper().replace("-", "_"): name for name in COLLECTIVES} | {"ONE_TO_ONE": "collective-permute"}
_FREE_CALLS = {"AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "Sharding"}


@dataclass(frozen=True)
class Array:
    """An array of an operation's result."""

    bytes: int
    in_hbm: bool


@dataclass(frozen=True)
class Operation:
    """An instruction of the program."""

    name: str
    arrays: tuple[Array, ...]  # the result's
    opcode: str
    operands: tuple[str, ...]
    rest: str  # the text from the operands on

    @property
    def bytes(self) -> int:
        """Bytes of the result."""
        return sum(array.bytes for array in self.arrays)


Computations = dict[str, list[Operation]]  # the program's functions by name


@dataclass(kw_only=True)
class Traffic:
    """Traffic of one device in one run of the program."""

    # (kind, devices of a group, whether it crosses slices) -> [count, payload bytes, bytes sent in a ring]
    collectives: dict[tuple[str, int, bool], list[float]] = field(default_factory=dict)
    hbm_bytes: float = 0.0  # read from and written to the device's memory
    kernels: Counter = field(default_factory=Counter)  # custom call -> count
    unknown_loops: int = 0  # loops whose number of rounds could not be read; each counts once


def _first(pattern: str, text: str) -> str:
    """The first group of a pattern that must occur in the text."""
    match = re.search(pattern, text)
    assert match is not None, f"no {pattern} in {text[:200]}"
    return match[1]


def _arrays(shape: str) -> tuple[Array, ...]:
    arrays = []
    for kind, sizes, layout in _ARRAY.findall(shape):
        digits = re.search(r"\d+", kind)
        bits = _BITS.get(kind, int(digits[0]) if digits else 0)
        count = math.prod(int(size) for size in sizes.split(",")) if sizes else 1
        space = re.search(r"S\((\d+)\)", layout)
        arrays.append(Array(-(-count * bits // 8), space is None or space[1] == "0"))
    return tuple(arrays)


def _closing(text: str, start: int) -> int:
    """Position after the bracket that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] in "([{") - (text[position] in ")]}")
        if depth == 0:
            return position + 1
    return len(text)


def parse(text: str) -> tuple[Computations, str]:
    """Computations by name, and the name of the entry computation."""
    computations: Computations = {}
    entry, current = "", []
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" ") and "->" in line:
            name = _first(r"^(?:ENTRY )?%?([\w.\-]+)", line)
            current = computations.setdefault(name, [])
            entry = name if line.startswith("ENTRY") else entry
        elif match := re.match(r"\s+(?:ROOT )?%([\w.\-]+) = ", line):
            shape_end = _closing(line, match.end()) if line[match.end()] == "(" else line.index(" ", match.end())
            opening = line.index("(", shape_end)
            closing = _closing(line, opening)
            arrays, operands = _arrays(line[match.end() : shape_end]), tuple(_NAME.findall(line[opening:closing]))
            opcode = line[shape_end:opening].strip()
            current.append(Operation(match[1], arrays, opcode, operands, line[opening:]))
    return computations, entry


def rounds(operation: Operation, computations: Computations) -> int | None:
    """Number of rounds of a loop: XLA's annotation, or the constant in its condition; None: unknown."""
    if known := re.search(r'known_trip_count"?:\{"n":"(\d+)"', operation.rest):
        return int(known[1])
    condition = computations[_first(r"condition=%([\w.\-]+)", operation.rest)]
    constants = {step.name: int(step.rest[1:].split(")")[0]) for step in condition if re.match(r"\(-?\d+\)", step.rest)}
    for step in condition:
        if step.opcode == "compare" and "direction=LT" in step.rest and step.operands[-1] in constants:
            return constants[step.operands[-1]]
    return None


def groups(rest: str, devices: int) -> list[list[int]]:
    """Groups of partitions that a collective joins, in any of HLO's notations; all partitions where none is given."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", rest):
        return [[int(number) for number in pair.split(",")] for pair in re.findall(r"\{([\d,]+)", pairs[1] + "}")]
    if listed := re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", rest):
        return [[int(number) for number in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    if tiled := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        sizes = [int(size) for size in tiled[3].split(",")]
        order = [int(axis) for axis in tiled[4].split(",")] if tiled[4] else list(range(len(sizes)))
        return _regroup(sizes, order, int(tiled[2]))
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest):
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        joined = re.findall(r"'(\w+)'", named[2])
        if ":" not in named[2] and math.prod(axes.values()) == devices:
            names = list(axes)
            order = [names.index(name) for name in names if name not in joined] + [names.index(name) for name in joined]
            return _regroup(list(axes.values()), order, math.prod(axes[name] for name in joined))
    return [list(range(devices))]


def _regroup(sizes: list[int], order: list[int], group_size: int) -> list[list[int]]:
    """Row-major indices of an array of `sizes`, transposed by `order`, in groups of `group_size`."""
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    numbers = [
        sum(position * strides[axis] for position, axis in zip(index, order, strict=True))
        for index in itertools.product(*(range(sizes[axis]) for axis in order))
    ]
    return [numbers[start : start + group_size] for start in range(0, len(numbers), group_size)]


def _payload(kind: str, operation: Operation, size: int) -> tuple[float, float]:
    """Bytes of a collective (the larger of its input and output), and bytes a device sends for it in a ring."""
    arrays = operation.arrays
    if operation.opcode.endswith("-start") and kind != "all-reduce":  # (inputs, outputs), then control words
        arrays = arrays[1:2] if kind == "collective-permute" else arrays[len(arrays) // 2 :]
    payload = sum(array.bytes for array in arrays) * (size if kind == "reduce-scatter" else 1)
    return payload, _ring(kind, payload, size)


def _ring(kind: str, payload: float, size: int) -> float:
    """Bytes that a device sends for a collective of `payload` bytes."""
    return payload if kind == "collective-permute" else payload * (size - 1) / size * (2 if kind == "all-reduce" else 1)


def _between_slices(operation: Operation, by_name: dict[str, Operation]) -> tuple[str, int, float] | None:
    """Kind, number of slices and payload of a `send` to the Megascale runtime; None for other operations."""
    transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', operation.rest)
    if operation.opcode != "send" or transfer is None:
        return None
    kind = _BETWEEN_SLICES[transfer[1]]
    rendezvous = _first(r'(_xla_host_transfer_rendezvous="[^"]+")', operation.rest)
    ends_of_transfer = [other for other in by_name.values() if other.opcode in ("send", "recv")]
    payload = max(end.arrays[0].bytes for end in ends_of_transfer if rendezvous in end.rest)
    target = _first(r"_xla_megascale_target=(.*?),_xla_megascale_transfer_type", operation.rest)
    if slices := re.match(r'"\{([\d,:]+)\}x', target):  # "{1,2}x{0:3}": slices 1 and 2, partitions 0 to 3 of each
        ends = [list(map(int, part.split(":"))) for part in slices[1].split(",")]
        return kind, sum(end[-1] - end[0] + 1 for end in ends), payload
    members = re.findall(r"\{([\d,]+|\d+->\d+)\}", target)
    return kind, len(members) if kind == "collective-permute" else len(members[0].split(",")), payload


def measure(text: str, slice_of_partition: Sequence[int]) -> Traffic:
    """The traffic of a program's text, `compiled.as_text()`, given the slice of each device in the mesh's order."""
    computations, entry = parse(text)
    traffic = Traffic()
    channels_in_fusions: set[str] = set()
    partitions = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    slices = list(slice_of_partition)
    if partitions and int(partitions[1]) < len(slices):  # the program of one slice
        slices = [0] * int(partitions[1])

    def count(key, payload, sent, times):
        totals = traffic.collectives.setdefault(key, [0, 0.0, 0.0])
        for index, value in enumerate((1, payload, sent)):
            totals[index] += times * value

    def collective(operation, kind, times):
        members = groups(operation.rest, len(slices))
        size = max(map(len, members)) if kind != "collective-permute" else len(members)
        if size <= 1:
            return
        crosses = any(len({slices[number] for number in group}) > 1 for group in members)
        count((kind, size, crosses), *_payload(kind, operation, size), times)

    def visit(name, times, fused):
        operations = computations.get(name, [])
        by_name = {operation.name: operation for operation in operations}
        for operation in operations:
            kind = operation.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                channel = re.search(r"channel_id=(\d+)", operation.rest)
                # A collective fused with computation occurs in the fusion that starts it and in those that continue it.
                if not (fused and channel and channel[1] in channels_in_fusions):
                    collective(operation, kind, times)
                if fused and channel:
                    channels_in_fusions.add(channel[1])
            if between := _between_slices(operation, by_name):
                kind, size, payload = between
                count((kind, size, True), payload, _ring(kind, payload, size), times)
            if operation.opcode == "custom-call" and (called := _kernel(operation)):
                traffic.kernels[called] += times
            if not fused:
                traffic.hbm_bytes += times * moved_bytes(operation, by_name, computations)
            for inner, repeats, inside in _inner(operation, computations, traffic):
                visit(inner, times * repeats, fused or inside)

    visit(entry, 1, False)
    return traffic


def _inner(operation: Operation, computations: Computations, traffic: Traffic) -> Iterator[tuple[str, int, bool]]:
    """(computation, number of runs, whether it is part of a fused kernel) of those that an operation runs."""
    if operation.opcode in (*COLLECTIVES, "reduce", "scatter", "sort", "reduce-window", "select-and-scatter", "map"):
        return
    repeats = 1
    if operation.opcode == "while":
        known_rounds = rounds(operation, computations)
        traffic.unknown_loops += known_rounds is None
        repeats = 1 if known_rounds is None else known_rounds
    for single, several in _CALLED.findall(operation.rest):
        for name in [single] if single else _NAME.findall(several):
            if not re.fullmatch(r"all-reduce.*|reduce-scatter.*", operation.opcode):
                yield name, repeats, operation.opcode == "fusion"


def _kernel(operation: Operation) -> str | None:
    """Name of a custom kernel or library call; None for the compiler's own annotations."""
    target = _first(r'custom_call_target="([^"]+)"', operation.rest)
    if target == "tpu_custom_call":
        return re.sub(r"[.\d]+$", "", operation.name)
    return target if target.startswith("__") else None


def moved_bytes(operation: Operation, by_name: dict[str, Operation], computations: Computations) -> float:
    """Bytes that an operation reads from and writes to device memory; slices and in-place updates count their size."""
    opcode = operation.opcode
    if opcode in _FREE or opcode.endswith("-done") or any(call in operation.rest for call in _FREE_CALLS):
        return 0.0
    written = sum(array.bytes for array in operation.arrays if array.in_hbm)
    if opcode in ("copy-start", "send", "recv"):
        return written
    if opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * written
    operands = [by_name.get(name) for name in operation.operands]
    if opcode in ("dynamic-update-slice", "scatter"):
        update = operands[1 if opcode == "dynamic-update-slice" else -1]
        return 2 * update.bytes if update else 0.0
    arrays = {index: operand.arrays for index, operand in enumerate(operands) if operand}
    reads = {index: sum(array.bytes for array in result if array.in_hbm) for index, result in arrays.items()}
    if opcode == "fusion":
        sliced, updated = _partial_reads(computations.get(_first(r"calls=%([\w.\-]+)", operation.rest), []))
        reads = {index: min(size, sliced.get(index, size)) for index, size in reads.items()}
        written = min(written, updated) if updated else written
    return written + sum(reads.values())


def _partial_reads(body: list[Operation]) -> tuple[dict[int, int], int]:
    """Bytes read of each operand that a fusion only slices or updates in place, and bytes of in-place updates."""
    parameters = {step.name: int(step.rest[1:].split(")")[0]) for step in body if step.opcode == "parameter"}
    by_name = {step.name: step for step in body}
    origin: dict[str, str] = {name: name for name in parameters}  # bitcasts count as their operand
    for step in body:
        if step.opcode == "bitcast" and step.operands and step.operands[0] in origin:
            origin[step.name] = origin[step.operands[0]]
    sliced: dict[int, int] = {}
    fully_read, updated = set(), 0
    for step in body:
        if step.opcode in ("parameter", "bitcast"):
            continue
        in_place = step.opcode == "dynamic-update-slice"
        updated += 2 * by_name[step.operands[1]].bytes if in_place else 0
        for number, name in enumerate(step.operands):
            if name not in origin:
                continue
            index = parameters[origin[name]]
            if number == 0 and (in_place or step.opcode in ("dynamic-slice", "slice", "gather")):
                sliced[index] = sliced.get(index, 0) + (0 if in_place else step.bytes)
            else:
                fully_read.add(index)
    return {index: size for index, size in sliced.items() if index not in fully_read}, updated

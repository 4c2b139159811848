"""Collectives of a compiled program, read from its text: number, kind and bytes, multiplied by the lengths of loops.

Bytes are those that a chip receives (and sends) under ring algorithms over a group of g: (g - 1) / g of the result of an
all-gather or all-to-all, the same share of a reduce-scatter's operand, twice that for an all-reduce, all for a permutation.

A loop's length is XLA's known_trip_count, else the constant that its counter is compared with. A loop that may end early, as
decoding does when all responses have ended, counts in full; the sums are then upper bounds.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16}
BITS |= {"s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64}
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Instruction(NamedTuple):
    """A line of a computation: name = shape operation(rest."""

    name: str
    shape: str
    operation: str
    rest: str


class Sum(NamedTuple):
    """Collectives of one kind per run of a program: number, bytes of results or operands, bytes over the network."""

    count: float
    payload: float
    network: float


class Collectives(NamedTuple):
    """All collectives of a program: kind → Sum, and whether loops that may end early make it an upper bound."""

    kinds: dict[str, Sum]
    at_most: bool

    @property
    def network(self) -> float:
        """Bytes that a chip receives."""
        return sum(total.network for total in self.kinds.values())

    @property
    def count(self) -> float:
        """Number of collectives."""
        return sum(total.count for total in self.kinds.values())


def collectives(text: str, devices: int) -> Collectives:
    """Sums the collectives of a compiled program's text, `compiled.as_text()`, on `devices` devices.

    Raises:
      ValueError: the length of a loop cannot be read.
    """
    computations, entry = parse(text)
    items: list[tuple[float, str, float, float]] = []
    in_pieces: dict[tuple[str, ...], tuple[float, str, float, float]] = {}
    early_loops: list[str] = []

    def walk(name: str, times: float, fused: bool = False):
        for instruction in computations[name]:
            if (kind := _kind(instruction)) is not None:
                item = (times, *_cost(instruction, kind, name, devices))
                if fused:
                    # The TPU compiler splits a collective into pieces, each fused with other computation, in loops or not.
                    # Every piece repeats the whole instruction, which runs as often as the piece with the fewest runs.
                    identity = (
                        kind,
                        *re.findall(r"(channel_id=\d+|op_name=\"[^\"]*\")", instruction.rest),
                        *_arrays(instruction.shape),
                    )
                    in_pieces[identity] = min(in_pieces.get(identity, item), item)
                else:
                    items.append(item)
            elif instruction.operation == "while" and _has_collectives(computations, instruction):
                length, early = trips(instruction, computations)
                early_loops.extend([instruction.name] if early else [])
                for called in _called(instruction):
                    walk(called, times * length)
            elif instruction.operation != "while":
                for called in _called(instruction):
                    walk(called, times, fused or instruction.operation == "fusion")

    walk(entry, 1.0)
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for times, kind, payload, network in [*items, *in_pieces.values()]:
        for i, value in enumerate((1, payload, network)):
            sums[kind][i] += times * value
    return Collectives({kind: Sum(*values) for kind, values in sorted(sums.items())}, bool(early_loops))


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Computation → instructions, and the name of the program's entry computation."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = HEAD.match(line)
        if head:
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (match := INSTRUCTION.match(line)):
            shape, _, after = _split_shape(match[2])
            operation, _, rest = after.partition("(")
            current.append(Instruction(match[1], shape, operation.strip(), rest))
    return computations, entry


def size(shape: str) -> float:
    """Total bytes of a shape's arrays."""
    return sum(
        BITS.get(kind, 0) / 8 * math.prod(map(int, dims.split(",") if dims else ()))
        for kind, dims in ARRAY.findall(shape)
    )


def trips(loop: Instruction, computations: Mapping[str, list[Instruction]]) -> tuple[float, bool]:
    """The number of a loop's iterations, and whether it may end earlier.

    Without known_trip_count it is the constant in the loop's condition divided by the counter's step. The counter is assumed
    to start at 0; if it starts later, the loop is shorter.
    """
    trip_count = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if trip_count:
        return float(trip_count[1]), False
    condition, body = (re.findall(rf"{part}=%?([\w.\-]+)", loop.rest)[0] for part in ("condition", "body"))
    instructions = list(computations[condition])
    for instruction in computations[condition]:
        for called in _called(instruction):
            instructions += computations[called]
    constants = [value for instruction in instructions if (value := _constant(instruction)) is not None]
    if not constants:
        raise ValueError(f"The length of loop {loop.name} cannot be read from the program.")
    early = any(instruction.operation in ("and", "reduce") for instruction in instructions)
    return float(-(-max(constants) // _stride(computations[condition], computations[body]))), early


def _stride(condition: list[Instruction], body: list[Instruction]) -> int:
    """The step of a loop's counter, 1 if unknown; XLA unrolls some loops by 2."""
    body_by_name, condition_by_name = (
        {instruction.name: instruction for instruction in body},
        {instruction.name: instruction for instruction in condition},
    )
    for instruction in condition:
        if instruction.operation != "compare" or "direction=LT" not in instruction.rest:
            continue
        for name in _operands(instruction):
            index = re.search(r"index=(\d+)", condition_by_name[name].rest) if name in condition_by_name else None
            if index and condition_by_name[name].operation == "get-tuple-element":
                added = body_by_name.get(_operands(body[-1])[int(index[1])])
                steps = (
                    [_constant(body_by_name[name]) for name in _operands(added) if name in body_by_name]
                    if added
                    else []
                )
                return next((step for step in steps if step), 1) if added and added.operation == "add" else 1
    return 1


def _constant(instruction: Instruction) -> int | None:
    """The value of an integer constant, None for other instructions."""
    number = re.match(r"(\d+)\)", instruction.rest)
    return int(number[1]) if instruction.operation == "constant" and number else None


def _operands(instruction: Instruction) -> list[str]:
    """Names of an instruction's operands."""
    return re.findall(r"%([\w.\-]+)", instruction.rest.split("), ")[0])


def _kind(instruction: Instruction) -> str | None:
    """The kind of collective that an instruction is or starts, else None."""
    kind = instruction.operation.removesuffix("-start")
    return kind if kind in KINDS else None


def _arrays(shape: str) -> list[str]:
    """A shape's arrays without their layouts."""
    return [f"{kind}[{dims}]" for kind, dims in ARRAY.findall(shape)]


def _has_collectives(computations: Mapping[str, list[Instruction]], instruction: Instruction) -> bool:
    """Whether anything that an instruction calls has a collective."""
    return any(
        _kind(inner) is not None or _has_collectives(computations, inner)
        for called in _called(instruction)
        for inner in computations[called]
    )


def group_size(rest: str, devices: int) -> int:
    """Number of devices in one collective."""
    if explicit := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(explicit[1].split(","))
    if tiled := re.search(r"replica_groups=\[([\d,]+)\]<=", rest):
        return math.prod(map(int, tiled[1].split(",")[1:]))
    if meshed := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = {name: int(number) for name, number in re.findall(r"'([^']+)'=(\d+)", meshed[1])}
        parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", meshed[2])
        return math.prod(int(part) if part else sizes[name] for name, part in parts)
    return devices


def _cost(instruction: Instruction, kind: str, inside: str, devices: int) -> tuple[str, float, float]:
    """Kind, payload and bytes over the network of one collective."""
    payload = size(_result(instruction))
    if kind == "collective-permute":
        return kind, payload, payload
    g = group_size(instruction.rest, devices)
    if kind == "reduce-scatter":
        return kind, payload * g, payload * (g - 1)
    if kind == "all-reduce" and "all-reduce-scatter" in inside:  # the TPU compiler's form of a reduce-scatter
        return "reduce-scatter", payload, payload * (g - 1) / g
    return kind, payload, payload * (g - 1) / g * (2 if kind == "all-reduce" else 1)


def _result(instruction: Instruction) -> str:
    """The shape of a collective's result, without the operands that the start of an asynchronous one also lists."""
    if not instruction.operation.endswith("-start") or instruction.operation == "all-reduce-start":
        return instruction.shape
    elements = list(_elements(instruction.shape))
    return elements[1] if len(elements) > 1 else instruction.shape


def _called(instruction: Instruction) -> Iterator[str]:
    if instruction.operation in (
        "all-reduce",
        "reduce",
        "reduce-scatter",
        "scatter",
        "sort",
        "map",
        "reduce-window",
        "select-and-scatter",
    ):
        return  # these call functions that combine two numbers
    yield from CALLED.findall(instruction.rest)
    for branches in BRANCHES.findall(instruction.rest):
        yield from re.findall(r"[\w.\-]+", branches)


def _split_shape(text: str) -> tuple[str, str, str]:
    """Splits a line after its "=" into shape, " " and rest. A tuple's shape has spaces, so parentheses are counted."""
    if not text.startswith("("):
        return text.partition(" ")
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[: i + 1], " ", text[i + 1 :].lstrip()
    return text, "", ""


def _elements(shape: str) -> Iterator[str]:
    """The elements of a tuple's shape."""
    depth, start = 0, 1
    for i, letter in enumerate(shape):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or (letter == ")" and depth == 0):
            yield shape[start:i]
            start = i + 1

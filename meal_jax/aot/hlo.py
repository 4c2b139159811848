"""Collectives of a compiled program, read off its text: how many, of what kind, how many bytes, loops multiplied out.

Bytes are those that a chip receives (and sends) under ring algorithms over a group of g: of an all-gather's or an all-to-all's
result (g - 1) / g, of a reduce-scatter's operand the same, of an all-reduce twice that, of a permutation all.

A loop's length is XLA's own known_trip_count, else the constant that its counter is compared with. A loop that may also end
for another reason, as decoding does when all have ended, counts in full: then the sums are upper bounds.
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
    """Collectives of one kind in a run of a program: how many, bytes of their results or operands, bytes over the network."""

    count: float
    payload: float
    network: float


class Collectives(NamedTuple):
    """All of a program: a Sum by kind, and whether a loop that may end early makes it an upper bound."""

    kinds: dict[str, Sum]
    at_most: bool

    @property
    def network(self) -> float:
        """Bytes a chip receives."""
        return sum(one.network for one in self.kinds.values())

    @property
    def count(self) -> float:
        """How many."""
        return sum(one.count for one in self.kinds.values())


def collectives(text: str, devices: int) -> Collectives:
    """Sums the collectives of a compiled program's text, `compiled.as_text()`, on so many devices.

    Raises:
      ValueError: a loop whose length cannot be read.
    """
    computations, entry = parse(text)
    found: list[tuple[float, str, float, float]] = []
    in_pieces: dict[tuple[str, ...], tuple[float, str, float, float]] = {}
    early_loops: list[str] = []

    def walk(name: str, times: float, fused: bool = False):
        for one in computations[name]:
            if (kind := _kind(one)) is not None:
                item = (times, *_cost(one, kind, name, devices))
                if fused:
                    # A TPU's compiler cuts a collective in pieces, each fused with computation beside it, in loops or out of
                    # them; every piece repeats the whole instruction. It runs as often as the piece that runs least.
                    whole = (kind, *re.findall(r"(channel_id=\d+|op_name=\"[^\"]*\")", one.rest), *_arrays(one.shape))
                    in_pieces[whole] = min(in_pieces.get(whole, item), item)
                else:
                    found.append(item)
            elif one.operation == "while" and _has_collectives(computations, one):
                length, early = trips(one, computations)
                early_loops.extend([one.name] if early else [])
                for called in _called(one):
                    walk(called, times * length)
            elif one.operation != "while":
                for called in _called(one):
                    walk(called, times, fused or one.operation == "fusion")

    walk(entry, 1.0)
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for times, kind, payload, network in [*found, *in_pieces.values()]:
        for i, value in enumerate((1, payload, network)):
            sums[kind][i] += times * value
    return Collectives({kind: Sum(*values) for kind, values in sorted(sums.items())}, bool(early_loops))


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Instructions by computation, and the name of the program's entry."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = HEAD.match(line)
        if head:
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (found := INSTRUCTION.match(line)):
            shape, _, after = _split_shape(found[2])
            operation, _, rest = after.partition("(")
            current.append(Instruction(found[1], shape, operation.strip(), rest))
    return computations, entry


def size(shape: str) -> float:
    """Bytes of a shape's arrays, those of a tuple together."""
    return sum(
        BITS.get(kind, 0) / 8 * math.prod(map(int, dims.split(",") if dims else ()))
        for kind, dims in ARRAY.findall(shape)
    )


def trips(loop: Instruction, computations: Mapping[str, list[Instruction]]) -> tuple[float, bool]:
    """How often a loop runs, and whether it may end before that.

    Without XLA's own word it is the constant in the loop's condition, by the step of its counter. The counter is taken to
    start at 0: one that starts later runs less often.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
        return float(known[1]), False
    condition, body = (re.findall(rf"{part}=%?([\w.\-]+)", loop.rest)[0] for part in ("condition", "body"))
    lines = list(computations[condition])
    for one in computations[condition]:
        for called in _called(one):
            lines += computations[called]
    found = [value for one in lines if (value := _constant(one)) is not None]
    if not found:
        raise ValueError(f"The length of loop {loop.name} cannot be read off the program.")
    early = any(one.operation in ("and", "reduce") for one in lines)
    return float(-(-max(found) // _stride(computations[condition], computations[body]))), early


def _stride(condition: list[Instruction], body: list[Instruction]) -> int:
    """What a loop adds to its counter each time, as far as it can be seen: XLA unrolls loops of its own by 2."""
    inside, before = {one.name: one for one in body}, {one.name: one for one in condition}
    for one in condition:
        if one.operation != "compare" or "direction=LT" not in one.rest:
            continue
        for name in _operands(one):
            place = re.search(r"index=(\d+)", before[name].rest) if name in before else None
            if place and before[name].operation == "get-tuple-element":
                added = inside.get(_operands(body[-1])[int(place[1])])
                steps = [_constant(inside[name]) for name in _operands(added) if name in inside] if added else []
                return next((step for step in steps if step), 1) if added and added.operation == "add" else 1
    return 1


def _constant(one: Instruction) -> int | None:
    """The value of a whole number, None for all else."""
    number = re.match(r"(\d+)\)", one.rest)
    return int(number[1]) if one.operation == "constant" and number else None


def _operands(one: Instruction) -> list[str]:
    """Names of an instruction's operands."""
    return re.findall(r"%([\w.\-]+)", one.rest.split("), ")[0])


def _kind(one: Instruction) -> str | None:
    """What kind of collective an instruction is or starts, None if it is none."""
    kind = one.operation.removesuffix("-start")
    return kind if kind in KINDS else None


def _arrays(shape: str) -> list[str]:
    """A shape's arrays without their layouts."""
    return [f"{kind}[{dims}]" for kind, dims in ARRAY.findall(shape)]


def _has_collectives(computations: Mapping[str, list[Instruction]], one: Instruction) -> bool:
    """Whether anything that an instruction calls has a collective."""
    return any(
        _kind(inner) is not None or _has_collectives(computations, inner)
        for called in _called(one)
        for inner in computations[called]
    )


def group_size(rest: str, devices: int) -> int:
    """How many devices take part in one collective."""
    if explicit := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(explicit[1].split(","))
    if tiled := re.search(r"replica_groups=\[([\d,]+)\]<=", rest):
        return math.prod(map(int, tiled[1].split(",")[1:]))
    if meshed := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = {name: int(number) for name, number in re.findall(r"'([^']+)'=(\d+)", meshed[1])}
        parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", meshed[2])
        return math.prod(int(part) if part else sizes[name] for name, part in parts)
    return devices


def _cost(one: Instruction, kind: str, inside: str, devices: int) -> tuple[str, float, float]:
    """Kind, payload and bytes over the network of one collective."""
    payload = size(_result(one))
    if kind == "collective-permute":
        return kind, payload, payload
    g = group_size(one.rest, devices)
    if kind == "reduce-scatter":
        return kind, payload * g, payload * (g - 1)
    if kind == "all-reduce" and "all-reduce-scatter" in inside:  # how a TPU's compiler writes a reduce-scatter
        return "reduce-scatter", payload, payload * (g - 1) / g
    return kind, payload, payload * (g - 1) / g * (2 if kind == "all-reduce" else 1)


def _result(one: Instruction) -> str:
    """The shape of what a collective gives; that of an asynchronous one's start also holds its operands."""
    if not one.operation.endswith("-start") or one.operation == "all-reduce-start":
        return one.shape
    elements = list(_elements(one.shape))
    return elements[1] if len(elements) > 1 else one.shape


def _called(one: Instruction) -> Iterator[str]:
    if one.operation in (
        "all-reduce",
        "reduce",
        "reduce-scatter",
        "scatter",
        "sort",
        "map",
        "reduce-window",
        "select-and-scatter",
    ):
        return  # what combines two numbers
    yield from CALLED.findall(one.rest)
    for branches in BRANCHES.findall(one.rest):
        yield from re.findall(r"[\w.\-]+", branches)


def _split_shape(text: str) -> tuple[str, str, str]:
    """A line after its "=": shape, " ", the rest. A tuple's shape has spaces, so parentheses are counted."""
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

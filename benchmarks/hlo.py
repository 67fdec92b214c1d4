"""Parses the text of a compiled program (XLA's HLO): computations, instructions and arrays."""

import math
import re
from dataclasses import dataclass
from functools import cached_property

_BYTES = {"pred": 1, "token": 0, "opaque": 0, "c64": 8, "c128": 16}  # others have their bits in the name


@dataclass(frozen=True)
class Array:
    """An array: element type, shape and size in memory."""

    dtype: str
    sides: tuple[int, ...]
    stored: int  # elements in memory, with the padding to a TPU's tiles
    space: int = 0  # 0 is the device's main memory; others are on a TPU's chip

    @property
    def elements(self) -> int:
        """Number of elements without padding."""
        return math.prod(self.sides)

    @property
    def bytes(self) -> float:
        """Bytes in memory, with padding."""
        width = _BYTES.get(self.dtype)
        if width is None:
            width = int(re.findall(r"\d+", self.dtype)[0]) / 8  # f32, bf16, s8, f8e4m3fn
        return width * self.stored


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]  # names; for a parameter its number
    attributes: str
    root: bool  # the computation returns its value

    @cached_property
    def arrays(self) -> list[Array]:
        """The result; several arrays for a tuple."""
        return arrays(self.shape)

    @cached_property
    def called(self) -> list[str]:
        """The computations it calls."""
        keys = r"(?<!\w)(?:calls|to_apply|body|condition|true_computation|false_computation|called_computations)"
        found = re.findall(rf"{keys}=\{{?%?([\w.\-]+)", self.attributes)
        for names in re.findall(r"branch_computations=\{([^}]*)\}", self.attributes):
            found += re.findall(r"[\w.\-]+", names)
        return found

    @property
    def target(self) -> str:
        """The target of a custom call; "" for other instructions."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes) if self.opcode == "custom-call" else None
        return found[1] if found else ""

    @property
    def op_name(self) -> str:
        """JAX's name of the place in the Python code that it comes from."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return found[1] if found else ""


Computation = dict[str, Instruction]  # by name


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Returns the computations of a program by name, and the name of its entry.

    ValueError if the text is not that of a compiled program.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line.endswith("{") and "->" in line and not line.startswith(" "):
            is_entry, name = matched(r"(ENTRY )?%?([\w.\-]+)", line).groups()
            current = computations.setdefault(name, {})
            entry = name if is_entry else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and " = " in line:
            instruction = _instruction(line)
            current[instruction.name] = instruction
    if not entry:
        raise ValueError(f"no line begins with ENTRY; pass the text of a compiled program, not {text[:80]!r}")
    return computations, entry


def matched(pattern: str, text: str) -> re.Match[str]:
    """Searches a text for a pattern that it must contain; ValueError otherwise."""
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"unknown form of HLO: {text[:80]!r} does not contain {pattern!r}")
    return found


def arrays(shape: str) -> list[Array]:
    """Parses a shape of HLO, "f32[2,3]{1,0}" or a tuple of such, into arrays."""
    found = []
    for dtype, sides, layout in re.findall(r"([a-z]\w*)\[([^\]]*)\](\{[^}]*\})?", shape):
        numbers = tuple(int(side.strip("<= ")) for side in sides.split(",") if side)
        space = re.search(r"S\((\d+)\)", layout)
        found.append(Array(dtype, numbers, _stored(numbers, layout), int(space[1]) if space else 0))
    return found


def _stored(sides: tuple[int, ...], layout: str) -> int:
    """Elements in memory. A layout with "T(8,128)" pads the fastest sides to whole tiles."""
    tile = re.search(r"T\(([\d,]+)\)", layout)
    order = [int(axis) for axis in re.findall(r"\d+", layout.split(":")[0])]
    if not tile or not order:
        return math.prod(sides)
    padded = list(sides)
    for axis, size in zip(order, reversed([int(x) for x in tile[1].split(",")]), strict=False):
        padded[axis] = -(-sides[axis] // size) * size
    return math.prod(padded)


def _instruction(line: str) -> Instruction:
    left, right = re.sub(r"/\*index=\d+\*/", "", line.strip()).split(" = ", 1)
    end = _closed(right, 0) if right.startswith("(") else right.index(" ")
    shape, rest = right[:end], right[end:].lstrip()
    start = rest.index("(")
    opcode, end = rest[:start], _closed(rest, start)
    inside = rest[start + 1 : end - 1]
    operands = (inside,) if opcode == "parameter" else tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(
        name=left.removeprefix("ROOT ").lstrip("%"),
        shape=shape,
        opcode=opcode,
        operands=operands,
        attributes=rest[end:],
        root=left.startswith("ROOT "),
    )


def _closed(text: str, start: int) -> int:
    """The position after the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place + 1
    raise ValueError(f"no parenthesis closes {text[start : start + 40]!r}")

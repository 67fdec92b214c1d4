"""Counts the arithmetic, bytes, kernels and collectives of one device in the text of a compiled program (XLA's HLO).

A *kernel* is an instruction that the device executes as one piece of work: a fusion, a convolution, a copy, a
collective. Instructions that only name values cost nothing (`FREE`). The bodies of loops are counted separately.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import jax

from benchmarks.hlo import Array, Computation, Instruction, matched, parse

FREE = {
    "add-dependency", "after-all", "bitcast", "constant", "domain", "get-tuple-element", "iota", "opt-barrier",
    "parameter", "partition-id", "replica-id", "tuple",
}  # fmt: skip
FREE_TARGETS = {"AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound"}  # targets of custom calls on a TPU
COLLECTIVES = {
    "all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute", "ragged-all-to-all",
    "reduce-scatter",
}  # fmt: skip
SLICES = {"slice", "dynamic-slice", "gather"}


@dataclass(frozen=True)
class Kernel:
    """The cost of one kernel."""

    name: str
    kind: str  # opcode, or target of a custom call
    op_name: str  # place in the Python code that it comes from
    bytes: float
    flop: dict[str, float]  # by element type of the factors; a multiplication with its addition is 2 FLOP
    reduces: bool  # it sums over an axis and multiplies no matrices


@dataclass
class Counts:
    """The work of one device in a computation. `loops` holds its loops; the other fields exclude them."""

    kernels: list[Kernel] = field(default_factory=list)
    collectives: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # kind -> bytes of each
    loops: list["Loop"] = field(default_factory=list)

    @property
    def flop(self) -> dict[str, float]:
        """FLOP by element type."""
        found: dict[str, float] = defaultdict(float)
        for kernel in self.kernels:
            for dtype, number in kernel.flop.items():
                found[dtype] += number
        return dict(found)

    @property
    def bytes(self) -> float:
        """Bytes that the kernels read and write."""
        return sum(kernel.bytes for kernel in self.kernels)

    @property
    def norm_reductions(self) -> int:
        """Number of kernels that sum for batch norm, forward or backward."""
        return sum(kernel.reduces and "/norm_" in kernel.op_name for kernel in self.kernels)

    def add(self, other: "Counts", times: int = 1) -> None:
        """Adds the work of another computation that runs `times` times."""
        self.kernels += other.kernels * times
        for kind, sizes in other.collectives.items():
            self.collectives[kind] += sizes * times
        self.loops += other.loops * times

    def whole(self) -> "Counts":
        """Counts that include the loops: each `rounds` times, or once if the number of rounds is unknown."""
        found = Counts()
        found.add(Counts(self.kernels, self.collectives))
        for loop in self.loops:
            found.add(loop.body.whole(), loop.rounds or 1)
        return found


@dataclass(frozen=True)
class Loop:
    """One round of a loop, and its number of rounds; None if that is only known at run time."""

    body: Counts
    rounds: int | None


class Program:
    """A compiled program for the platform "cuda", "tpu" or "cpu".

    On a TPU, arrays in the chip's memory cost no bytes. Taps of a TPU's convolutions on padding or between dilated
    pixels do not count, as in XLA's own count. On other platforms every tap counts.
    """

    def __init__(self, text: str, platform: str = "cuda") -> None:
        self.is_tpu = platform == "tpu"
        self.computations, self.entry = parse(text)

    def count(self, name: str | None = None) -> Counts:
        """Counts the program, or its computation `name`."""
        found = Counts()
        around = self.computations[name or self.entry]
        for instruction in around.values():
            opcode = instruction.opcode
            if opcode in FREE or (opcode.endswith(("-done", "-update")) and not _replaces(instruction)):
                continue
            if opcode == "while":
                body = matched(r"body=%?([\w.\-]+)", instruction.attributes)
                rounds = re.search(r'known_trip_count":?=?\{"?n"?:"?(\d+)', instruction.attributes)
                found.loops.append(Loop(self.count(body[1]), int(rounds[1]) if rounds else None))
            elif opcode == "conditional":
                # One branch runs; the most expensive is counted.
                branches = [self.count(branch) for branch in instruction.called]
                found.add(max(branches, key=_cost))
            elif opcode in ("call", "async-start") and instruction.called:
                for called in instruction.called:
                    found.add(self.count(called))
            elif instruction.target not in FREE_TARGETS:
                self._collect(found, instruction, around)
        return found

    def _collect(self, found: Counts, instruction: Instruction, around: Computation) -> None:
        """Adds a kernel, and the collectives in it, to the counts."""
        flop: dict[str, float] = defaultdict(float)
        names = []
        for part, computation in [(instruction, around), *self._inside(instruction)]:
            number = flops(part, computation, skip_zeros=self.is_tpu)
            if number:
                flop[computation[part.operands[0]].arrays[0].dtype] += number
            if part.opcode == "reduce":
                names.append(part.op_name)
            kind = part.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                # The larger of operands and results: the whole array for a gather and for a scatter.
                sent = sum(x.bytes for name in part.operands for x in computation[name].arrays)
                results = max((x.bytes for x in part.arrays), default=0) if kind == "all-gather" else 0
                found.collectives[kind].append(max(sent, results))
        op_name = next((name for name in names if "/norm_" in name), instruction.op_name)
        kind = instruction.target or instruction.opcode
        read_and_written = self._bytes(instruction, around)
        found.kernels.append(
            Kernel(instruction.name, kind, op_name, read_and_written, dict(flop), bool(names) and not flop)
        )

    def _inside(self, instruction: Instruction) -> Iterator[tuple[Instruction, Computation]]:
        """Yields the instructions of a fusion and of fusions inside it, each with the computation around it."""
        if instruction.opcode.removesuffix("-start") not in ("fusion", "custom-call", "call"):
            return
        for name in instruction.called:
            around = self.computations.get(name, {})
            for part in around.values():
                yield part, around
                yield from self._inside(part)

    def _size(self, arrays: list[Array]) -> float:
        """Bytes in the device's main memory."""
        return sum(x.bytes for x in arrays if not (self.is_tpu and x.space))

    def _bytes(self, instruction: Instruction, around: Computation) -> float:
        """Bytes that a kernel reads and writes: its whole results, and each whole operand once.

        If a fusion reads only slices of an operand, the slices count. If it replaces a part of an operand in place,
        that part counts. Caches and second passes over an operand are ignored.
        """
        if instruction.opcode == "copy-start":  # (result, operand, context)
            return self._size(instruction.arrays[:2])
        if instruction.opcode == "slice-start":  # ((operand), result, context)
            part = instruction.arrays[1]
            return part.bytes + self._size([part])
        inner = self.computations.get(instruction.called[0], {}) if instruction.opcode == "fusion" else {}
        parameters = {int(x.operands[0]): x.name for x in inner.values() if x.opcode == "parameter"}
        users: dict[str, list[Instruction]] = defaultdict(list)
        for part in inner.values():
            for operand in part.operands:
                users[operand].append(part)
        total, seen = 0.0, set()
        for place, name in enumerate(instruction.operands):
            read = self._size(around[name].arrays)
            inside = parameters.get(place, "")
            using = [instruction] if not inner else users[inside]
            first = [user.operands[0] == (inside or name) for user in using]
            if using and all(first) and all(user.opcode in SLICES for user in using):
                read = min(read, sum(self._size(user.arrays) for user in using))
            elif using and all(first) and all(_replaces(user) for user in using):
                read = 0
            total += 0 if name in seen else read
            seen.add(name)
        root = next((part for part in inner.values() if part.root), instruction)
        if _replaces(root):
            return total + self._size((inner or around)[root.operands[1]].arrays)
        if instruction.opcode.endswith("-start"):  # (operands, results, contexts)
            return total + max((self._size([x]) for x in instruction.arrays), default=0)
        return total + self._size(instruction.arrays)


def text_of(program: jax.stages.Compiled) -> str:
    """The HLO text of a compiled program; ValueError if its backend gives none."""
    text = program.as_text()
    if text is None:
        raise ValueError("the compiled program has no text; compile it without the compilation cache")
    return text


def _cost(counts: Counts) -> tuple[float, float]:
    whole = counts.whole()
    return sum(whole.flop.values()), whole.bytes


def _replaces(instruction: Instruction) -> bool:
    return instruction.opcode == "dynamic-update-slice"


def flops(instruction: Instruction, around: Computation, skip_zeros: bool = False) -> float:
    """Counts the FLOP of a convolution or matrix product, 2 per multiplication; 0 for other instructions.

    Every tap of a convolution counts, also on padding, unless `skip_zeros`. A plain convolution over a dilated
    image also multiplies the zeros; cuDNN's backward convolutions do not.
    """
    if instruction.opcode == "dot" or instruction.target.startswith("__cublas"):
        axes = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)', instruction.attributes)
        sides = around[instruction.operands[0]].arrays[0].sides
        summed = [sides[int(axis)] for axis in re.findall(r"\d+", axes[1] if axes else "")]
        return 2.0 * instruction.arrays[0].elements * math.prod(summed)
    if instruction.opcode != "convolution" and not instruction.target.startswith("__cudnn$conv"):
        return 0.0
    labels = matched(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    taps = _numbers(window, "size")
    first, second = (around[name].arrays[0] for name in instruction.operands[:2])
    result = instruction.arrays[0]
    if instruction.target == "__cudnn$convBackwardInput":  # (small image, kernel) -> large image
        return 2.0 * first.elements * math.prod(taps) * second.sides[labels[2].index("i")]
    if instruction.target == "__cudnn$convBackwardFilter":  # (large image, small image) -> kernel
        return 2.0 * second.elements * math.prod(taps) * result.sides[labels[2].index("i")]
    met = 1.0  # pairs of a result pixel and a tap
    for axis, size in enumerate(taps):
        side = result.sides[labels[3].index(str(axis))]
        if skip_zeros:
            pixels = first.sides[labels[1].index(str(axis))]
            met *= _pixels_met(window, axis, pixels, side, size)
        else:
            met *= side * size
    others = math.prod(side for axis, side in zip(labels[3], result.sides, strict=True) if not axis.isdigit())
    return 2.0 * met * others * second.sides[labels[2].index("i")]


def _pixels_met(window: re.Match[str] | None, axis: int, pixels: int, side: int, size: int) -> int:
    """Number of pairs of a result pixel and a tap along an axis that meet an image pixel and not a zero."""

    def number(name: str, default: int) -> int:
        return (_numbers(window, name) or [default] * (axis + 1))[axis]

    stride, apart, spread = number("stride", 1), number("rhs_dilate", 1), number("lhs_dilate", 1)
    pad = re.search(r"pad=([\d_x-]+)", window[1]) if window else None
    before = int(pad[1].split("x")[axis].split("_")[0]) if pad else 0
    places = [i * stride + k * apart - before for i in range(side) for k in range(size)]
    return sum(place % spread == 0 and 0 <= place // spread < pixels for place in places)


def _numbers(window: re.Match[str] | None, name: str) -> list[int]:
    """The numbers of a window's property, "size=5x5"; none if it has no such property."""
    found = re.search(rf"(?<!\w){name}=([\dx]+)", window[1]) if window else None
    return [int(number) for number in found[1].split("x")] if found else []

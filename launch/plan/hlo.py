"""Reads the text of an optimised HLO module: computations, instructions, shapes, calls, loops.

The text is what `jax.stages.Compiled.as_text` gives. Grammar: the XLA project's "HLO text syntax".
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{[^}]*?(S\(\d+\))?[^}()]*\})?")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_COMMENT = re.compile(r"/\*.*?\*/")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """Shape of a value."""

    dtype: str  # HLO's name, "bf16"
    dims: tuple[int, ...]  # sizes
    hbm: bool = True  # in main memory; False in the chip's own (VMEM, SMEM: a layout with S(n))

    @property
    def bytes(self) -> int:
        """Size without the padding of tiles."""
        bits = _BITS.get(self.dtype)
        if bits is None:
            bits = int(re.search(r"\d+", self.dtype)[0])
        return -(-math.prod(self.dims) * bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str  # unique in the module
    op: str  # opcode, "fusion"
    shape: str  # text of its result's shape
    literal: str  # text between its parentheses
    text: str  # what follows: attributes, metadata, backend_config
    root: bool  # whether it is its computation's result

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of its result; those of a tuple in order."""
        return tuple(
            Array(dtype, tuple(map(int, filter(None, dims.split(",")))), not space)
            for dtype, dims, space in _ARRAY.findall(self.shape)
        )

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the instructions that it reads."""
        return tuple(_NAME.findall(self.literal))

    def attribute(self, name: str) -> str | None:
        """Returns the computation or number of `name=%x` or `name=3`, or None."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.text)
        return found and found[1]

    def numbers(self, name: str) -> tuple[int, ...]:
        """Returns the numbers of `name={1,2}`."""
        found = re.search(rf"\b{name}=\{{([\d,]*)\}}", self.text)
        return tuple(int(n) for n in found[1].split(",") if n) if found else ()

    @property
    def branches(self) -> tuple[str, ...]:
        """Computations of which a conditional runs one."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.text)
        if listed:
            return tuple(_NAME.findall(listed[1]))
        both = (self.attribute("true_computation"), self.attribute("false_computation"))
        return tuple(name for name in both if name)

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate; None where it has none, which it may write as 2^63 - 1."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.text)
        return int(found[1]) if found and int(found[1]) < 2**63 - 1 else None


class Computation:
    """Instructions by name, in the order of the text, which in a scheduled module is time's."""

    def __init__(self, name: str, instructions: dict[str, Instruction]):
        """Takes the instructions of a computation."""
        self.name, self.instructions = name, instructions

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def __getitem__(self, name: str) -> Instruction:
        return self.instructions[name]

    @functools.cached_property
    def root(self) -> Instruction:
        """The result."""
        return next((one for one in self if one.root), list(self)[-1])

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """Arguments by number."""
        return {int(one.literal): one for one in self if one.op == "parameter"}

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Name -> the instructions that read it."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for one in self:
            for operand in dict.fromkeys(one.operands):
                users.setdefault(operand, []).append(one)
        return users


@dataclasses.dataclass(frozen=True)
class Module:
    """A parsed module."""

    computations: dict[str, Computation]  # by name
    entry: Computation  # the one that runs

    @classmethod
    def parse(cls, text: str) -> "Module":
        """Returns the module of an HLO text; raises ValueError where there is no ENTRY."""
        computations, entry, name, lines = {}, None, None, []
        for line in _COMMENT.sub("", text).splitlines():
            header = not line.startswith(" ") and _HEADER.match(line)
            if header:
                name, lines = header[2], []
                entry = name if header[1] else entry
            elif line == "}" and name:
                found = map(_instruction, lines)
                computations[name] = Computation(name, {one.name: one for one in found})
                name = None
            elif _LINE.match(line):
                lines.append(line)
            elif name and lines:  # a kernel's metadata goes on over several lines
                lines[-1] += line
        if entry is None:
            raise ValueError("no ENTRY computation in the HLO text")
        return cls(computations, computations[entry])

    def called(self, one: Instruction) -> Computation | None:
        """Returns the computation of `calls=` or `to_apply=` (of a call), or None."""
        name = one.attribute("calls") or (
            one.op in ("call", "call-start") and one.attribute("to_apply")
        )
        return self.computations.get(name) if name else None


def _instruction(line: str) -> Instruction:
    start = _LINE.match(line)
    rest = line[start.end() :]
    cut = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:cut], rest[cut:].lstrip()
    op, _, rest = rest.partition("(")
    end = _closing("(" + rest) - 1
    return Instruction(start[2], op, shape, rest[:end], rest[end + 1 :], bool(start[1]))


def _closing(text: str) -> int:
    """Returns the place of the parenthesis that closes the first."""
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    return len(text)

"""Reads the text of an optimised HLO module: computations, instructions, shapes, calls.

The text is what `jax.stages.Compiled.as_text` gives. Grammar: the XLA project's "HLO text syntax".
"""

import dataclasses
import functools
import itertools
import math
import re

_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{[^}]*?(S\(\d+\))?[^}()]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$", re.MULTILINE)
_START = re.compile(r"^ +(?:ROOT )?%?[\w.\-]+ = ", re.MULTILINE)
_LINE = re.compile(  # root, name, shape, opcode, operands, attributes
    r" +(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(((?:[^()]|\([^()]*\))*)\)(.*)", re.DOTALL
)
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
        width = re.search(r"\d+", self.dtype)  # none of "pred", a byte, and "token", nothing
        bits = int(width[0]) if width else 8 * (self.dtype == "pred")
        return -(-math.prod(self.dims) * bits // 8)


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
    """One line of a computation."""

    home: "Computation"  # where it stands
    root: bool  # whether it is its computation's result
    name: str  # unique in the module
    op: str  # opcode, "fusion"
    shape: str  # text of its result's shape
    literal: str  # text between its parentheses
    text: str  # what follows: attributes, metadata, backend_config

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of its result; those of a tuple in order."""
        return tuple(
            Array(dtype, tuple(map(int, filter(None, dims.split(",")))), not space)
            for dtype, dims, space in _ARRAY.findall(self.shape)
        )

    @functools.cached_property
    def operands(self) -> tuple["Instruction", ...]:
        """The instructions that it reads."""
        return tuple(self.home.instructions[name] for name in _NAME.findall(self.literal))

    @property
    def users(self) -> list["Instruction"]:
        """The instructions that read it."""
        return self.home.users.get(self, [])

    def attribute(self, name: str) -> str | None:
        """Returns the word of `name=%x`, `name=3` or `"name":"3"`, or None."""
        found = re.search(rf'\b{name}(?:=%?|":")([\w.\-]+)', self.text)
        return found and found[1]

    def computation(self, name: str) -> "Computation | None":
        """Returns the computation of `name=%x`, or None."""
        return self.home.module.get(self.attribute(name))

    @property
    def called(self) -> "Computation | None":
        """The computation that a fusion, a call or an async-start runs."""
        return self.computation("calls") or self.computation("to_apply")

    @property
    def fused(self) -> "Computation | None":
        """The computation of a fusion; None of anything else."""
        return self.called if self.op == "fusion" else None

    @property
    def branches(self) -> list["Computation"]:
        """Computations of which a conditional runs one."""
        if listed := re.search(r"branch_computations=\{([^}]*)\}", self.text):
            return [self.home.module[name] for name in _NAME.findall(listed[1])]
        return [self.computation(f"{which}_computation") for which in ("true", "false")]

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate; None where it has none, which it may write as 2^63 - 1."""
        cycles = int(self.attribute("estimated_cycles") or 2**63 - 1)
        return cycles if cycles < 2**63 - 1 else None


@dataclasses.dataclass(frozen=True, eq=False)
class Computation:
    """Instructions by name, in the order of the text, which in a scheduled module is time's."""

    name: str
    module: dict[str, "Computation"]  # all of them
    instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)

    @property
    def root(self) -> Instruction:
        """The result."""
        return next(one for one in self.instructions.values() if one.root)

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        """Arguments in order."""
        found = [one for one in self.instructions.values() if one.op == "parameter"]
        return sorted(found, key=lambda one: int(one.literal))

    @functools.cached_property
    def users(self) -> dict[Instruction, list[Instruction]]:
        """Instruction -> those that read it."""
        users: dict[Instruction, list[Instruction]] = {}
        for one in self.instructions.values():
            for operand in dict.fromkeys(one.operands):
                users.setdefault(operand, []).append(one)
        return users


def parse(text: str) -> Computation:
    """Returns the ENTRY of an HLO text; raises ValueError where there is none."""
    module: dict[str, Computation] = {}
    entry = None
    for block in re.split(r"^\}(?!\}).*$", _COMMENT.sub("", text), flags=re.MULTILINE):
        if not (header := _HEADER.search(block)):
            continue
        home = module[header[2]] = Computation(header[2], module)
        entry = home if header[1] else entry
        # A kernel's metadata goes on over several lines: an instruction ends where one starts.
        starts = [found.start() for found in _START.finditer(block)]
        for start, end in itertools.pairwise([*starts, len(block)]):
            root, name, shape, op, operands, text = _LINE.fullmatch(block[start:end]).groups()
            home.instructions[name] = Instruction(home, bool(root), name, op, shape, operands, text)
    if entry is None:
        raise ValueError("no ENTRY computation in the HLO text")
    return entry

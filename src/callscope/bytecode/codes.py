"""Code objects of a recording, as the interpreter that made them disassembles them."""

from __future__ import annotations

import json
import subprocess
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from callscope.bytecode.interpreters import Interpreter, Version
from callscope.bytecode.run import CODES, TARGET
from callscope.errors import RecordError

EXTENDED_ARG: Final = "EXTENDED_ARG"
RESUME: Final = "RESUME"
FOR_ITER: Final = "FOR_ITER"
END_FOR: Final = "END_FOR"


@dataclass(frozen=True)
class Instruction:
    """One instruction. offset: bytes from the code's begin. operand: None when there is none; whole, with what
    EXTENDED_ARG before it gave. meaning: of the operand, None when it has no other than its value. line: None when
    it is of none.
    """

    offset: int
    opcode: int
    name: str
    operand: int | None
    meaning: str | None
    line: int | None


@dataclass
class Code:
    """A code object. by_offset: index into `instructions`. opening: index of the first RESUME, -1 without one."""

    number: int
    name: str
    qualname: str
    file: str
    line: int
    instructions: list[Instruction]
    by_offset: dict[int, int] = field(default_factory=dict)
    opening: int = -1

    def __post_init__(self) -> None:
        self.by_offset = {one.offset: index for index, one in enumerate(self.instructions)}
        self.opening = next((i for i, one in enumerate(self.instructions) if one.name == RESUME), -1)


@dataclass(frozen=True)
class Codes:
    """All code objects of a recording by number, and whose they are. unit: bytes of a code unit."""

    version: Version
    unit: int
    by_number: dict[int, Code]


def read_codes(directory: Path, interpreter: Interpreter) -> Codes:
    """Have an interpreter of the same kind disassemble what was recorded. Raises RecordError when it cannot."""
    command = [interpreter.path, "-E", "-s", "-B", str(TARGET / "dump.py"), str(directory / CODES)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["it ended without a word"])[-1]
        raise RecordError(f"{interpreter.path} could not disassemble the recorded code: {last}")
    head = json.loads(lines[0])
    codes = (_code(json.loads(line), head["names"]) for line in lines[1:])
    return Codes(interpreter.version, head["unit"], {code.number: code for code in codes})


def _code(facts: dict[str, Any], names: list[str]) -> Code:
    starts = [start for start, _ in facts["lines"]]
    instructions = []
    for offset, opcode, operand, meaning in facts["instructions"]:
        found = bisect_right(starts, offset)
        line = facts["lines"][found - 1][1] if found else facts["line"]
        instructions.append(Instruction(offset, opcode, names[opcode], operand, meaning, line))
    return Code(facts["number"], facts["name"], facts["qualname"], facts["file"], facts["line"], instructions)

"""Runs in an interpreter like the traced one, afterwards: code objects in, what `dis` knows of them out, as JSON lines.

CPython 2.7 and 3.6 on. `python dump.py CODES`; the layout of CODES is in native/python/bytecode_stream.h.
"""

import dis
import json
import marshal
import struct
import sys

PYTHON2 = not hasattr(sys, "implementation")
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any  # noqa: F401  (of comments)

LONGEST = 200
CODE = type((lambda: 0).__code__)


def constant(value):
    # type: (object) -> str
    """Its repr, without an address, not too long."""
    if isinstance(value, CODE):
        return '<code object %s, file "%s", line %d>' % (value.co_name, value.co_filename, value.co_firstlineno)
    text = repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def python2(code):
    # type: (Any) -> list[list[object]]
    """Offset, opcode, operand, meaning of each instruction."""
    text = bytearray(code.co_code)
    cells = code.co_cellvars + code.co_freevars
    found = []  # type: list[list[object]]
    at = extended = 0
    while at < len(text):
        opcode = text[at]
        operand = meaning = None
        after = at + (3 if opcode >= dis.HAVE_ARGUMENT else 1)
        if opcode >= dis.HAVE_ARGUMENT:
            operand = text[at + 1] | text[at + 2] << 8 | extended
            extended = operand << 16 if opcode == dis.EXTENDED_ARG else 0
            if opcode in dis.hasconst:
                meaning = constant(code.co_consts[operand])
            elif opcode in dis.hasname:
                meaning = code.co_names[operand]
            elif opcode in dis.hasjrel:
                meaning = str(after + operand)
            elif opcode in dis.hasjabs:
                meaning = str(operand)
            elif opcode in dis.haslocal:
                meaning = code.co_varnames[operand]
            elif opcode in dis.hascompare:
                meaning = dis.cmp_op[operand]
            elif opcode in dis.hasfree:
                meaning = cells[operand]
        found.append([at, opcode, operand, meaning])
        at = after
    return found


def python3(code):
    # type: (Any) -> list[list[object]]
    """The same, by get_instructions()."""
    jumps = set(dis.hasjrel) | set(dis.hasjabs)
    constants = set(dis.hasconst)
    found = []  # type: list[list[object]]
    for one in dis.get_instructions(code):
        meaning = one.argrepr or None
        if one.opcode in jumps:
            meaning = str(one.argval)
        elif one.opcode in constants:
            meaning = constant(one.argval)
        found.append([one.offset, one.opcode, one.arg, meaning])
    return found


def line_ranges(code):
    # type: (Any) -> list[list[object]]
    """Offset from which on, line."""
    if hasattr(code, "co_lines"):
        return [[start, line] for start, _, line in code.co_lines()]
    return [[start, line] for start, line in dis.findlinestarts(code)]


def facts(number, code):
    # type: (int, Any) -> dict[str, object]
    """All about a code object."""
    return {
        "number": number,
        "name": code.co_name,
        "qualname": getattr(code, "co_qualname", code.co_name),
        "file": code.co_filename,
        "line": code.co_firstlineno,
        "instructions": python2(code) if PYTHON2 else python3(code),
        "lines": line_ranges(code),
        "flags": code.co_flags,
    }


def write(value):
    # type: (object) -> None
    """One line; CPython 2 may have names and constants in any encoding."""
    options = {"encoding": "latin-1"} if PYTHON2 else {}  # type: dict[str, Any]
    sys.stdout.write(json.dumps(value, **options) + "\n")


def main():
    # type: () -> None
    """Names of opcodes, then the code objects; a torn end is left out, and what marshal could not write."""
    write({"names": list(dis.opname), "unit": 1 if PYTHON2 else 2})
    with open(sys.argv[1], "rb") as file:
        while True:
            head = file.read(8)
            if len(head) < 8:
                return
            number, size = struct.unpack("<II", head)
            data = file.read(size)
            if size and len(data) == size:
                write(facts(number, marshal.loads(data)))


main()

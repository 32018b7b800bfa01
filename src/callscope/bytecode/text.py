"""Executed instructions as lines: the text form `co_name> offset OPNAME (operand)`, or JSON objects."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from callscope.bytecode.codes import Code
from callscope.bytecode.executed import Executed


def operand_text(code: Code, index: int, resolve: bool) -> str:
    """What stands in the brackets; empty without an operand."""
    one = code.instructions[index]
    if one.operand is None:
        return ""
    return one.meaning if resolve and one.meaning is not None else str(one.operand)


def line_text(code: Code, index: int, resolve: bool) -> str:
    """One line."""
    one = code.instructions[index]
    operand = f" ({operand_text(code, index, resolve)})" if one.operand is not None else ""
    return f"{code.name}> {one.offset} {one.name}{operand}"


def text_lines(executed: Iterable[Executed], resolve: bool) -> Iterator[str]:
    """The text form. Where another thread goes on a line `# thread N` says so; values follow behind a semicolon."""
    known: dict[tuple[int, int], str] = {}
    thread = 0
    for one in executed:
        if one.thread != thread:
            thread = one.thread
            yield f"# thread {thread + 1}"
        key = (one.code.number, one.at)
        line = known.get(key)
        if line is None:
            line = known[key] = printable(line_text(one.code, one.at, resolve))
        yield line if one.values is None else f"{line} ; {printable(one.values)}"


def json_lines(executed: Iterable[Executed], resolve: bool) -> Iterator[str]:
    """One object a line."""
    known: dict[tuple[int, int], str] = {}
    for one in executed:
        key = (one.code.number, one.at)
        rest = known.get(key)
        if rest is None:
            rest = known[key] = json.dumps(_facts(one.code, one.at, resolve))[1:]
        values = "" if one.values is None else f', "stack": {json.dumps(one.values)}'
        yield f'{{"thread": {one.thread + 1}, {rest[:-1]}{values}}}'


def _facts(code: Code, index: int, resolve: bool) -> dict[str, object]:
    one = code.instructions[index]
    facts: dict[str, object] = {
        "code": code.name,
        "qualname": code.qualname,
        "file": code.file,
        "first_line": code.line,
        "line": one.line,
        "offset": one.offset,
        "opcode": one.opcode,
        "name": one.name,
        "operand": one.operand,
    }
    return facts | ({"meaning": one.meaning} if resolve else {})


def printable(text: str) -> str:
    """Nothing that moves a terminal's cursor or ends a line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)

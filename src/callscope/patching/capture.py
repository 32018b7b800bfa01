"""From a prototype to what the agent copies, and to what a reader makes of the copy.

The agent runs the operations of a CAPTURE record one after the other; a layout, kept in the trace as JSON, names and
types their output. What takes too many bytes is left out at the end, and the layout says so.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from callscope import format as records
from callscope.binary import prototypes as proto
from callscope.binary.prototypes import Parameter, Prototype, Type, to_json
from callscope.patching.abi import Place, parameter_places, result_place

TEXT_BYTES = 128
"""bytes of a text that are captured"""
MOST_VALUE_BYTES = 256
_HEADS = {
    records.CAPTURE_MEMORY: 2,
    records.CAPTURE_TEXT: 10,
    records.CAPTURE_STRING: 10,
    records.CAPTURE_STRING_LIBCXX: 10,
}
_MOST_OPERATIONS = 80

Operation = tuple[int, int, int, int]
"""action, source, bytes, offset: a CAPTURE_OP record"""


@dataclass(frozen=True)
class Capture:
    """What is captured of one function: operations at its entry and at its exits, and the layout of what they give."""

    entry: tuple[Operation, ...]
    exit: tuple[Operation, ...]
    layout: dict[str, Any]

    def record(self, function: int) -> bytes:
        """A CAPTURE record with its operations."""
        head = struct.pack(
            "<IHHHHI", function, 16 + 8 * (len(self.entry) + len(self.exit)), len(self.entry), len(self.exit), 0, 0
        )
        return head + b"".join(struct.pack("<BBHi", *operation) for operation in self.entry + self.exit)


def compile_capture(prototype: Prototype, windows: bool) -> Capture:
    """What to copy for a function of this prototype."""
    entry: list[Operation] = []
    names: list[dict[str, Any]] = []
    room = records.CAPTURE_LONGEST
    conventional = parameter_places(prototype, windows)
    for parameter, by_convention in zip(prototype.parameters, conventional, strict=True):
        description: dict[str, Any] = {"name": parameter.name, "type": to_json(parameter.type)}
        names.append(description)
        if parameter.constant is not None:
            description["constant"] = parameter.constant
            continue
        place = _place(prototype, parameter, by_convention)
        if place is None:
            description["missing"] = "it takes no place" if _is_empty(parameter.type) else "it is not passed"
            continue
        operations = _operations(place, parameter.type)
        size = sum(_most(operation) for operation in operations)
        if size > room or len(entry) + len(operations) > _MOST_OPERATIONS:
            description["missing"] = "too large"
            continue
        room -= size
        description["how"] = _how(operations)
        entry += operations
    exit_: list[Operation] = []
    layout: dict[str, Any] = {"parameters": names, "variadic": prototype.variadic}
    place = result_place(prototype.result, windows)
    if place is not None and not prototype.is_clone:
        exit_ = _operations(place, prototype.result)
        layout["result"] = {"type": to_json(prototype.result), "how": _how(exit_)}
    return Capture(tuple(entry), tuple(exit_), layout)


def raw_capture(windows: bool) -> Capture:
    """The integer argument registers, and rax on return."""
    registers = ("rcx", "rdx", "r8", "r9") if windows else ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
    word = Type(proto.UNSIGNED, "register", 8)
    numbers = {"rcx": 1, "rdx": 2, "rsi": 6, "rdi": 7, "r8": 8, "r9": 9}
    entry = tuple((records.CAPTURE_VALUE, numbers[name], 8, 0) for name in registers)
    parameters = [{"name": name, "type": to_json(word), "how": [[records.CAPTURE_VALUE, 8]]} for name in registers]
    layout = {
        "parameters": parameters,
        "variadic": False,
        "result": {"type": to_json(word), "how": [[records.CAPTURE_VALUE, 8]]},
    }
    return Capture(entry, ((records.CAPTURE_VALUE, 0, 8, 0),), layout)


def _is_empty(kind: Type) -> bool:
    return kind.kind in (proto.STRUCT, proto.UNION) and not kind.members


def _place(prototype: Prototype, parameter: Parameter, by_convention: Place | None) -> Place | None:
    """Debug information knows better than the convention where the compiler departed from it."""
    if parameter.pieces is not None:
        by_reference = by_convention.by_reference if by_convention is not None else parameter.type.by_reference
        return Place(parameter.pieces, by_reference)
    return None if prototype.is_clone else by_convention


def _how(operations: list[Operation]) -> list[list[int]]:
    """What a reader needs to take the output apart: action and bytes."""
    return [[action, count] for action, _, count, _ in operations]


def _most(operation: Operation) -> int:
    return operation[2] + _HEADS.get(operation[0], 0)


def _operations(place: Place, kind: Type) -> list[Operation]:
    first = place.pieces[0]
    pointer = (first.source, first.offset)
    if kind.kind in (proto.STRING, proto.STRING_LIBCXX):
        return [(_string_action(kind), pointer[0], TEXT_BYTES, pointer[1])]
    if place.by_reference:
        size = min(kind.size, MOST_VALUE_BYTES)
        return [(records.CAPTURE_MEMORY, pointer[0], size, pointer[1])]
    if kind.kind == proto.TEXT:
        return [(records.CAPTURE_TEXT, pointer[0], TEXT_BYTES, pointer[1])]
    values = [
        (records.CAPTURE_VALUE, piece.source, min(piece.bytes, MOST_VALUE_BYTES), piece.offset)
        for piece in place.pieces
    ]
    if kind.kind == proto.REFERENCE and kind.target is not None:
        target = kind.target
        if target.kind in (proto.STRING, proto.STRING_LIBCXX):
            return [*values, (_string_action(target), pointer[0], TEXT_BYTES, pointer[1])]
        if target.kind in _SHOWN_BEHIND_REFERENCES and target.size:
            return [*values, (records.CAPTURE_MEMORY, pointer[0], target.size, pointer[1])]
    return values


_SHOWN_BEHIND_REFERENCES = {
    proto.INTEGER, proto.UNSIGNED, proto.BOOL, proto.CHARACTER, proto.FLOAT, proto.COMPLEX, proto.ENUM, proto.POINTER,
    proto.TEXT,
}  # fmt: skip


def _string_action(kind: Type) -> int:
    return records.CAPTURE_STRING if kind.kind == proto.STRING else records.CAPTURE_STRING_LIBCXX

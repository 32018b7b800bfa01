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
from callscope.binary.prototypes import Piece, Prototype, Type, to_json
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
_HEAD_BYTES = records.CAPTURE.itemsize
_RAX, _RSP = 0, 4
_WORD = 8
_FARTHEST = 1 << 20
"""bytes above the return address that arguments may lie"""

Operation = tuple[int, int, int, int]
"""action, source, bytes, offset: a CAPTURE_OP record"""


CALLERS: Operation = (records.CAPTURE_CALLERS, 0, 0, 0)
"""The call stack: in front of what is captured at an entry."""


@dataclass(frozen=True)
class Capture:
    """What is captured of one function: operations at its entry and at its exits, and the layout of what they give."""

    entry: tuple[Operation, ...]
    exit: tuple[Operation, ...]
    layout: dict[str, Any]

    @property
    def entry_words(self) -> tuple[int, ...]:
        """The integer registers, if the arguments are nothing but words in some: the trampoline itself stores them."""
        return _words(self.entry)

    @property
    def has_exit_word(self) -> bool:
        """Whether the result is the word in rax."""
        return _words(self.exit) == (_RAX,)

    def record(self, function: int) -> bytes:
        """A CAPTURE record with its operations."""
        count = len(self.entry) + len(self.exit)
        words = 8 * len(self.entry_words)
        fixed = (16 + 8 + words, (8 + words) // 8 << 3 | records.EVENT_EXTENDED) if words else (0, 0)
        head = struct.pack(
            "<IHHHHIII", function, _HEAD_BYTES + 8 * count, len(self.entry), len(self.exit), 0, *fixed, 0
        )
        return head + b"".join(struct.pack("<BBHi", *operation) for operation in self.entry + self.exit)


def _words(operations: tuple[Operation, ...]) -> tuple[int, ...]:
    whole = _can_widen(list(operations)) and all(count == _WORD for _, _, count, _ in operations)
    return tuple(operation[1] for operation in operations) if whole else ()


def _can_widen(operations: list[Operation]) -> bool:
    """Whether all take integer registers, or parts of some: to record whole words costs less than half."""
    return all(
        action == records.CAPTURE_VALUE and source < records.CAPTURE_VECTOR and source != _RSP
        for action, source, _, _ in operations
    )


def _widened(operation: Operation) -> Operation:
    return (operation[0], operation[1], _WORD, operation[3])


def compile_capture(prototype: Prototype, windows: bool) -> Capture:
    """What to copy for a function of this prototype."""
    entry: list[Operation] = []
    names: list[dict[str, Any]] = []
    room = records.CAPTURE_LONGEST
    places = _places(prototype, windows)
    for parameter, place in zip(prototype.parameters, places, strict=True):
        description: dict[str, Any] = {"name": parameter.name, "type": to_json(parameter.type)}
        names.append(description)
        if parameter.constant is not None:
            description["constant"] = parameter.constant
            continue
        if place is None:
            description["missing"] = "it takes no place" if _is_empty(parameter.type) else "it is not passed"
            continue
        operations = _operations(place, parameter.type)
        if not all(_fits(operation) for operation in operations):
            description["missing"] = "its type is damaged"
            continue
        size = sum(_most(operation) for operation in operations)
        if size > room or len(entry) + len(operations) > _MOST_OPERATIONS:
            description["missing"] = "too large"
            continue
        room -= size
        description["how"] = _how(operations)
        entry += operations
    if _can_widen(entry):
        entry = [_widened(operation) for operation in entry]
        for description in names:
            if "how" in description:
                description["how"] = [[action, _WORD] for action, _ in description["how"]]
    exit_: list[Operation] = []
    layout: dict[str, Any] = {"parameters": names, "variadic": prototype.variadic}
    back = result_place(prototype.result, windows)
    if back is not None and not prototype.is_clone:
        exit_ = [operation for operation in _operations(back, prototype.result) if _fits(operation)]
        if _can_widen(exit_):
            exit_ = [_widened(operation) for operation in exit_]
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


def _places(prototype: Prototype, windows: bool) -> list[Place | None]:
    """Where the parameters are: where the calling convention says, unless debug information names other registers.

    Then the compiler, which knew all callers, departed from the convention, and what debug information does not place
    is not passed. Places in memory are no evidence: they hold only when the function has made its frame.
    """
    conventional = parameter_places(prototype, windows)
    placed = [parameter.pieces for parameter in prototype.parameters]
    departs = prototype.is_clone or any(
        pieces is not None
        and _is_in_registers(pieces)
        and place is not None
        and _sources(pieces) != _sources(place.pieces)
        for pieces, place in zip(placed, conventional, strict=True)
    )
    if not departs:
        return conventional
    return [
        Place(parameter.pieces, parameter.type.by_reference) if parameter.pieces is not None else None
        for parameter in prototype.parameters
    ]


def _is_in_registers(pieces: tuple[Piece, ...]) -> bool:
    return all(piece.source != records.CAPTURE_STACK for piece in pieces)


def _sources(pieces: tuple[Piece, ...]) -> list[int]:
    return [piece.source for piece in pieces]


def _fits(operation: Operation) -> bool:
    """Whether the agent can be told so: damaged debug information gives any size."""
    _, source, count, offset = operation
    return 0 <= source < 256 and 0 <= count <= records.CAPTURE_LONGEST and 0 <= offset < _FARTHEST


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
    proto.TEXT, proto.UNSIGNED_CHARACTER,
}  # fmt: skip


def _string_action(kind: Type) -> int:
    return records.CAPTURE_STRING if kind.kind == proto.STRING else records.CAPTURE_STRING_LIBCXX

"""Where arguments and results lie, by the calling conventions.

Sources: System V ABI for x86-64 (psABI 1.0), section 3.2.3, with the Itanium C++ ABI, section 3.1; Microsoft, "x64
calling convention".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from callscope.binary import prototypes as proto
from callscope.binary.prototypes import Piece, Prototype, Type
from callscope.format import CAPTURE_STACK, CAPTURE_VECTOR, CAPTURE_X87

_RAX, _RCX, _RDX, _RSI, _RDI = 0, 1, 2, 6, 7
_INTEGERS = (_RDI, _RSI, _RDX, _RCX, 8, 9)
_VECTORS = 8
_WINDOWS_INTEGERS = (_RCX, _RDX, 8, 9)
_HOME_BYTES = 32
_NONE, _INTEGER, _SSE, _X87, _MEMORY = range(5)
_LONG_DOUBLE = 16
_LARGEST_IN_REGISTERS = 16


@dataclass(frozen=True)
class Place:
    """Where a value is. by_reference: `pieces` hold its address."""

    pieces: tuple[Piece, ...]
    by_reference: bool = False


def parameter_places(prototype: Prototype, windows: bool) -> list[Place | None]:
    """Where each parameter is as the function begins; None for one of no bytes, or of a type that is not known."""
    return _windows_parameters(prototype) if windows else _parameters(prototype)


def result_place(result: Type, windows: bool) -> Place | None:
    """Where the result is as the function returns; None when there is none, or its type is not known."""
    if result.kind in (proto.VOID, proto.UNKNOWN) or not result.size:
        return None
    if windows:
        if _is_float(result) and result.size <= 8:
            return Place((Piece(CAPTURE_VECTOR, result.size),))
        return Place((Piece(_RAX, 8),), True) if _windows_by_reference(result) else Place((Piece(_RAX, result.size),))
    if _is_long_double(result):
        return Place((Piece(CAPTURE_X87, 16),))
    classes = classify(result)
    if classes is None or result.by_reference:
        return Place((Piece(_RAX, 8),), True)
    integers, vectors = iter((_RAX, _RDX)), iter((0, 1))
    pieces = []
    for index, kind in enumerate(classes):
        size = min(8, result.size - 8 * index)
        if kind == _INTEGER:
            pieces.append(Piece(next(integers), size))
        elif kind == _SSE:
            pieces.append(Piece(CAPTURE_VECTOR + next(vectors), result.size if _is_vector(result) else size))
    return Place(tuple(pieces)) if pieces else None


def classify(kind: Type) -> list[int] | None:
    """The classes of a type's eightbytes; None for one in memory (psABI 3.2.3, "Classification")."""
    if _is_vector(kind):
        return [_SSE] if kind.size <= 16 else None
    if kind.by_reference or kind.kind == proto.UNKNOWN or kind.size > _LARGEST_IN_REGISTERS or _is_long_double(kind):
        return None
    classes = [_NONE] * -(-kind.size // 8)
    for offset, scalar in _scalars(kind, 0):
        if scalar.size and offset % min(_alignment(scalar), 8):
            return None  # packed
        if _is_long_double(scalar):
            return None
        last = (offset + max(scalar.size, 1) - 1) // 8
        for index in range(offset // 8, min(last + 1, len(classes))):
            mine = _SSE if _is_float(scalar) else _INTEGER
            classes[index] = _INTEGER if _INTEGER in (mine, classes[index]) else mine
    return classes


def _scalars(kind: Type, offset: int) -> Iterator[tuple[int, Type]]:
    if kind.kind in (proto.STRUCT, proto.UNION):
        for member in kind.members:
            yield from _scalars(member.type, offset + member.offset)
    elif kind.kind == proto.ARRAY and kind.target is not None:
        for index in range(min(kind.count, 32)):
            yield from _scalars(kind.target, offset + index * kind.target.size)
    elif kind.kind == proto.COMPLEX:
        half = Type(proto.FLOAT, "", kind.size // 2)
        yield offset, half
        yield offset + half.size, half
    else:
        yield offset, kind


def _is_float(kind: Type) -> bool:
    return kind.kind in (proto.FLOAT, proto.COMPLEX) or _is_vector(kind)


def _is_vector(kind: Type) -> bool:
    return kind.kind == "vector"


def _is_long_double(kind: Type) -> bool:
    return kind.kind == proto.FLOAT and kind.size == _LONG_DOUBLE and "128" not in kind.name


def _alignment(kind: Type) -> int:
    if kind.alignment:
        return kind.alignment
    if kind.kind in (proto.STRUCT, proto.UNION):
        return max((_alignment(member.type) for member in kind.members), default=1)
    if kind.kind == proto.ARRAY and kind.target is not None:
        return _alignment(kind.target)
    if kind.kind == proto.COMPLEX:
        return kind.size // 2
    return min(kind.size, 16) or 1


def _parameters(prototype: Prototype) -> list[Place | None]:
    integers = list(_INTEGERS)
    vectors = list(range(_VECTORS))
    stack = 0
    result = prototype.result
    has_result = result.kind not in (proto.VOID, proto.UNKNOWN) and not _is_long_double(result)
    if has_result and (result.by_reference or (result.size and classify(result) is None)):
        integers.pop(0)
    places: list[Place | None] = []
    for parameter in prototype.parameters:
        kind = parameter.type
        if kind.by_reference:
            kind = Type(proto.POINTER, "", 8)
        if kind.kind in (proto.STRUCT, proto.UNION) and not kind.members and kind.size <= 1:
            places.append(None)  # an empty class takes no place
            continue
        if not kind.size:
            places.append(None)
            continue
        classes = classify(kind)
        if classes is not None and (classes.count(_INTEGER) <= len(integers) and classes.count(_SSE) <= len(vectors)):
            pieces = []
            for index, part in enumerate(classes):
                size = min(8, kind.size - 8 * index)
                if part == _INTEGER:
                    pieces.append(Piece(integers.pop(0), size))
                elif part == _SSE:
                    pieces.append(Piece(CAPTURE_VECTOR + vectors.pop(0), kind.size if _is_vector(kind) else size))
            places.append(Place(tuple(pieces), parameter.type.by_reference) if pieces else None)
            continue
        stack = -(-stack // 16) * 16 if _alignment(kind) >= 16 else stack
        places.append(Place((Piece(CAPTURE_STACK, kind.size, stack),), parameter.type.by_reference))
        stack += -(-kind.size // 8) * 8
    return places


def _windows_by_reference(kind: Type) -> bool:
    return kind.by_reference or kind.size not in (1, 2, 4, 8) or kind.kind == proto.ARRAY


def _windows_parameters(prototype: Prototype) -> list[Place | None]:
    result = prototype.result
    slot = int(result.kind not in (proto.VOID, proto.UNKNOWN) and _windows_by_reference(result))
    if result.kind == proto.FLOAT and result.size <= 8:
        slot = 0
    places: list[Place | None] = []
    for parameter in prototype.parameters:
        kind = parameter.type
        by_reference = _windows_by_reference(kind)
        size = 8 if by_reference else kind.size
        if slot < len(_WINDOWS_INTEGERS):
            in_vector = kind.kind == proto.FLOAT and not by_reference
            source = CAPTURE_VECTOR + slot if in_vector else _WINDOWS_INTEGERS[slot]
            piece = Piece(source, size)
        else:
            piece = Piece(CAPTURE_STACK, size, _HOME_BYTES + 8 * (slot - len(_WINDOWS_INTEGERS)))
        places.append(Place((piece,), by_reference))
        slot += 1
    return places

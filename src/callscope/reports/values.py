"""What was captured of a call as values: numbers, texts and structs of the program, for people and for JSON.

The bytes are what the operations of a CAPTURE record gave, one after the other (format/SPEC.md); the layout says which
and of what type. Nothing here trusts either.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from callscope import format as records
from callscope.binary import prototypes as proto
from callscope.binary.prototypes import Type, from_json

UNREADABLE = "<unreadable>"
_MOST_ELEMENTS = 16
_FLOATS = {2: "<e", 4: "<f", 8: "<d"}


@dataclass(frozen=True)
class Value:
    """An argument or a result: its name ("" of a result), type, text for people and value for JSON."""

    name: str
    type: str
    text: str
    value: Any


class _ShortError(Exception):
    """The bytes end before the layout does."""


class Layout:
    """The layout of one function's captures. Raises ValueError when it is damaged."""

    def __init__(self, text: str) -> None:
        try:
            data = json.loads(text)
            self._parameters = [(p, from_json(p["type"])) for p in data["parameters"]]
            self.variadic = bool(data.get("variadic"))
            result = data.get("result")
            self._result = (result, from_json(result["type"])) if result else None
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"damaged layout: {error}") from None

    def arguments(self, data: bytes) -> list[Value]:
        """The arguments in order; those that the bytes do not hold are missing at the end."""
        reader = _Reader(data)
        return list(self._arguments(reader))

    def _arguments(self, reader: _Reader) -> Iterator[Value]:
        for description, kind in self._parameters:
            name = str(description.get("name") or "")
            if "constant" in description:
                yield Value(name, kind.name, *_number(kind, int(description["constant"])))
            elif "how" not in description:
                missing = f"<{description.get('missing', 'not recorded')}>"
                yield Value(name, kind.name, missing, None)
            else:
                try:
                    text, value = reader.value(kind, description["how"])
                except (_ShortError, TypeError, ValueError, IndexError):
                    return
                yield Value(name, kind.name, text, value)

    def result(self, data: bytes) -> Value | None:
        """The result; None when there is none."""
        if self._result is None:
            return None
        description, kind = self._result
        try:
            text, value = _Reader(data).value(kind, description["how"])
        except (_ShortError, TypeError, ValueError, IndexError, KeyError):
            return None
        return Value("", kind.name, text, value)


def argument_list(layout: Layout, data: bytes) -> str:
    """`a=1, s="text", ...`"""
    parts = [f"{value.name}={value.text}" if value.name else value.text for value in layout.arguments(data)]
    return ", ".join([*parts, "..."] if layout.variadic else parts)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def _take(self, count: int) -> bytes:
        if not 0 <= count <= len(self._data) - self._at:
            raise _ShortError
        self._at += count
        return self._data[self._at - count : self._at]

    def _counted(self) -> bytes | None:
        count = int.from_bytes(self._take(2), "little")
        return None if count == records.CAPTURE_UNREADABLE else self._take(count)

    def value(self, kind: Type, how: list[list[int]]) -> tuple[str, Any]:
        """Text and JSON value of what the operations `how` gave for a type."""
        direct = b""
        for action, count in how:
            if action == records.CAPTURE_VALUE:
                direct += self._take(count)
            elif action == records.CAPTURE_MEMORY:
                memory = self._counted()
                if direct:  # a reference, and what it leads to
                    return self._behind(kind, direct, memory)
                if memory is None or len(memory) < min(kind.size, count):
                    return UNREADABLE, None
                return render(kind, memory)
            elif action == records.CAPTURE_TEXT:
                pointer = int.from_bytes(self._take(8), "little")
                memory = self._counted()
                if not pointer:
                    return "NULL", None
                if memory is None:
                    return f"{pointer:#x} {UNREADABLE}", {"pointer": pointer}
                return quoted_bytes(memory.partition(b"\0")[0], b"\0" not in memory)
            else:
                length = int.from_bytes(self._take(8), "little")
                memory = self._counted()
                if memory is None:
                    return ('""', "") if not length else (UNREADABLE, None)
                return quoted_bytes(memory, length > len(memory))
        return render(kind, direct)

    def _behind(self, kind: Type, direct: bytes, memory: bytes | None) -> tuple[str, Any]:
        target = kind.target
        if target is None or memory is None or len(memory) < target.size:
            return render(kind, direct)
        return render(target, memory)


def quoted_bytes(data: bytes, is_cut: bool) -> tuple[str, str]:
    """Text of a program in quotes, cut or not, and as it is for JSON."""
    text = data.decode("utf-8", "backslashreplace")
    escaped = "".join(c if c.isprintable() and c not in '"\\' else _escape(c) for c in text)
    return f'"{escaped}"' + ("..." if is_cut else ""), text


def _escape(character: str) -> str:
    named = {"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
    return named.get(character) or f"\\x{ord(character):02x}"


def render(kind: Type, data: bytes) -> tuple[str, Any]:
    """Text and JSON value of a value's bytes."""
    if kind.kind in (proto.STRUCT, proto.UNION):
        return _members(kind, data)
    if kind.kind in (proto.ARRAY, "vector") and kind.target is not None and kind.target.size:
        size = kind.target.size
        parts = [
            render(kind.target, data[at : at + size])
            for at in range(0, min(len(data), kind.count * size, _MOST_ELEMENTS * size), size)
        ]
        more = ", ..." if kind.count > len(parts) else ""
        return "{" + ", ".join(text for text, _ in parts) + more + "}", [value for _, value in parts]
    if kind.kind == proto.FLOAT:
        return _float(data[: kind.size])
    if kind.kind == proto.COMPLEX:
        half = kind.size // 2
        (real, a), (imaginary, b) = _float(data[:half]), _float(data[half : kind.size])
        return f"{real} + {imaginary}i", [a, b]
    return _number(kind, int.from_bytes(data[: kind.size or 8], "little"))


def _number(kind: Type, value: int) -> tuple[str, Any]:
    bits = 8 * (kind.size or 8)
    value &= (1 << bits) - 1
    signed = value - (1 << bits) if value >> (bits - 1) else value
    if kind.kind == proto.BOOL:
        return ("true" if value else "false") if value < 2 else str(value), bool(value)
    if kind.kind in proto.CHARACTERS:
        shown = signed if kind.kind == proto.CHARACTER else value
        return f"'{chr(value)}'" if kind.size == 1 and 32 <= value < 127 else str(shown), shown
    if kind.kind == proto.ENUM:
        return _enumerator(kind, value, signed)
    if kind.kind == proto.INTEGER:
        return str(signed), signed
    if kind.kind == proto.UNSIGNED:
        return (f"{value:#x}" if kind.name == "register" else str(value)), value
    if kind.kind in (proto.POINTER, proto.REFERENCE, proto.TEXT):
        return f"{value:#x}" if value else "NULL", value
    return f"{value:#x}", value


def _enumerator(kind: Type, value: int, signed: int) -> tuple[str, Any]:
    mask = (1 << 8 * (kind.size or 4)) - 1
    for number, name in kind.values:
        if number & mask == value:
            return name, name
    flags = [name for number, name in kind.values if number > 0 and number & (number - 1) == 0 and number & value]
    whole = sum(number for number, name in kind.values if name in flags)
    if flags and whole == value:
        return "|".join(flags), "|".join(flags)
    return str(signed), signed


def _float(data: bytes) -> tuple[str, Any]:
    if len(data) in (10, 12, 16):
        return _extended(data)
    form = _FLOATS.get(len(data))
    if form is None:
        return "0x" + data[::-1].hex(), data.hex()
    (value,) = struct.unpack(form, data)
    text = repr(value) if len(data) == 8 else f"{value:.9g}"
    if len(data) == 4:
        for digits in range(1, 10):
            if struct.pack("<f", float(f"{value:.{digits}g}") if math.isfinite(value) else value) == data:
                text = f"{value:.{digits}g}"
                break
    return text, value if math.isfinite(value) else str(value)


def _extended(data: bytes) -> tuple[str, Any]:
    """The 80 bits of an x87 register (SDM volume 1, 4.2.2), as decimal text that tells neighbours apart."""
    from fractions import Fraction

    mantissa, top = int.from_bytes(data[:8], "little"), int.from_bytes(data[8:10], "little")
    sign, exponent = -1 if top >> 15 else 1, top & 0x7FFF
    if exponent == 0x7FFF:
        text = ("-" if sign < 0 else "") + ("inf" if not mantissa << 1 & (1 << 64) - 1 else "nan")
        return text, text
    exact = sign * Fraction(mantissa) * Fraction(2) ** (max(exponent, 1) - 16383 - 63)
    try:
        near = float(exact)
    except OverflowError:
        near = sign * math.inf
    if math.isfinite(near) and Fraction(near) == exact:
        return repr(near), near
    from decimal import Context, Decimal

    context = Context(prec=21)
    return str(context.divide(Decimal(exact.numerator), Decimal(exact.denominator))), near if math.isfinite(
        near
    ) else str(near)


def _members(kind: Type, data: bytes) -> tuple[str, Any]:
    parts, values = [], {}
    for member in kind.members:
        if member.bits:
            whole = int.from_bytes(data[member.offset :], "little") >> member.bit & ((1 << member.bits) - 1)
            if member.type.kind == proto.INTEGER and whole >> (member.bits - 1):
                whole -= 1 << member.bits
            text, value = _number(member.type, whole)
        else:
            piece = data[member.offset : member.offset + member.type.size]
            text, value = render(member.type, piece) if len(piece) == member.type.size else (UNREADABLE, None)
        parts.append(f"{member.name}={text}")
        values[member.name] = value
    return "{" + ", ".join(parts) + "}", values

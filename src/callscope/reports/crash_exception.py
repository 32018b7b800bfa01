"""The C++ exception of a crash: its type and what it says, from the copies of memory in the record.

Layouts: Itanium C++ ABI, 2.9.5 (type_info and what derives from it) and "Exception Handling" 2.2. In libstdc++ and in
libc++ std::logic_error and std::runtime_error hold a pointer to their text behind the one to the virtual functions.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from callscope import format as records
from callscope.binary.demangle import demangle
from callscope.reports.crash_memory import Memory
from callscope.trace.journal import Crash

_TYPE_BEFORE: Final = 80
"""bytes from the word that leads to the type to the _Unwind_Exception"""
_OBJECT_BEHIND: Final = {records.CRASH_LINUX: 32, records.CRASH_WINDOWS: 64}
"""bytes of an _Unwind_Exception, which the object follows"""
_LONGEST: Final = 256
_MOST_BASES: Final = 5
_MOST_DEEP: Final = 8
_MOST_TYPES: Final = 64
_WITH_TEXT: Final = ("St11logic_error", "St13runtime_error")
_STRING: Final = "NSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"
_LIBCXX_STRING: Final = "NSt3__112basic_stringIcNS_11char_traitsIcEENS_9allocatorIcEEEE"
_NUMBERS: Final = {
    "b": "<?", "a": "<b", "h": "<B", "s": "<h", "t": "<H", "i": "<i", "j": "<I", "l": "<q", "m": "<Q", "x": "<q",
    "y": "<Q", "f": "<f", "d": "<d",
}  # fmt: skip


def exception_of(crash: Crash) -> dict[str, Any] | None:
    """type: the exception's type in words; None when it was not copied. what: the text of a std::logic_error or
    std::runtime_error, of what derives from them, of a string or of a number; None for others. None when no exception
    was found.
    """
    header = crash.fields["exception"]
    if not header:
        return None
    memory = Memory(crash.pieces)
    pointer = memory.word(header - _TYPE_BEFORE)
    mangled = None if pointer is None else _name(memory, pointer)
    if pointer is None or mangled is None:
        return {"type": None, "what": None}
    return {
        "type": _readable(mangled),
        "what": _what(memory, pointer, mangled, header + _OBJECT_BEHIND[crash.fields["system"]]),
    }


def _name(memory: Memory, pointer: int) -> str | None:
    """The mangled name of the type whose type_info lies there; None when that does not look like one."""
    place = memory.word(pointer + 8)
    text = None if place is None else _text(memory, place)
    if text is None or not text.isascii() or not text.removeprefix("*").isprintable():
        return None
    text = text.removeprefix("*")  # libstdc++: compare by address
    return text if text and _readable(text) != text else None


def _readable(mangled: str) -> str:
    """A type's name in words; as it is when it cannot be read."""
    (found,) = demangle(["_ZTS" + mangled])
    _, found_one, name = found.partition("typeinfo name for ")
    return name if found_one else mangled


def _text(memory: Memory, address: int) -> str | None:
    """The text there up to its NUL, `...` in place of what was not copied."""
    for start, data in memory.pieces:
        if start <= address < start + len(data):
            text, ended, _ = data[address - start : address - start + _LONGEST].partition(b"\0")
            return text.decode("utf-8", "backslashreplace") + ("" if ended else "...")
    return None


def _bases(memory: Memory, pointer: int, offset: int = 0, depth: int = 0) -> Iterator[tuple[str, int]]:
    """The name of the type there and of its bases, each with where it lies in the object; without virtual bases."""
    name = _name(memory, pointer)
    if name is None or depth > _MOST_DEEP:
        return
    yield name, offset
    base = memory.word(pointer + 16)
    if base is None:
        return
    if _name(memory, base) is not None:
        yield from _bases(memory, base, offset, depth + 1)
        return
    for index in range(min(base >> 32, _MOST_BASES)):
        base, where = memory.word(pointer + 24 + 16 * index), memory.word(pointer + 32 + 16 * index)
        if base is not None and where is not None and not where & 1:
            yield from _bases(memory, base, offset + (where >> 8), depth + 1)


def _what(memory: Memory, pointer: int, mangled: str, place: int) -> str | None:
    if mangled in _NUMBERS:
        data = memory.read(place, 8)
        return None if data is None else str(struct.unpack_from(_NUMBERS[mangled], data)[0])
    if mangled == _LIBCXX_STRING:
        first = memory.read(place, 1)
        at = memory.word(place + 16) if first and first[0] & 1 else place + 1
    elif mangled in ("PKc", "Pc", _STRING):
        at = memory.word(place)
    else:
        bases = islice(_bases(memory, pointer), _MOST_TYPES)
        offset = next((offset for name, offset in bases if name in _WITH_TEXT), None)
        at = memory.word(place + offset + 8) if offset is not None else None
    return None if at is None else _text(memory, at)

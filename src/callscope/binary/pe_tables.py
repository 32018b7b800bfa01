"""The tables of a PE file beside its code: imports, exports, base relocations, COFF symbols, debug directory.

Source of the layouts: Microsoft, "PE Format". A table that leaves its image ends there: nothing here raises for damage.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from callscope.binary.elf_headers import string_at
from callscope.binary.pe_headers import Tables

Reader = Callable[[int, int], bytes]
"""(rva, size) -> the bytes mapped there, fewer where they end"""

SYMBOL = np.dtype(
    [
        ("name", "u1", 8),
        ("value", "<u4"),
        ("section", "<i2"),
        ("type", "<u2"),
        ("storage", "u1"),
        ("auxiliary", "u1"),
    ]
)
_EXPORTS = np.dtype([("head", "<u4", 5), ("functions", "<u4"), ("names", "<u4"), ("addresses", "<u4", 3)])
_ABSOLUTE_64 = 10
_FUNCTION_TYPE = 2
_CODEVIEW = 2
_EXTENDED_CHARACTERISTICS = 20
_RSDS = b"RSDS"
_MOST_DESCRIPTORS = 4096
_MOST_IMPORTS = 1 << 18
_MOST_NAMES = 1 << 20
_MOST_SYMBOLS = 1 << 22
_LONGEST_NAME = 16384
_MOST_CHARACTERS = 1 << 26
"""of all names of a table: names may overlap in a file made to exhaust memory"""
_HASH_FACTOR = 0x100000001B3
_COLD_NAME = re.compile(r"\.cold(?:\.\d+)?$")


class Import(NamedTuple):
    """One imported function: rva of the word that holds its address; name "" when it is imported by number."""

    slot: int
    library: str
    name: str


@dataclass(frozen=True)
class NamedAddresses:
    """Symbols: rva i8[n], in no order, and as many names, still mangled."""

    rva: NDArray[np.int64]
    names: list[str]

    @property
    def is_cold(self) -> NDArray[np.bool_]:
        """Which are called `something.cold`, what GCC names a part split off a function."""
        return np.array([_COLD_NAME.search(name) is not None for name in self.names], np.bool_)


def read_imports(read: Reader, directory: tuple[int, int], delayed: tuple[int, int]) -> list[Import]:
    """All imports, those of libraries loaded late included; `directory`, `delayed`: (rva, size)."""
    found: list[Import] = []
    strings = _Strings(read)
    # (bytes of a descriptor, offsets in it of the library's name, the names' table and the addresses' table)
    for (rva, size), width, places in ((directory, 20, (12, 0, 16)), (delayed, 32, (4, 16, 12))):
        table = read(rva, min(size, width * _MOST_DESCRIPTORS)) if size else b""
        for at in range(0, len(table) - width + 1, width):
            library, names, slots = (_word(table, at + place) for place in places)
            if not library or not slots:
                break
            found += _imports_of(read, strings, (library, names or slots, slots), _MOST_IMPORTS - len(found))
    return found


def _imports_of(read: Reader, strings: _Strings, places: tuple[int, int, int], most: int) -> Iterator[Import]:
    library, names, slots = strings.at(places[0]), *places[1:]
    for index in range(most):
        entry = int.from_bytes(read(names + 8 * index, 8), "little")
        if not entry:
            return
        name = "" if entry >> 63 else strings.at((entry & 0x7FFFFFFF) + 2)
        yield Import(slots + 8 * index, library, name)


def read_exports(read: Reader, directory: tuple[int, int]) -> NamedAddresses:
    """The exports with names; those that only name another library's are left out."""
    rva, size = directory
    head = read(rva, _EXPORTS.itemsize) if size else b""
    if len(head) < _EXPORTS.itemsize:
        return NamedAddresses(np.empty(0, np.int64), [])
    record = np.frombuffer(head, _EXPORTS)[0]
    functions, names, ordinals = record["addresses"].tolist()
    addresses = _words(read(functions, 4 * min(int(record["functions"]), _MOST_NAMES)), "<u4")
    count = min(int(record["names"]), _MOST_NAMES)
    name_rvas = _words(read(names, 4 * count), "<u4")
    numbers = _words(read(ordinals, 2 * count), "<u2")
    count = min(len(name_rvas), len(numbers))
    name_rvas, numbers = name_rvas[:count], numbers[:count]
    known = numbers < len(addresses)
    found = addresses[numbers[known]]
    elsewhere = (found >= rva) & (found < rva + size)
    chosen = name_rvas[known][~elsewhere].tolist()
    strings = _Strings(read)
    return NamedAddresses(found[~elsewhere], [strings.at(name) for name in chosen])


def read_relocations(read: Reader, directory: tuple[int, int]) -> NDArray[np.int64]:
    """rvas of the 64-bit words that hold absolute addresses, in no order."""
    table = read(*directory) if directory[1] else b""
    found = [np.empty(0, np.int64)]
    at = 0
    while at + 8 <= len(table):
        size = _word(table, at + 4)
        if size < 8:
            break
        entries = _words(table[at + 8 : at + size], "<u2")
        found.append(_word(table, at) + (entries[entries >> 12 == _ABSOLUTE_64] & 0xFFF))
        at += size
    return np.concatenate(found)


def read_symbols(data: memoryview, tables: Tables) -> NamedAddresses:
    """The functions of the COFF symbol table, which GCC's linker and LLVM's write unless told to strip."""
    offset, count = int(tables.header["symbol_offset"]), int(tables.header["symbol_count"])
    raw = bytes(data[offset : offset + min(count, _MOST_SYMBOLS) * SYMBOL.itemsize]) if offset else b""
    records = np.frombuffer(raw[: len(raw) // SYMBOL.itemsize * SYMBOL.itemsize], SYMBOL)
    table = data[offset + count * SYMBOL.itemsize :]
    strings = _Strings(lambda place, size: bytes(table[place : place + size]))
    auxiliary = records["auxiliary"].tolist()
    real = []
    at = 0
    while at < len(records):
        real.append(at)
        at += 1 + auxiliary[at]
    records = records[real]
    section = records["section"].astype(np.int64)
    functions = (records["type"] >> 4 == _FUNCTION_TYPE) & (section > 0) & (section <= len(tables.sections))
    records, section = records[functions], section[functions]
    rva = tables.sections["rva"].astype(np.int64)[section - 1] + records["value"]
    return NamedAddresses(rva, [_symbol_name(bytes(name), strings) for name in records["name"]])


def named_sections(data: memoryview, tables: Tables) -> dict[str, memoryview]:
    """Name -> bytes in the file of every section; names of more than 8 bytes stand behind the symbols ("PE Format",
    "Section Table").
    """
    after = int(tables.header["symbol_offset"]) + int(tables.header["symbol_count"]) * SYMBOL.itemsize
    strings = _Strings(lambda place, size: bytes(data[after + place : after + place + size]))
    found: dict[str, memoryview] = {}
    for section in tables.sections:
        name = bytes(section["name"]).rstrip(b"\0").decode("utf-8", "replace")
        if name.startswith("/") and name[1:].isascii() and name[1:].isdigit():
            name = strings.at(int(name[1:]))
        start = int(section["offset"])
        size = min(int(section["file_size"]), int(section["memory_size"]) or int(section["file_size"]))
        found.setdefault(name, data[start : start + size])
    return found


def _symbol_name(name: bytes, strings: _Strings) -> str:
    if name[:4] != bytes(4):
        return name.rstrip(b"\0").decode("utf-8", "replace")
    return strings.at(int.from_bytes(name[4:], "little"))


def identity(read: Reader, tables: Tables, debug: tuple[int, int], functions: tuple[int, int]) -> bytes:
    """The 20 bytes that stand for a file's build-id, as format/SPEC.md defines them under "Plans of PE images".

    `debug`, `functions`: (rva, size) of the debug and the exception directory.
    """
    entry = codeview(read, debug)
    if entry is not None:
        return entry[:20]
    words = _words(read(*functions) if functions[1] else b"", "<u4").astype(np.uint64)
    with np.errstate(over="ignore"):
        powers = np.multiply.accumulate(np.full(len(words), _HASH_FACTOR, np.uint64))
        powers = np.concatenate([np.ones(1, np.uint64), powers])[: len(words)][::-1]
        total = int((words * powers).sum(dtype=np.uint64))
    parts = (tables.header["time_stamp"], tables.optional["image_size"], tables.optional["checksum"])
    return b"".join(int(part).to_bytes(4, "little") for part in parts) + total.to_bytes(8, "little")


def codeview(read: Reader, debug: tuple[int, int]) -> bytes | None:
    """What follows "RSDS" in the debug directory's first such entry: GUID, age (u4), path of the PDB; or None."""
    table = read(debug[0], min(debug[1], 28 * 64)) if debug[1] else b""
    for at in range(0, len(table) - 27, 28):
        if _word(table, at + 12) == _CODEVIEW:
            entry = read(_word(table, at + 20), min(_word(table, at + 16), 4096))
            if entry[:4] == _RSDS and len(entry) >= 24:
                return entry[4:]
    return None


def has_shadow_stack(read: Reader, debug: tuple[int, int]) -> bool:
    """Whether the file agrees to shadow stacks (IMAGE_DLLCHARACTERISTICS_EX_CET_COMPAT in the debug directory)."""
    table = read(debug[0], min(debug[1], 28 * 64)) if debug[1] else b""
    found = [at for at in range(0, len(table) - 27, 28) if _word(table, at + 12) == _EXTENDED_CHARACTERISTICS]
    return any(_word(read(_word(table, at + 20), 4), 0) & 1 for at in found)


def _word(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _words(data: bytes, kind: str) -> NDArray[np.int64]:
    width = np.dtype(kind).itemsize
    return np.frombuffer(data[: len(data) // width * width], kind).astype(np.int64)


class _Strings:
    """NUL-terminated strings of a file; "" once they are more than any file has."""

    def __init__(self, read: Reader) -> None:
        self._read = read
        self._left = _MOST_CHARACTERS

    def at(self, place: int) -> str:
        """The string at an rva or offset."""
        if self._left <= 0:
            return ""
        short = self._read(place, 256)
        text = string_at(short if b"\0" in short else self._read(place, _LONGEST_NAME), 0, _LONGEST_NAME)
        self._left -= len(text)
        return text

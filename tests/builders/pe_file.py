"""Writes small x64 PE files byte by byte. Offsets in the file equal addresses less the image's base.

Page 0 holds the headers, then come .text, .rdata (what directories name, and unwind information) and .data.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

PAGE = 0x1000
TEXT = PAGE
BASE = 0x140000000
EXPORT, IMPORT, EXCEPTION, RELOCATION, DEBUG, RUNTIME = 0, 1, 3, 5, 6, 14
GUID = bytes(range(16))


class Unwind(NamedTuple):
    """RUNTIME_FUNCTION and UNWIND_INFO of [begin, end). `codes`: raw; `tail`: what follows them (handler or chain)."""

    begin: int
    end: int
    codes: bytes = b""
    prologue: int = 0
    frame: int = 0
    flags: int = 0
    tail: bytes = b""


@dataclass
class PeFile:
    """What to write. `imports`: library -> names, an empty name for an import by number; `exports`: name -> rva;
    `pointers`: rva in .data -> rva in the image, stored as an address with a relocation.
    """

    text: bytes = b"\xc3" * 64
    data: bytes = bytes(64)
    unwinds: Sequence[Unwind] = ()
    imports: Mapping[str, Sequence[str]] = field(default_factory=dict)
    exports: Mapping[str, int] = field(default_factory=dict)
    pointers: Mapping[int, int] = field(default_factory=dict)
    guid: bytes | None = GUID
    shadow_stack: bool = False
    entry: int = TEXT
    machine: int = 0x8664
    magic: int = 0x20B
    characteristics: int = 0x22
    time_stamp: int = 0x11223344
    checksum: int = 0x55667788
    directories: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def rdata(self) -> int:
        """Where .rdata lies."""
        return TEXT + _pages(len(self.text))

    @property
    def slots(self) -> dict[str, int]:
        """Name -> rva of its import slot."""
        return self._rdata()[2]

    def build(self) -> bytes:
        """The whole file."""
        rdata, directories, _ = self._rdata()
        data_at = self.rdata + _pages(len(rdata))
        data = bytearray(self.data)
        for place, target in self.pointers.items():
            struct.pack_into("<Q", data, place - data_at, BASE + target)
        directories |= self.directories
        size = data_at + _pages(len(data))
        sections = b""
        for name, rva, content, flags in (
            (b".text", TEXT, self.text, 0x60000020),
            (b".rdata", self.rdata, rdata, 0x40000040),
            (b".data", data_at, bytes(data), 0xC0000040),
        ):
            padded = _pages(len(content))
            sections += struct.pack("<8sIIIIIIHHI", name, len(content), rva, padded, rva, 0, 0, 0, 0, flags)
        table = b"".join(struct.pack("<II", *directories.get(index, (0, 0))) for index in range(16))
        optional = struct.pack(
            "<HBBIIIIIQIIHHHHHHIIIIHHQQQQII",
            *(self.magic, 14, 0, len(self.text), len(rdata), 0, self.entry, TEXT, BASE, PAGE, 512),
            *(6, 0, 0, 0, 6, 0, 0, size, PAGE, self.checksum, 3, 0x8160, 1 << 20, 4096, 1 << 20, 4096, 0, 16),
        )
        header = struct.pack(
            "<HHIIIHH", self.machine, 3, self.time_stamp, 0, 0, len(optional) + len(table), self.characteristics
        )
        stub = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x80)
        out = stub.ljust(0x80, b"\0") + b"PE\0\0" + header + optional + table + sections
        for rva, content in ((TEXT, self.text), (self.rdata, rdata), (data_at, bytes(data))):
            out = out.ljust(rva, b"\0") + content
        return out.ljust(size, b"\0")

    @property
    def data_at(self) -> int:
        """Where .data lies."""
        return self.rdata + _pages(len(self._rdata()[0]))

    def _rdata(self) -> tuple[bytes, dict[int, tuple[int, int]], dict[str, int]]:
        out = bytearray()
        directories: dict[int, tuple[int, int]] = {}

        def add(content: bytes) -> int:
            out.extend(bytes(-len(out) % 8))
            out.extend(content)
            return self.rdata + len(out) - len(content)

        if self.guid is not None:
            codeview = b"RSDS" + self.guid + struct.pack("<I", 7) + b"small.pdb\0"
            place = add(codeview)
            entry = struct.pack("<IIHHIIII", 0, 0, 0, 0, 2, len(codeview), place, place)
            if self.shadow_stack:
                place = add(struct.pack("<I", 1))
                entry += struct.pack("<IIHHIIII", 0, 0, 0, 0, 20, 4, place, place)
            directories[DEBUG] = (add(entry), len(entry))
        table = b""
        for begin, end, codes, prologue, frame, flags, tail in sorted(self.unwinds):
            padding = bytes(len(codes) % 4)
            info = bytes([1 | flags << 3, prologue, len(codes) // 2, frame]) + codes + padding + tail
            table += struct.pack("<III", begin, end, add(info))
        if table:
            directories[EXCEPTION] = (add(table), len(table))
        slots = self._imports(add, directories)
        if self.exports:
            names = [add(name.encode() + b"\0") for name in self.exports]
            addresses = add(struct.pack(f"<{len(names)}I", *self.exports.values()))
            name_table = add(struct.pack(f"<{len(names)}I", *names))
            numbers = add(struct.pack(f"<{len(names)}H", *range(len(names))))
            counts = (1, len(names), len(names), addresses, name_table, numbers)
            directories[EXPORT] = (add(struct.pack("<IIIIIIIIII", 0, 0, 0, 0, *counts)), 40)
        if self.pointers:
            block = b""
            for place in sorted(self.pointers):
                block += struct.pack("<IIHH", place & -PAGE, 12, 10 << 12 | place % PAGE, 0)
            directories[RELOCATION] = (add(block), len(block))
        return bytes(out), directories, slots

    def _imports(self, add: Callable[[bytes], int], directories: dict[int, tuple[int, int]]) -> dict[str, int]:
        descriptors = b""
        slots: dict[str, int] = {}
        for library, names in self.imports.items():
            hints = [add(b"\0\0" + name.encode() + b"\0") if name else 1 << 63 | 5 for name in names]
            entries = struct.pack(f"<{len(hints) + 1}Q", *hints, 0)
            lookup, addresses = add(entries), add(entries)
            slots |= {name: addresses + 8 * index for index, name in enumerate(names)}
            descriptors += struct.pack("<IIIII", lookup, 0, 0, add(library.encode() + b"\0"), addresses)
        if descriptors:
            descriptors += bytes(20)
            directories[IMPORT] = (add(descriptors), len(descriptors))
        return slots


def _pages(size: int) -> int:
    return max(size + PAGE - 1 & -PAGE, PAGE)

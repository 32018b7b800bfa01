"""Writes small x86-64 ELF files byte by byte, sound or with one thing wrong.

Layout: offsets equal addresses less `base`. Page 0 holds headers and read-only tables, page 1 the code, page 2 the
dynamic table and data; what is not in memory follows.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

PAGE = 0x1000
TEXT = PAGE
DATA = 2 * PAGE
END = 3 * PAGE
BUILD_ID = bytes(range(20))

PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE, PT_EH_FRAME = 1, 2, 3, 4, 0x6474E550
SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_DYNAMIC, SHT_NOTE, SHT_DYNSYM, SHT_RELR = 1, 2, 3, 4, 6, 7, 11, 19
FUNC, IFUNC, OBJECT, NOTYPE = 2, 10, 1, 0
LOCAL, GLOBAL, WEAK = 0, 1, 2


class Symbol(NamedTuple):
    """A symbol at `rva`; `binding` LOCAL, GLOBAL or WEAK; undefined when `defined` is false."""

    name: str
    rva: int
    size: int
    kind: int = FUNC
    binding: int = GLOBAL
    defined: bool = True


@dataclass
class ElfFile:
    """What to write. `relocations` are (offset rva, type, symbol index, addend); `relr` raw entries."""

    text: bytes = b"\xc3" * 64
    data: bytes = b""
    base: int = 0
    file_type: int = 3
    machine: int = 62
    interpreter: str | None = "/lib64/ld-linux-x86-64.so.2"
    dynamic: bool = True
    flags_1: int = 0x08000000
    soname: str | None = None
    needed: Sequence[str] = ()
    build_id: bytes = BUILD_ID
    entry: int = TEXT
    symbols: Sequence[Symbol] = ()
    dynamic_symbols: Sequence[Symbol] = ()
    relocations: Sequence[tuple[int, int, int, int]] = ()
    jump_relocations: Sequence[tuple[int, int, int, int]] = ()
    relr: Sequence[int] = ()
    frames: bytes = b""
    plt: tuple[int, int] | None = None
    """rva range of the code to call .plt"""
    section_headers: bool = True
    extra_sections: Mapping[str, bytes] = field(default_factory=dict)
    strings_prefix: bytes = b""

    def build(self) -> bytes:
        """The file's bytes."""
        self._image = bytearray(END)
        self._sections: list[tuple[str, int, int, int, int, int, int, int]] = []
        self._programs: list[tuple[int, int, int, int]] = []
        self._at = 64 + 56 * 10
        self._image[TEXT : TEXT + len(self.text)] = self.text
        self._read_only()
        self._code()
        self._writable()
        self._unloaded()
        return self._headers()

    def _put(self, name: str, kind: int, data: bytes, entry_size: int = 0, link: int = 0) -> int:
        """Place read-only data in page 0; its offset."""
        at = (self._at + 7) & -8
        self._at = at + len(data)
        assert self._at <= TEXT, "the tables do not fit a page"
        self._image[at : at + len(data)] = data
        self._sections.append((name, kind, 2, self.base + at, at, len(data), link, entry_size))
        return at

    def _read_only(self) -> None:
        self._places: dict[str, int] = {}
        if self.interpreter:
            text = self.interpreter.encode() + b"\0"
            self._programs.append((PT_INTERP, 4, self._put(".interp", SHT_PROGBITS, text), len(text)))
        if self.build_id:
            note = struct.pack("<III4s", 4, len(self.build_id), 3, b"GNU\0") + self.build_id
            self._programs.append((PT_NOTE, 4, self._put(".note.gnu.build-id", SHT_NOTE, note), len(note)))
        strings = bytearray(b"\0" + self.strings_prefix)
        self._names = [self._string(strings, name) for name in (self.soname or "", *self.needed)]
        symbols = self._symbol_table(self.dynamic_symbols, strings)
        if self.dynamic:
            self._places["strtab"] = self._put(".dynstr", SHT_STRTAB, bytes(strings))
            self._strings_size = len(strings)
            self._places["symtab"] = self._put(".dynsym", SHT_DYNSYM, symbols, 24, len(self._sections))
            count = len(symbols) // 24
            self._places["hash"] = self._put(".hash", 5, struct.pack("<III", 1, count, 0) + bytes(4 * count))
        for key, name, table in (
            ("rela", ".rela.dyn", self.relocations),
            ("jmprel", ".rela.plt", self.jump_relocations),
        ):
            if table:
                rela = b"".join(
                    struct.pack("<QQq", self.base + offset, symbol << 32 | kind, addend)
                    for offset, kind, symbol, addend in table
                )
                self._places[key] = self._put(name, SHT_RELA, rela, 24)
        if self.relr:
            self._places["relr"] = self._put(".relr.dyn", SHT_RELR, struct.pack(f"<{len(self.relr)}Q", *self.relr), 8)
        if self.frames:
            at = self._put(".eh_frame", SHT_PROGBITS, self.frames)
            here = (self._at + 7) & -8
            header = struct.pack("<BBBBi", 1, 0x1B, 0xFF, 0xFF, at - here - 4)
            self._programs.append((PT_EH_FRAME, 4, self._put(".eh_frame_hdr", SHT_PROGBITS, header), len(header)))

    def frames_rva(self) -> int:
        """Where .eh_frame lies; after `build` only."""
        return next(s[4] for s in self._sections if s[0] == ".eh_frame")

    def _code(self) -> None:
        ranges = [(".text", TEXT, TEXT + len(self.text))]
        if self.plt:
            ranges = [(".plt", *self.plt), (".text", self.plt[1], TEXT + len(self.text))]
        for name, start, end in ranges:
            self._sections.append((name, SHT_PROGBITS, 6, self.base + start, start, end - start, 0, 0))

    def _writable(self) -> None:
        tags: list[tuple[int, int]] = []
        if self.dynamic:
            tags += [(1, name) for name in self._names[1:]]
            tags += [(14, self._names[0])] if self.soname else []
            for key, tag in (("hash", 4), ("strtab", 5), ("symtab", 6), ("rela", 7), ("jmprel", 23), ("relr", 36)):
                if key in self._places:
                    tags.append((tag, self.base + self._places[key]))
            tags += [(10, self._strings_size), (8, 24 * len(self.relocations)), (2, 24 * len(self.jump_relocations))]
            tags += [(35, 8 * len(self.relr)), (0x6FFFFFFB, self.flags_1), (0, 0)]
        table = b"".join(struct.pack("<QQ", tag, value) for tag, value in tags)
        self._image[DATA : DATA + len(self.data)] = self.data
        if self.data:
            self._sections.append((".data", SHT_PROGBITS, 3, self.base + DATA, DATA, len(self.data), 0, 0))
        at = END - len(table)
        assert DATA + len(self.data) <= at
        self._image[at:] = table
        if table:
            self._sections.append((".dynamic", SHT_DYNAMIC, 3, self.base + at, at, len(table), 0, 16))
            self._programs.append((PT_DYNAMIC, 6, at, len(table)))
        self._programs = [(PT_LOAD, 4, 0, TEXT), (PT_LOAD, 5, TEXT, PAGE), (PT_LOAD, 6, DATA, PAGE), *self._programs]

    def _unloaded(self) -> None:
        """Sections outside the segments, at the file's end."""
        extra: list[tuple[str, int, bytes, int]] = [
            (name, SHT_PROGBITS, d, 0) for name, d in self.extra_sections.items()
        ]
        if self.symbols:
            strings = bytearray(b"\0")
            table = self._symbol_table(self.symbols, strings)
            extra += [(".symtab", SHT_SYMTAB, table, 24), (".strtab", SHT_STRTAB, bytes(strings), 0)]
        for name, kind, data, entry_size in extra:
            at = len(self._image)
            # .strtab is the section after .symtab; section 0 is the null section.
            link = len(self._sections) + 2 if kind == SHT_SYMTAB else 0
            self._sections.append((name, kind, 0, 0, at, len(data), link, entry_size))
            self._image += data

    def _headers(self) -> bytes:
        names = bytearray(b"\0")
        offsets = [self._string(names, section[0]) for section in self._sections]
        own_name = self._string(names, ".shstrtab")
        image = self._image
        names_at = len(image)
        image += names
        image += bytes(-len(image) % 8)
        table_at = len(image)
        count = len(self._sections) + 2
        image += bytes(64)
        for name, (_, kind, flags, address, offset, size, link, entry_size) in zip(
            offsets, self._sections, strict=True
        ):
            image += struct.pack("<IIQQQQIIQQ", name, kind, flags, address, offset, size, link, 0, 8, entry_size)
        image += struct.pack("<IIQQQQIIQQ", own_name, SHT_STRTAB, 0, 0, names_at, len(names), 0, 0, 1, 0)
        if not self.section_headers:
            del image[names_at:]
            table_at = count = 0
        ident = b"\x7fELF\2\1\1" + bytes(9)
        entry = self.base + self.entry
        programs = len(self._programs)
        fields = (
            self.file_type,
            self.machine,
            1,
            entry,
            64,
            table_at,
            0,
            64,
            56,
            programs,
            64,
            count,
            max(count - 1, 0),
        )
        image[:64] = ident + struct.pack("<HHIQQQIHHHHHH", *fields)
        for index, (kind, flags, offset, size) in enumerate(self._programs):
            address = self.base + offset
            header = struct.pack("<IIQQQQQQ", kind, flags, offset, address, address, size, size, 8)
            image[64 + 56 * index : 120 + 56 * index] = header
        return bytes(image)

    def _symbol_table(self, symbols: Sequence[Symbol], strings: bytearray) -> bytes:
        table = bytes(24)
        for symbol in symbols:
            name = self._string(strings, symbol.name)
            info = symbol.binding << 4 | symbol.kind
            value = self.base + symbol.rva if symbol.defined else 0
            table += struct.pack("<IBBHQQ", name, info, 0, int(symbol.defined), value, symbol.size)
        return table

    @staticmethod
    def _string(strings: bytearray, text: str) -> int:
        if not text:
            return 0
        strings += text.encode() + b"\0"
        return len(strings) - len(text.encode()) - 1

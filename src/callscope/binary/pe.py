"""What a Windows x64 program or library (PE32+) holds: sections, functions' unwind table, imports, code pointers.

Own reader, as for ELF: it maps the file, looks at headers only, and decides itself what damage means. All addresses are
relative to ImageBase, as they are in the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callscope.binary import pe_headers as pe
from callscope.binary import pe_tables
from callscope.binary.dynamic import mapped_bytes
from callscope.binary.elf_headers import map_file
from callscope.binary.image import LARGEST_SPAN, PAGE, FunctionSymbols, Section, Segment, in_sections, joined_ranges
from callscope.binary.second_returns import TwiceCallees
from callscope.errors import ImageError

TWICE_NAMES = frozenset(
    f"{underscores}{name}"
    for underscores in ("", "_", "__", "__intrinsic_")
    for name in ("setjmp", "setjmpex", "_setjmp", "_setjmpex")
)
"""What Microsoft's C libraries and mingw-w64 export setjmp as."""

_THUNK = re.compile(rb"(?<!\x48)\xff\x25(.{4})", re.DOTALL)
_THUNK_BYTES = 6
_THUNK_PADDING = frozenset(b"\xcc\x90\x00")
_WIDEST_THUNK = 16


@dataclass(frozen=True, eq=False)
class PeImage:
    """A program or library, as `read_pe` found it; it satisfies `image.Image`.

    base: ImageBase. span: SizeOfImage in whole pages. entry: where it starts, 0 when nowhere. data: the whole file,
    mapped. build_id: 20 bytes, see `pe_tables.identity`.
    """

    path: Path
    data: memoryview = field(repr=False)
    build_id: bytes
    base: int
    span: int
    entry: int
    segments: tuple[Segment, ...] = field(repr=False)
    sections: tuple[Section, ...] = field(repr=False)
    tables: pe.Tables = field(repr=False)

    @property
    def is_pe(self) -> bool:
        """True."""
        return True

    @property
    def is_library(self) -> bool:
        """Whether it is a DLL, which cannot be started by itself."""
        return bool(int(self.tables.header["characteristics"]) & pe.FILE_DLL)

    @property
    def is_fixed(self) -> bool:
        """Whether it loads at `base` only: no relocations say where addresses are stored."""
        stripped = int(self.tables.header["characteristics"]) & pe.FILE_RELOCS_STRIPPED
        return bool(stripped) or self.directory(pe.RELOCATION)[1] == 0

    @cached_property
    def has_shadow_stack(self) -> bool:
        """Whether the processor may check that each ret goes where its call came from."""
        return pe_tables.has_shadow_stack(self.read, self.directory(pe.DEBUG))

    def require_program(self) -> None:
        """Raise ImageError when it is a library, which cannot be started by itself."""
        if self.is_library:
            raise ImageError(f"{self.path} is a DLL: name the program that loads it")

    def directory(self, index: int) -> tuple[int, int]:
        """(rva, size) of a data directory; (0, 0) when there is none."""
        entry = self.tables.directories[index]
        return (int(entry["rva"]), int(entry["size"])) if entry["rva"] else (0, 0)

    def section_data(self, section: Section) -> memoryview:
        """The section's bytes in the file."""
        return self.data[section.offset : section.offset + section.file_size]

    def read(self, rva: int, size: int) -> bytes:
        """Up to `size` bytes of the file as mapped from `rva` on; fewer where its section's bytes in the file end."""
        return bytes(self.view(rva, size))

    def view(self, rva: int, size: int) -> memoryview:
        """As `read`, without a copy."""
        return mapped_bytes(self.data, self.segments, rva, max(size, 0))

    @cached_property
    def code_sections(self) -> tuple[Section, ...]:
        """The executable sections, sorted."""
        return tuple(section for section in self.sections if section.executable and section.file_size)

    def in_code(self, rvas: NDArray[Any]) -> NDArray[np.bool_]:
        """Which of `rvas` lie in `code_sections`: a bool for each."""
        return in_sections(self.code_sections, rvas)

    @cached_property
    def exception_entries(self) -> NDArray[np.int64]:
        """The exception directory as it is: (begin, end, unwind information), i8 (n, 3)."""
        raw = self.read(*self.directory(pe.EXCEPTION)) if self.directory(pe.EXCEPTION)[1] else b""
        return np.frombuffer(raw[: len(raw) // 12 * 12], "<u4").reshape(-1, 3).astype(np.int64)

    @cached_property
    def imports(self) -> list[pe_tables.Import]:
        """What it imports by name or number, delayed imports included."""
        return pe_tables.read_imports(self.read, self.directory(pe.IMPORT), self.directory(pe.DELAY_IMPORT))

    @cached_property
    def exports(self) -> pe_tables.NamedAddresses:
        """Its own exports with names."""
        return pe_tables.read_exports(self.read, self.directory(pe.EXPORT))

    @cached_property
    def symbols(self) -> pe_tables.NamedAddresses:
        """The functions of its COFF symbol table."""
        return pe_tables.read_symbols(self.data, self.tables)

    def function_symbols(self) -> FunctionSymbols:
        """COFF symbols of functions, and exports."""
        rva = np.concatenate([self.symbols.rva, self.exports.rva])
        cold = np.concatenate([self.symbols.is_cold, self.exports.is_cold])
        return FunctionSymbols(rva, np.zeros(len(rva), np.int64), cold)

    @cached_property
    def import_thunks(self) -> dict[int, int]:
        """rva of each `jmp [slot]` outside of functions with unwind information -> the import's slot."""
        slots = {entry.slot for entry in self.imports}
        functions = pe_functions(self)
        bounds = joined_ranges(functions[:, :2].tolist())
        found: dict[int, int] = {}
        for section in self.code_sections:
            for match in _THUNK.finditer(self.section_data(section)):
                place = section.rva + match.start()
                slot = place + _THUNK_BYTES + int.from_bytes(match[1], "little", signed=True)
                if slot in slots:
                    found[place] = slot
        places = np.array(sorted(found), np.int64)
        outside = places[np.searchsorted(bounds, places, side="right") % 2 == 0]
        return {place: found[place] for place in outside.tolist()}

    @cached_property
    def plt_ranges(self) -> tuple[tuple[int, int], ...]:
        """(first rva, rva after the last) of each run of import thunks, sorted."""
        ranges: list[tuple[int, int]] = []
        for place in self.import_thunks:
            if ranges and place - ranges[-1][0] and place - ranges[-1][1] <= _WIDEST_THUNK - _THUNK_BYTES:
                between = self.read(ranges[-1][1], place - ranges[-1][1])
                if _THUNK_PADDING.issuperset(between):
                    ranges[-1] = (ranges[-1][0], place + _THUNK_BYTES)
                    continue
            ranges.append((place, place + _THUNK_BYTES))
        return tuple(ranges)

    @cached_property
    def twice_callees(self) -> TwiceCallees:
        """What setjmp is reached by from this image's code."""
        slots = frozenset(entry.slot for entry in self.imports if entry.name in TWICE_NAMES)
        named = zip(self.symbols.rva.tolist(), self.symbols.names, strict=True)
        addresses = {rva for rva, name in named if name in TWICE_NAMES}
        addresses |= {place for place, slot in self.import_thunks.items() if slot in slots}
        return TwiceCallees(frozenset(addresses), slots)

    def relocated_code_pointers(self) -> NDArray[np.uint32]:
        """Sorted rvas in code that words with base relocations hold."""
        places = pe_tables.read_relocations(self.read, self.directory(pe.RELOCATION))
        found = [np.empty(0, np.int64)]
        for segment in self.segments:
            raw = np.frombuffer(self.data, "u1", segment.size, segment.offset)
            inside = places[(places >= segment.rva) & (places + 8 <= segment.rva + segment.size)] - segment.rva
            words = np.ascontiguousarray(raw[inside[:, None] + np.arange(8)]).view("<u8")[:, 0]
            found.append((words - np.uint64(self.base)).astype(np.int64))
        targets = np.concatenate(found)
        targets = targets[(targets > 0) & (targets < self.span)]
        return np.unique(targets[self.in_code(targets)]).astype(np.uint32)


def pe_functions(image: PeImage) -> NDArray[np.int64]:
    """The exception directory's RUNTIME_FUNCTION entries that make sense: (begin, end, unwind information), i8 (n, 3).

    Sorted by begin; those outside code, empty or overlapping the one before are left out.
    """
    entries = image.exception_entries
    entries = entries[(entries[:, 0] > 0) & (entries[:, 1] > entries[:, 0])]
    entries = entries[image.in_code(entries[:, 0]) & image.in_code(entries[:, 1] - 1)]
    entries = entries[np.argsort(entries[:, 0], kind="stable")]
    reach = np.maximum.accumulate(np.concatenate([[0], entries[:-1, 1]])) if len(entries) else np.empty(0, np.int64)
    return entries[entries[:, 0] >= reach]


def read_pe(path: str | Path) -> PeImage:
    """Read the headers of a Windows program or library.

    Raises ImageError, saying what the file is and what to do, for everything but a complete x86-64 PE32+ file with
    native code.
    """
    path = Path(path)
    data = map_file(path)
    tables = pe.read_tables(data, path)
    span = (int(tables.optional["image_size"]) + PAGE - 1) & -PAGE
    if span > LARGEST_SPAN:
        raise ImageError(f"{path} takes {span >> 20} MiB of address space: at most {LARGEST_SPAN >> 20} can be traced")
    segments = _segments(tables, span, len(data), path)
    entry = int(tables.optional["entry"])

    def read(rva: int, size: int) -> bytes:
        return bytes(mapped_bytes(data, segments, rva, size))

    debug, functions = (
        (int(tables.directories[index]["rva"]), int(tables.directories[index]["size"]))
        for index in (pe.DEBUG, pe.EXCEPTION)
    )
    return PeImage(
        path=path,
        data=data,
        build_id=pe_tables.identity(read, tables, debug, functions),
        base=int(tables.optional["image_base"]),
        span=span,
        entry=entry if entry < span else 0,
        segments=segments,
        sections=_sections(tables, segments[1:]),
        tables=tables,
    )


def _segments(tables: pe.Tables, span: int, length: int, path: Path) -> tuple[Segment, ...]:
    """The headers and each section as they are mapped; ImageError when that is impossible."""
    headers = min(int(tables.optional["headers_size"]), length)
    found = [Segment(0, headers, headers, 0, False, False)]
    needed = 0
    for section in tables.sections:
        memory = int(section["memory_size"]) or int(section["file_size"])
        size = min(int(section["file_size"]), memory) if section["offset"] else 0
        flags = int(section["flags"])
        rva, offset = int(section["rva"]), int(section["offset"])
        if rva < found[-1].rva + found[-1].memory_size or rva + memory > span:
            raise ImageError(f"{path} is damaged: its sections overlap or are impossible; get a complete copy")
        needed = max(needed, offset + size)
        found.append(Segment(rva, size, memory, offset, bool(flags & pe.SCN_EXECUTE), bool(flags & pe.SCN_WRITE)))
    if needed > length:
        raise ImageError(f"{path} is truncated: it has {length} bytes, its sections need {needed}; get a complete copy")
    return tuple(found)


def _sections(tables: pe.Tables, segments: tuple[Segment, ...]) -> tuple[Section, ...]:
    return tuple(
        Section(
            bytes(record["name"]).decode("utf-8", "replace"),
            1,
            segment.rva,
            segment.memory_size,
            segment.offset,
            segment.size,
            segment.executable,
            segment.writable,
            True,
        )
        for record, segment in zip(tables.sections, segments, strict=True)
    )

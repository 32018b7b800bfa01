"""What an x86-64 ELF program or shared library holds: segments, sections, dynamic table, code pointers.

The library chosen for ELF files, LIEF, is not used here: on node (98 MB) it needs 60 to 750 ms and 155 MB, because it
copies the file and makes an object of every relocation, on libLLVM (110 MB) 660 ms and 213 MB. This reader maps the
file, looks at its headers only and takes 1 to 5 ms. It also decides itself what a damaged header means.

All addresses are relative: rva = address - base, where base is the page of the lowest PT_LOAD segment. Where section
headers are missing, or contradict the program headers, which are what the kernel and the loader obey, the program
headers are used alone.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from callscope.binary import elf_headers as elf
from callscope.binary.dynamic import (
    DynamicTable,
    Relocations,
    find_plt_stubs,
    mapped_bytes,
    read_dynamic,
    read_relocations,
)
from callscope.binary.image import LARGEST_SPAN, PAGE, FunctionSymbols, Section, Segment, in_sections
from callscope.binary.second_returns import TwiceCallees, find_twice_callees
from callscope.binary.symbol_tables import SymbolTable, dynamic_table, section_tables
from callscope.errors import ImageError

Kind = Literal["exec", "pie", "shared", "static"]


@dataclass(frozen=True, eq=False)
class Image:
    """A program or shared library, as `read_image` found it. Everything is relative to `base`.

    kind: 'exec' (fixed address), 'pie', 'shared', or 'static' (no dynamic loader is involved, fixed address or not).
    base, span: lowest address, and bytes of address space from there, both whole pages.
    entry: where the program starts, 0 when nowhere in it. data: the whole file, mapped. build_id: b"" when it has none.
    needed: names of the libraries it asks for.
    """

    path: Path
    data: memoryview = field(repr=False)
    build_id: bytes
    kind: Kind
    base: int
    span: int
    entry: int
    segments: tuple[Segment, ...] = field(repr=False)
    sections: tuple[Section, ...] = field(repr=False)
    interpreter: str | None
    needed: tuple[str, ...]
    frame_header: tuple[int, int] | None
    """rva and bytes of the PT_GNU_EH_FRAME segment."""
    dynamic: DynamicTable = field(repr=False)
    tables: elf.Tables = field(repr=False)
    """The header tables as they are in the file."""

    @property
    def is_static(self) -> bool:
        """Whether no dynamic loader runs the program, so that no library can be put into it."""
        return self.kind == "static"

    @property
    def is_pe(self) -> bool:
        """False."""
        return False

    @property
    def has_shadow_stack(self) -> bool:
        """False: no system with glibc up to 2.40 turns them on unasked."""
        return False

    @property
    def is_fixed(self) -> bool:
        """Whether it loads at `base` only: code and data may hold absolute addresses."""
        return self.kind == "exec"

    def require_dynamic(self) -> None:
        """Raise ImageError when no library can be put into the program because it is statically linked."""
        if self.is_static:
            raise ImageError(f"{self.path} is statically linked: link it dynamically to trace it")

    def section(self, name: str) -> Section | None:
        """The first section called `name`."""
        return next((section for section in self.sections if section.name == name), None)

    def section_data(self, section: Section) -> memoryview:
        """The section's bytes in the file."""
        return self.data[section.offset : section.offset + section.file_size]

    def offset_of(self, rva: int) -> int | None:
        """The place in the file of the byte mapped at `rva`, or None when no byte of the file is mapped there."""
        for segment in self.segments:
            if segment.rva <= rva < segment.rva + segment.size:
                return segment.offset + rva - segment.rva
        return None

    def read(self, rva: int, size: int) -> bytes:
        """Up to `size` bytes of the file as mapped from `rva` on; fewer where its segment's bytes in the file end."""
        return bytes(self.view(rva, size))

    def view(self, rva: int, size: int) -> memoryview:
        """As `read`, without a copy."""
        return mapped_bytes(self.data, self.segments, rva, max(size, 0))

    @cached_property
    def code_sections(self) -> tuple[Section, ...]:
        """The executable sections, sorted, without .plt*; without section headers the executable segments."""
        code = [s for s in self.sections if s.executable and s.alloc and s.file_size]
        if code:
            return tuple(sorted((s for s in code if not s.name.startswith(".plt")), key=lambda s: s.rva))
        return tuple(
            Section(f"segment{index}", 1, s.rva, s.size, s.offset, s.size, True, s.writable, True)
            for index, s in enumerate(self.segments)
            if s.executable and s.size
        )

    @cached_property
    def plt_ranges(self) -> tuple[tuple[int, int], ...]:
        """(first rva, rva after the last) of each run of procedure linkage table stubs, sorted."""
        named = [s for s in self.sections if s.name.startswith(".plt") and s.executable and s.size]
        if named or any(s.executable for s in self.sections):
            return tuple(sorted((s.rva, s.rva + s.size) for s in named))
        slots = self.relocations.jump_slots
        return tuple(
            found
            for section in self.code_sections
            for found in find_plt_stubs(self.section_data(section), section.rva, slots)
        )

    @cached_property
    def frames(self) -> Section | None:
        """The .eh_frame section. Without section headers its size is the rest of its segment: a zero length ends it."""
        section = self.section(".eh_frame")
        if section is not None and section.alloc and section.file_size:
            return section
        if self.frame_header is None:
            return None
        rva = frame_pointer(self.read(self.frame_header[0], 8), self.frame_header[0])
        for segment in self.segments:
            if rva is not None and segment.rva <= rva < segment.rva + segment.size:
                size = segment.rva + segment.size - rva
                return Section(".eh_frame", 1, rva, size, segment.offset + rva - segment.rva, size, False, False, True)
        return None

    def in_code(self, rvas: NDArray[Any]) -> NDArray[np.bool_]:
        """Which of `rvas` lie in `code_sections`: a bool for each."""
        return in_sections(self.code_sections, rvas)

    @cached_property
    def relocations(self) -> Relocations:
        """What the dynamic loader writes into the image."""
        return read_relocations(self.data, self.tables.sections, self.dynamic, self.segments, self.base)

    @cached_property
    def dynamic_symbols(self) -> SymbolTable:
        """The symbols that relocations number."""
        numbers = self.relocations.slot_symbols
        count = int(numbers.max()) + 1 if len(numbers) else 0
        return dynamic_table(self.data, self.dynamic, self.segments, self.base, count)

    @cached_property
    def twice_callees(self) -> TwiceCallees:
        """What setjmp and its like are reached by from this image's code."""
        dynamic = self.dynamic_symbols
        stubs = [(self.view(first, last - first), first) for first, last in self.plt_ranges]
        tables = section_tables(self.data, self.tables) or [dynamic]
        return find_twice_callees(tables, dynamic, self.relocations, stubs, self.base)

    @property
    def symbol_tables(self) -> list[SymbolTable]:
        """The symbol tables; without section headers those of the dynamic loader."""
        if len(self.tables.sections) == 0:
            return [dynamic_table(self.data, self.dynamic, self.segments, self.base)]
        return section_tables(self.data, self.tables)

    def function_symbols(self) -> FunctionSymbols:
        """The functions of all symbol tables."""
        tables = self.symbol_tables
        rvas, sizes, colds = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.bool_)]
        for table in tables:
            records = table.functions()
            rvas.append(records["value"].astype(np.int64) - self.base)
            sizes.append(np.minimum(records["size"], self.span).astype(np.int64))
            colds.append(table.is_cold(records))
        return FunctionSymbols(np.concatenate(rvas), np.concatenate(sizes), np.concatenate(colds))

    def relocated_code_pointers(self) -> NDArray[np.uint32]:
        """Sorted rvas in code that relocations (RELATIVE, IRELATIVE, 64, GLOB_DAT, JUMP_SLOT, RELR) store."""
        targets = self.relocations.pointer_targets
        return np.unique(targets[self.in_code(targets)]).astype(np.uint32)


def read_build_id(path: str | Path) -> bytes:
    """The build-id of an ELF file, or b"". Reads the headers and the notes only.

    Raises ImageError as `read_image` does, as far as the headers tell.
    """
    data = elf.map_file(path)
    header = elf.read_file_header(data, path)
    return elf.find_build_id(data, elf.program_table(data, header, path))


def read_image(path: str | Path) -> Image:
    """Read the headers of a program or shared library.

    Raises ImageError, saying what the file is and what to do, for everything but a complete x86-64 ELF64 program or
    shared library. Static programs are read; `Image.require_dynamic` refuses them.
    """
    path = Path(path)
    data = elf.map_file(path)
    tables = elf.read_tables(data, path)
    loads = _loads(tables.programs, len(data), path)
    low = int(loads["address"][0]) & -PAGE
    high = int((loads["address"] + loads["memory_size"])[-1])
    span = (high - low + PAGE - 1) & -PAGE
    if span > LARGEST_SPAN:
        raise ImageError(f"{path} takes {span >> 20} MiB of address space: at most {LARGEST_SPAN >> 20} can be traced")
    segments = tuple(_segment(program, low) for program in loads)
    entry = int(tables.header["entry"]) - low
    dynamic = read_dynamic(data, tables, segments, low)
    interpreter = _interpreter(data, tables.programs)
    return Image(
        path=path,
        data=data,
        build_id=elf.find_build_id(data, tables.programs),
        kind=_kind(int(tables.header["type"]), interpreter, dynamic),
        base=low,
        span=span,
        entry=entry if 0 <= entry < span else 0,
        segments=segments,
        sections=_sections(tables, segments, low, len(data)),
        interpreter=interpreter,
        needed=dynamic.needed,
        frame_header=_frame_header(tables.programs, low, span),
        dynamic=dynamic,
        tables=tables,
    )


def frame_pointer(header: bytes, rva: int) -> int | None:
    """The rva of .eh_frame that a .eh_frame_hdr at `rva` names, or None (LSB Core, "The .eh_frame_hdr section")."""
    if len(header) < 8 or header[0] != 1:
        return None
    # DW_EH_PE_pcrel with sdata4 or udata4, or datarel (relative to the header itself): what linkers write.
    if header[1] & 0x0F not in (0x03, 0x0B) or header[1] & 0xF0 not in (0x10, 0x30):
        return None
    offset = int.from_bytes(header[4:8], "little", signed=header[1] & 0x0F == 0x0B)
    found = rva + offset + (4 if header[1] & 0xF0 == 0x10 else 0)
    return found if found > 0 else None


def _loads(programs: NDArray[np.void], file_size: int, path: Path) -> NDArray[np.void]:
    """The PT_LOAD headers in order of address, checked: not empty, not overlapping, inside the file."""
    loads: NDArray[np.void] = programs[(programs["type"] == elf.PT_LOAD) & (programs["memory_size"] > 0)]
    if len(loads) == 0:
        raise ImageError(
            f"{path} has nothing to load: name a program or shared library, not a file of debug information"
        )
    loads = loads[np.argsort(loads["address"], kind="stable")]
    limit = np.uint64(1 << 47)
    ends = loads["address"] + loads["memory_size"]
    if (
        np.any(loads["address"] >= limit)
        or np.any(loads["memory_size"] >= limit)
        or np.any(loads["file_size"] > loads["memory_size"])
        or np.any(ends[:-1] > loads["address"][1:])
    ):
        raise ImageError(f"{path} is damaged: its segments overlap or are impossible; get a complete copy")
    if np.any(loads["offset"] >= limit) or np.any(loads["offset"] + loads["file_size"] > file_size):
        needed = int((loads["offset"] + loads["file_size"]).max())
        raise ImageError(
            f"{path} is truncated: it has {file_size} bytes, its segments need {needed}; get a complete copy"
        )
    return loads


def _segment(program: np.void, low: int) -> Segment:
    return Segment(
        rva=int(program["address"]) - low,
        size=int(program["file_size"]),
        memory_size=int(program["memory_size"]),
        offset=int(program["offset"]),
        executable=bool(program["flags"] & elf.PF_X),
        writable=bool(program["flags"] & elf.PF_W),
    )


def _sections(tables: elf.Tables, segments: tuple[Segment, ...], low: int, length: int) -> tuple[Section, ...]:
    """The sections, without those whose bytes are not where the segments put them."""
    found = []
    for (_, kind, flags, address, offset, size, *_rest), name in zip(
        tables.sections.tolist(), tables.section_names, strict=True
    ):
        alloc = bool(flags & elf.SHF_ALLOC)
        rva = address - low if alloc else 0
        if kind == 0 or (alloc and kind != elf.SHT_NOBITS and not _is_mapped(segments, rva, size, offset)):
            continue
        file_size = 0 if kind == elf.SHT_NOBITS else max(min(size, length - offset), 0)
        executable, writable = bool(flags & elf.SHF_EXECINSTR), bool(flags & elf.SHF_WRITE)
        found.append(Section(name, kind, rva, size, offset, file_size, executable, writable, alloc))
    return tuple(found)


def _is_mapped(segments: tuple[Segment, ...], rva: int, size: int, offset: int) -> bool:
    """Whether a segment maps these `size` bytes at `offset` of the file to `rva`."""
    index = bisect_right(segments, rva, key=lambda segment: segment.rva) - 1
    if index < 0 or rva + size > segments[index].rva + segments[index].size:
        return size == 0
    return offset - segments[index].offset == rva - segments[index].rva


def _interpreter(data: memoryview, programs: NDArray[np.void]) -> str | None:
    found = programs[programs["type"] == elf.PT_INTERP]
    if len(found) == 0:
        return None
    size = min(int(found[0]["file_size"]), os.pathconf("/", "PC_PATH_MAX"))
    return elf.string_at(data, int(found[0]["offset"]), size) or None


def _frame_header(programs: NDArray[np.void], low: int, span: int) -> tuple[int, int] | None:
    found = programs[programs["type"] == elf.PT_GNU_EH_FRAME]
    if len(found) == 0:
        return None
    rva, size = int(found[0]["address"]) - low, int(found[0]["memory_size"])
    return (rva, size) if 0 <= rva < span else None


def _kind(file_type: int, interpreter: str | None, dynamic: DynamicTable) -> Kind:
    """A file that asks for an interpreter is a program, unless it has a name to be linked by, as libc.so.6 has."""
    if file_type == elf.ET_EXEC:
        return "exec" if interpreter else "static"
    if dynamic.is_pie or (interpreter is not None and dynamic.name is None):
        return "pie" if interpreter else "static"
    return "shared"

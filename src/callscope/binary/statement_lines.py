"""The line of an address as debuggers tell it: of several rows of a line table at one address, one at which a statement
begins is meant (DWARF 5, section 6.2; what gdb does where rows disagree).

pyelftools reads the headers; the kernel library runs the programs, each once, when an address in its unit is asked for.
"""

from __future__ import annotations

import ctypes
import posixpath
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
from elftools.dwarf.ranges import BaseAddressEntry
from numpy.typing import NDArray

from callscope.binary import elf_headers as elf
from callscope.binary.debug_files import SymbolFile
from callscope.binary.dwarf_types import FAILURES, dwarf_of_sections
from callscope.native import kernel

MOST_UNITS = 100_000
MOST_BYTES = 1 << 28
"""of debug sections, unpacked: of files with more, lines are told as symbolic tells them"""
MOST_PROGRAM_BYTES = 64 << 20
"""of line programs that are run for one file: a second"""

_COMPRESS_ZLIB = 1
_ROW = np.dtype([("address", "u8"), ("file", "u4"), ("line", "u4"), ("is_stmt", "u4"), ("unused", "u4")])


class _Program(ctypes.Structure):
    _fields_ = (
        ("bytes", ctypes.c_char_p),
        ("size", ctypes.c_uint64),
        ("files", ctypes.c_void_p),
        ("file_count", ctypes.c_uint32),
        ("instruction_bytes", ctypes.c_uint8),
        ("default_is_stmt", ctypes.c_uint8),
        ("line_range", ctypes.c_uint8),
        ("opcode_base", ctypes.c_uint8),
        ("line_base", ctypes.c_int32),
        ("operands", ctypes.c_uint8 * 256),
    )


class _Unit(NamedTuple):
    """A unit's rows, sorted by address, and the paths that their files' numbers stand for."""

    rows: NDArray[Any]
    paths: list[str]


_Spans = tuple[list[int], list[tuple[int, int, int]]]
"""where spans begin, sorted, and (begin, end, the unit's offset) of each"""


def _unit_at(spans: _Spans, address: int) -> int | None:
    index = bisect_right(spans[0], address) - 1
    return spans[1][index][2] if index >= 0 and address < spans[1][index][1] else None


class StatementLines:
    """The line programs of an ELF file's DWARF. What is damaged is left out."""

    def __init__(self, file: SymbolFile) -> None:
        self._units: dict[int, _Unit | None] = {}
        self._left = MOST_PROGRAM_BYTES
        self._file = file

    def line(self, address: int) -> tuple[str, int] | None:
        """Path and line of the instruction at an address of the file; None when it is not known."""
        offset = _unit_at(self._listed, address)
        if offset is None:
            offset = _unit_at(self._index, address)
        if offset is None:
            return None
        if offset not in self._units:
            try:
                self._units[offset] = self._run(offset)
            except FAILURES:
                self._units[offset] = None
        unit = self._units[offset]
        return None if unit is None else _line_in(unit, address)

    @cached_property
    def _dwarf(self) -> Any:
        return dwarf_of_sections(_sections(self._file))

    @cached_property
    def _listed(self) -> _Spans:
        """As `_index`, of the units that .debug_aranges lists: no unit needs to be read for it (DWARF 5, 6.1.2)."""
        try:
            ranges = self._dwarf.get_aranges()
            found = ranges.entries if ranges is not None else []
            spans = sorted((e.begin_addr, e.begin_addr + e.length, e.info_offset) for e in found if e.length)
        except FAILURES:
            spans = []
        return [span[0] for span in spans], spans

    @cached_property
    def _index(self) -> _Spans:
        """The units' spans, sorted, and where they begin."""
        try:
            spans = sorted(self._unit_spans())
        except FAILURES:
            spans = []
        return [span[0] for span in spans], spans

    def _unit_spans(self) -> Iterator[tuple[int, int, int]]:
        """(low, high, offset) of the code of every unit."""
        lists = self._dwarf.range_lists()
        for number, unit in enumerate(self._dwarf.iter_CUs()):
            if number == MOST_UNITS:
                return
            top = unit.get_top_DIE()
            low = top.attributes.get("DW_AT_low_pc")
            high = top.attributes.get("DW_AT_high_pc")
            base = int(low.value) if low is not None else 0
            if high is not None:
                yield base, int(high.value) + (0 if high.form == "DW_FORM_addr" else base), unit.cu_offset
            elif "DW_AT_ranges" in top.attributes and lists is not None:
                for entry in lists.get_range_list_at_offset(top.attributes["DW_AT_ranges"].value, cu=unit):
                    if isinstance(entry, BaseAddressEntry):
                        base = int(entry.base_address)
                        continue
                    shift = 0 if entry.is_absolute else base
                    yield shift + int(entry.begin_offset), shift + int(entry.end_offset), unit.cu_offset

    def _run(self, offset: int) -> _Unit | None:
        unit = self._dwarf.get_CU_at(offset)
        program = self._dwarf.line_program_for_CU(unit)
        if program is None:
            return None
        size = program.program_end_offset - program.program_start_offset
        self._left -= size
        if self._left < 0 or program.header.address_size not in (None, 8):
            return None
        program.stream.seek(program.program_start_offset)
        data = program.stream.read(size)
        top = unit.get_top_DIE().attributes
        directory = _text(top["DW_AT_comp_dir"].value) if "DW_AT_comp_dir" in top else ""
        paths = _paths(program.header, directory)
        numbers = {path: number for number, path in reversed(list(enumerate(paths)))}
        files = np.array([numbers[path] for path in paths], np.uint32)
        header = program.header
        given = _Program(
            data,
            len(data),
            files.ctypes.data,
            len(files),
            header.minimum_instruction_length,
            bool(header.default_is_stmt),
            header.line_range,
            header.opcode_base,
            header.line_base,
        )
        for number, count in enumerate(header.standard_opcode_lengths[:255]):
            given.operands[number + 1] = count
        rows = np.zeros(len(data) + 1, _ROW)
        rows = rows[: _line_rows()(ctypes.byref(given), rows.ctypes.data, len(rows))]
        order = np.lexsort((np.arange(len(rows)), rows["line"] != 0, rows["address"]))
        return _Unit(rows[order], paths)


def _sections(file: SymbolFile) -> dict[str, bytes | memoryview]:
    """The debug sections, unpacked; those that cannot be are left out."""
    found: dict[str, bytes | memoryview] = {}
    left = MOST_BYTES
    for section, name in zip(file.tables.sections, file.tables.section_names, strict=True):
        if not name.startswith(".debug_") or name in found:
            continue
        data = file.contents(name)
        if data is None or len(data) > left:
            continue
        if int(section["flags"]) & elf.SHF_COMPRESSED:
            unpacked = _unpacked(bytes(data), left)
            if unpacked is None:
                continue
            data = memoryview(unpacked)
        found[name] = data
        left -= len(data)
    return found


def _unpacked(data: bytes, most: int) -> bytes | None:
    """The contents of a compressed section (gABI, "Section Compression")."""
    kind, size = int.from_bytes(data[:4], "little"), int.from_bytes(data[8:16], "little")
    if kind != _COMPRESS_ZLIB or size > most:
        return None
    try:
        return zlib.decompressobj().decompress(data[24:], size)
    except zlib.error:
        return None


def _line_in(unit: _Unit, address: int) -> tuple[str, int] | None:
    rows = unit.rows
    index = int(np.searchsorted(rows["address"], np.uint64(address), side="right")) - 1
    if index < 0 or rows["line"][index] == 0:
        return None
    first = index
    while (
        not rows["is_stmt"][first]
        and first > 0
        and all(rows[name][first - 1] == rows[name][index] for name in ("address", "file"))
        and rows["line"][first - 1]
    ):
        first -= 1
    chosen = rows[first if rows["is_stmt"][first] else index]
    return (unit.paths[chosen["file"]], int(chosen["line"])) if chosen["file"] < len(unit.paths) else None


def _paths(header: Any, directory: str) -> list[str]:
    """The paths of a program's files by the numbers it uses."""
    listed = header.get("file_entry", []) or []
    directories = [_text(name) for name in header.get("include_directory", []) or []]
    if header.version < 5:
        directories = [directory, *directories]
        paths = [""]
    else:
        paths = []
    for entry in listed:
        name = _text(entry.name)
        at = entry.dir_index
        inside = directories[at] if at < len(directories) else ""
        paths.append(posixpath.normpath(posixpath.join(directory, inside, name)))
    return paths


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


@cache
def _line_rows() -> ctypes._NamedFuncPointer:
    function = kernel().cs_line_rows
    function.argtypes = [ctypes.POINTER(_Program), ctypes.c_void_p, ctypes.c_uint64]
    function.restype = ctypes.c_uint64
    return function

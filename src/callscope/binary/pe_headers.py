"""PE32+ header tables of a file, bounds-checked: file header, optional header, data directories, section table.

Source of the layouts: Microsoft, "PE Format" (learn.microsoft.com/windows/win32/debug/pe-format).
Every offset and count is checked against the file's length before it is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from callscope.errors import ImageError

FILE_HEADER = np.dtype(
    [
        ("machine", "<u2"),
        ("section_count", "<u2"),
        ("time_stamp", "<u4"),
        ("symbol_offset", "<u4"),
        ("symbol_count", "<u4"),
        ("optional_size", "<u2"),
        ("characteristics", "<u2"),
    ]
)
OPTIONAL_HEADER = np.dtype(
    [
        ("magic", "<u2"),
        ("linker", "u1", 2),
        ("code_size", "<u4"),
        ("data_size", "<u4"),
        ("bss_size", "<u4"),
        ("entry", "<u4"),
        ("code_base", "<u4"),
        ("image_base", "<u8"),
        ("section_alignment", "<u4"),
        ("file_alignment", "<u4"),
        ("versions", "<u2", 6),
        ("reserved", "<u4"),
        ("image_size", "<u4"),
        ("headers_size", "<u4"),
        ("checksum", "<u4"),
        ("subsystem", "<u2"),
        ("dll_characteristics", "<u2"),
        ("stack_and_heap", "<u8", 4),
        ("loader_flags", "<u4"),
        ("directory_count", "<u4"),
    ]
)
DIRECTORY = np.dtype([("rva", "<u4"), ("size", "<u4")])
SECTION = np.dtype(
    [
        ("name", "S8"),
        ("memory_size", "<u4"),
        ("rva", "<u4"),
        ("file_size", "<u4"),
        ("offset", "<u4"),
        ("relocations", "<u4"),
        ("lines", "<u4"),
        ("counts", "<u2", 2),
        ("flags", "<u4"),
    ]
)

MACHINE_AMD64 = 0x8664
PE32_PLUS = 0x20B
FILE_RELOCS_STRIPPED, FILE_DLL = 0x0001, 0x2000
SCN_DISCARDABLE, SCN_EXECUTE, SCN_WRITE = 0x02000000, 0x20000000, 0x80000000
EXPORT, IMPORT, EXCEPTION, RELOCATION, DEBUG, DELAY_IMPORT, RUNTIME_HEADER = 0, 1, 3, 5, 6, 13, 14
DIRECTORIES = 16
MOST_SECTIONS = 1024
"""Windows itself loads no file with more than 96."""
_SIGNATURE_OFFSET = 0x3C

_MACHINES = {
    0x14C: "32-bit x86",
    0x1C0: "ARM",
    0x1C4: "32-bit ARM",
    0x200: "Itanium",
    0x5064: "RISC-V",
    0x6264: "LoongArch",
    0xA641: "ARM64EC",
    0xAA64: "ARM64",
}


class Tables(NamedTuple):
    """The header tables of one file: one FILE_HEADER, one OPTIONAL_HEADER, DIRECTORY[16] (zeros where the file has
    fewer) and SECTION[n].
    """

    header: np.void
    optional: np.void
    directories: NDArray[np.void]
    sections: NDArray[np.void]


def is_pe(data: memoryview) -> bool:
    """Whether the bytes begin like a DOS or Windows program."""
    return bytes(data[:2]) == b"MZ"


def read_tables(data: memoryview, path: str | Path) -> Tables:
    """Parse and check the headers of an x86-64 PE32+ file.

    Raises ImageError, saying what the file is instead and what to do, for everything else.
    """
    start = _signature(data, path)
    header: np.void = np.frombuffer(data, FILE_HEADER, 1, start + 4)[0]
    first = start + 4 + FILE_HEADER.itemsize
    magic = int.from_bytes(data[first : first + 2], "little")
    machine = int(header["machine"])
    if _has_runtime_header(data, first, magic):
        raise ImageError(f"{path} is a .NET program, compiled while it runs: only native x64 programs can be traced")
    if machine != MACHINE_AMD64:
        name = _MACHINES.get(machine, f"machine {machine:#x}")
        raise ImageError(f"{path} is built for {name}: only 64-bit x86-64 programs can be traced")
    if magic != PE32_PLUS or int(header["optional_size"]) < OPTIONAL_HEADER.itemsize:
        raise ImageError(f"{path} is damaged: it has no PE32+ header; get a complete copy")
    sections_at = first + int(header["optional_size"])
    count = int(header["section_count"])
    if count == 0 or count > MOST_SECTIONS:
        raise ImageError(f"{path} is damaged: it claims {count} sections; get a complete copy")
    if sections_at + count * SECTION.itemsize > len(data):
        raise ImageError(f"{path} is truncated: it ends inside its section table; get a complete copy")
    optional: np.void = np.frombuffer(data, OPTIONAL_HEADER, 1, first)[0]
    room = (int(header["optional_size"]) - OPTIONAL_HEADER.itemsize) // DIRECTORY.itemsize
    listed = min(int(optional["directory_count"]), DIRECTORIES, room)
    directories = np.zeros(DIRECTORIES, DIRECTORY)
    directories[:listed] = np.frombuffer(data, DIRECTORY, listed, first + OPTIONAL_HEADER.itemsize)
    return Tables(header, optional, directories, np.frombuffer(data, SECTION, count, sections_at))


def _signature(data: memoryview, path: str | Path) -> int:
    """Offset of the PE signature."""
    if not is_pe(data):
        raise ImageError(f"{path} is not a Windows program (PE): name a Windows program or library")
    truncated = ImageError(f"{path} is truncated: it ends inside its headers; get a complete copy")
    if len(data) < _SIGNATURE_OFFSET + 4:
        raise truncated
    start = int.from_bytes(data[_SIGNATURE_OFFSET : _SIGNATURE_OFFSET + 4], "little")
    signature = bytes(data[start : start + 4])
    if signature[:2] in (b"NE", b"LE", b"LX"):
        raise ImageError(f"{path} is a 16-bit program: only 64-bit x86-64 programs can be traced")
    if start + 4 + FILE_HEADER.itemsize > len(data):
        raise truncated
    if signature != b"PE\0\0":
        raise ImageError(f"{path} is a DOS program: only 64-bit x86-64 programs can be traced")
    return start


def _has_runtime_header(data: memoryview, first: int, magic: int) -> bool:
    """Whether the data directories, behind the PE32 or PE32+ header at `first`, name a .NET runtime header."""
    directories = first + (112 if magic == PE32_PLUS else 96)
    count = int.from_bytes(data[directories - 4 : directories], "little")
    place = directories + RUNTIME_HEADER * DIRECTORY.itemsize
    return count > RUNTIME_HEADER and any(data[place : place + DIRECTORY.itemsize])

"""ELF64 header tables of a file, bounds-checked: the part that program files and separate debug files have in common.

Source of the layouts: System V gABI, chapters 4 and 5 (object files, program loading), and the x86-64 psABI.
Every offset and count is checked against the file's length before it is used.
"""

from __future__ import annotations

import mmap
import stat
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from callscope.errors import ImageError

FILE_HEADER = np.dtype(
    [
        ("ident", "u1", 16),
        ("type", "<u2"),
        ("machine", "<u2"),
        ("version", "<u4"),
        ("entry", "<u8"),
        ("phoff", "<u8"),
        ("shoff", "<u8"),
        ("flags", "<u4"),
        ("ehsize", "<u2"),
        ("phentsize", "<u2"),
        ("phnum", "<u2"),
        ("shentsize", "<u2"),
        ("shnum", "<u2"),
        ("shstrndx", "<u2"),
    ]
)
PROGRAM_HEADER = np.dtype(
    [
        ("type", "<u4"),
        ("flags", "<u4"),
        ("offset", "<u8"),
        ("address", "<u8"),
        ("physical", "<u8"),
        ("file_size", "<u8"),
        ("memory_size", "<u8"),
        ("align", "<u8"),
    ]
)
SECTION_HEADER = np.dtype(
    [
        ("name", "<u4"),
        ("type", "<u4"),
        ("flags", "<u8"),
        ("address", "<u8"),
        ("offset", "<u8"),
        ("size", "<u8"),
        ("link", "<u4"),
        ("info", "<u4"),
        ("align", "<u8"),
        ("entry_size", "<u8"),
    ]
)
SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
RELOCATION = np.dtype([("offset", "<u8"), ("info", "<u8"), ("addend", "<i8")])

ET_REL, ET_EXEC, ET_DYN, ET_CORE = 1, 2, 3, 4
EM_X86_64 = 62
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE = 1, 2, 3, 4
PT_GNU_EH_FRAME = 0x6474E550
PF_X, PF_W, PF_R = 1, 2, 4
SHT_SYMTAB, SHT_RELA, SHT_NOBITS, SHT_DYNSYM, SHT_RELR = 2, 4, 8, 11, 19
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_COMPRESSED = 1, 2, 4, 0x800
PN_XNUM = 0xFFFF
SHN_XINDEX = 0xFFFF
NT_GNU_BUILD_ID = 3

MOST_PROGRAM_HEADERS = 65536 // PROGRAM_HEADER.itemsize
"""Linux runs no program with more than 64 KiB of them."""
MOST_SECTIONS = 65536
MOST_NOTE_BYTES = 1 << 20
LONGEST_SECTION_NAME = 256

_MACHINES = {
    2: "SPARC",
    3: "32-bit x86",
    8: "MIPS",
    20: "PowerPC",
    21: "PowerPC64",
    22: "S390",
    40: "ARM",
    50: "Itanium",
    183: "AArch64",
    243: "RISC-V",
    247: "BPF",
    258: "LoongArch",
}


class Tables(NamedTuple):
    """The header tables of one file.

    header: one FILE_HEADER record; programs: PROGRAM_HEADER[n]; sections: SECTION_HEADER[n], empty when the file has
    none that can be used; section_names: as many strings.
    """

    header: np.void
    programs: NDArray[np.void]
    sections: NDArray[np.void]
    section_names: list[str]


def map_file(path: str | Path) -> memoryview:
    """The bytes of a regular file, mapped read-only; ImageError when there is none or it is not a regular file."""
    path = Path(path)
    try:
        # Asked first: opening a FIFO would wait for its writer.
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ImageError(f"{path} is a directory: name the program file itself")
        if not stat.S_ISREG(mode):
            raise ImageError(f"{path} is not a regular file: name a program or library file")
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise ImageError(f"{path} is empty: name a program or library file")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"cannot read {path}: {reason}") from None


def read_tables(data: memoryview, path: str | Path) -> Tables:
    """Parse and check the file header, then the program and section header tables.

    Raises ImageError when the file is no x86-64 ELF64 file or ends inside its program headers. Unusable section headers
    are dropped instead: programs run without them.
    """
    header = read_file_header(data, path)
    sections = _section_table(data, header)
    return Tables(header, program_table(data, header, path), sections, _section_names(data, header, sections))


def read_file_header(data: memoryview, path: str | Path) -> np.void:
    """The FILE_HEADER record of `data`; ImageError, naming what the file is instead, when it cannot be traced."""
    start = bytes(data[:20])
    if start[:4] != b"\x7fELF":
        raise ImageError(f"{path} {_not_elf(start)}")
    if len(start) >= 5 and start[4] == 1:
        raise ImageError(f"{path} is a 32-bit ELF file: only 64-bit x86-64 programs can be traced")
    if len(data) < FILE_HEADER.itemsize:
        raise ImageError(f"{path} is truncated: it ends inside its ELF header; get a complete copy")
    if start[4] != 2 or start[6] != 1:
        raise ImageError(f"{path} is damaged: unknown ELF class or version; get a complete copy")
    if start[5] != 1:
        raise ImageError(f"{path} is a big-endian ELF file: only x86-64 programs can be traced")
    header: np.void = np.frombuffer(data, FILE_HEADER, 1)[0]
    machine, kind = int(header["machine"]), int(header["type"])
    if machine != EM_X86_64:
        name = _MACHINES.get(machine, f"machine {machine}")
        raise ImageError(f"{path} is built for {name}: only x86-64 programs can be traced")
    if kind == ET_REL:
        raise ImageError(f"{path} is an object file: link it into a program or shared library first")
    if kind == ET_CORE:
        raise ImageError(f"{path} is a core dump: name the program that wrote it")
    if kind not in (ET_EXEC, ET_DYN):
        raise ImageError(f"{path} is an ELF file of unknown type {kind}: name a program or shared library")
    return header


def program_table(data: memoryview, header: np.void, path: str | Path) -> NDArray[np.void]:
    """PROGRAM_HEADER[n] of the file; ImageError when they are missing or lie outside it."""
    count, offset = int(header["phnum"]), int(header["phoff"])
    if count == PN_XNUM:
        first = _section_zero(data, header)
        count = 0 if first is None else int(first["info"])
    if count == 0 or int(header["phentsize"]) != PROGRAM_HEADER.itemsize or count > MOST_PROGRAM_HEADERS:
        raise ImageError(f"{path} has no usable program headers: it is no program or shared library")
    if offset + count * PROGRAM_HEADER.itemsize > len(data):
        raise ImageError(f"{path} is truncated: it ends inside its program headers; get a complete copy")
    return np.frombuffer(data, PROGRAM_HEADER, count, offset)


def find_build_id(data: memoryview, programs: NDArray[np.void]) -> bytes:
    """The descriptor of the NT_GNU_BUILD_ID note, at most 32 bytes, or b"" (gABI, "Note Section")."""
    for program in programs[programs["type"] == PT_NOTE]:
        size = min(int(program["file_size"]), MOST_NOTE_BYTES)
        step = 8 if int(program["align"]) == 8 else 4
        note = bytes(data[int(program["offset"]) : int(program["offset"]) + size])
        build_id = build_id_of_notes(note, step)
        if build_id:
            return build_id
    return b""


def build_id_of_notes(notes: bytes, align: int = 4) -> bytes:
    """The build-id among the note records in `notes`, or b"". Names and descriptors are padded to `align` bytes."""
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = (int.from_bytes(notes[at + i : at + i + 4], "little") for i in (0, 4, 8))
        descriptor = at + 12 + name_size
        descriptor += -descriptor % align
        if kind == NT_GNU_BUILD_ID and notes[at + 12 : at + 16] == b"GNU\0" and name_size == 4:
            found = notes[descriptor : descriptor + size]
            return found if len(found) == size and 0 < size <= 32 else b""
        at = descriptor + size
        at += -at % align
    return b""


def string_at(table: memoryview | bytes, offset: int, longest: int = 4096) -> str:
    """The NUL-terminated string at `offset` of a string table, at most `longest` bytes; "" outside the table."""
    piece = bytes(table[offset : offset + longest])
    return piece.split(b"\0", 1)[0].decode("utf-8", "replace")


def _section_zero(data: memoryview, header: np.void) -> np.void | None:
    """The section header 0, which holds counts too large for the file header."""
    offset = int(header["shoff"])
    if offset == 0 or int(header["shentsize"]) != SECTION_HEADER.itemsize:
        return None
    if offset + SECTION_HEADER.itemsize > len(data):
        return None
    first: np.void = np.frombuffer(data, SECTION_HEADER, 1, offset)[0]
    return first


def _section_table(data: memoryview, header: np.void) -> NDArray[np.void]:
    first = _section_zero(data, header)
    if first is None:
        return np.empty(0, SECTION_HEADER)
    count = int(header["shnum"]) or int(first["size"])
    if count > MOST_SECTIONS or int(header["shoff"]) + count * SECTION_HEADER.itemsize > len(data):
        return np.empty(0, SECTION_HEADER)
    return np.frombuffer(data, SECTION_HEADER, count, int(header["shoff"]))


def _section_names(data: memoryview, header: np.void, sections: NDArray[np.void]) -> list[str]:
    index = int(header["shstrndx"])
    if index == SHN_XINDEX and len(sections):
        index = int(sections[0]["link"])
    if index >= len(sections):
        return [""] * len(sections)
    start, size = int(sections[index]["offset"]), int(sections[index]["size"])
    table = data[start : start + size]
    return [string_at(table, name, LONGEST_SECTION_NAME) for name in sections["name"].tolist()]


def _not_elf(start: bytes) -> str:
    """What a file is that does not begin with the ELF magic, and what to do."""
    if start[:2] == b"#!":
        return "is a script, not a program: trace its interpreter and give it the script as an argument"
    if start[:2] == b"MZ":
        return "is a Windows program (PE), not an ELF file: name a Linux program or shared library"
    if start[:4] in (b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe", b"\xce\xfa\xed\xfe"):
        return "is a macOS program (Mach-O), not an ELF file: name a Linux program or shared library"
    if start[:8] in (b"!<arch>\n", b"!<thin>\n"):
        return "is a static library: name the program it was linked into"
    if b"\x7fELF".startswith(start):
        return "is truncated: it ends inside its ELF header; get a complete copy"
    return "is not an ELF file: name a Linux program or shared library"

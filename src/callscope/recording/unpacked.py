"""Programs that unpack themselves (UPX and its like): their code is in no file, so they are planned from memory.

What lies in memory becomes an image file again, laid out as it was mapped: for ELF the recorder reads the process while
its agent waits for the answer, since the packer's work is done before there are libraries; for PE the agent writes it
when the program first runs what it unpacked (native/agent/windows/unpack.c).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callscope.binary import elf_headers as elf
from callscope.binary import pe_headers as pe
from callscope.binary.elf_headers import map_file
from callscope.binary.image import LARGEST_SPAN, PAGE
from callscope.binary.pe import read_pe
from callscope.errors import ImageError, PlanError

UPX_MAGIC = b"UPX!"
_HEAD_BYTES = 1024
_DYNAMIC_ADDRESSES = frozenset({3, 4, 5, 6, 7, 23, 0x6FFFFEF5, 0x6FFFFFF0})
"""Tags whose values the loader makes absolute: DT_PLTGOT HASH STRTAB SYMTAB RELA JMPREL GNU_HASH VERSYM."""


def is_packed(path: str | Path) -> bool:
    """Whether a program will unpack its code while it runs: a PE file with an executable section that is empty in the
    file, or an ELF file by UPX. False for what cannot be read.
    """
    try:
        data = map_file(path)
        if not pe.is_pe(data):
            return UPX_MAGIC in bytes(data[:_HEAD_BYTES])
        image = read_pe(path)
    except (ImageError, OSError):
        return False
    unpacked = [s for s in image.sections if s.executable and s.size and not s.file_size]
    return any(not section.rva <= image.entry < section.rva + section.size for section in unpacked)


def is_windows_file(path: str | Path) -> bool:
    """Whether a file begins as those that Windows or DOS run: no permission says that they are programs."""
    with Path(path).open("rb") as file:
        return file.read(2) == b"MZ"


def memory_image(pid: int, base: int, span: int, path: Path) -> Path:
    """`path`, which then is an image file of what lies at `base` in process `pid`: a PE file's memory has been written
    there. Raises ImageError or PlanError.
    """
    if path.exists():
        mend_pe(path, base)
    else:
        read_memory(pid, base, span, path)
        mend_elf(path, base)
    return path


def read_memory(pid: int, base: int, span: int, output: Path) -> None:
    """Write the memory of a process from `base` on to a new file. Raises PlanError when it cannot be read."""
    if not 0 < span <= LARGEST_SPAN or base % PAGE:
        raise PlanError(f"process {pid} says that its program takes {span} bytes: it cannot be planned from memory")
    try:
        with Path(f"/proc/{pid}/mem").open("rb", 0) as memory, output.open("xb") as file:
            output.chmod(0o600)
            for at in range(0, span, PAGE):
                try:
                    page = os.pread(memory.fileno(), PAGE, base + at)
                except OSError:  # a hole between segments
                    page = b""
                file.write(page.ljust(PAGE, b"\0"))
    except OSError as error:
        raise PlanError(f"the memory of process {pid} cannot be read: {error.strerror}; run as its user") from None


def mend_elf(path: Path, base: int) -> None:
    """Make the memory of an ELF program, `base` its lowest address, a file again. Raises PlanError."""
    data = np.memmap(path, np.uint8, "r+")
    header = _record(data, 0, elf.FILE_HEADER)
    if bytes(data[:4]) != b"\x7fELF":
        raise PlanError(f"{path}: what was unpacked is no ELF image; the program cannot be traced")
    header["shoff"] = header["shnum"] = header["shstrndx"] = 0
    size, start = elf.PROGRAM_HEADER.itemsize, int(header["phoff"])
    programs = [_record(data, start + i * size, elf.PROGRAM_HEADER) for i in range(int(header["phnum"]))]
    loads = [program for program in programs if program["type"] == elf.PT_LOAD]
    if not loads:
        raise PlanError(f"{path}: what was unpacked has no segments; the program cannot be traced")
    low = min(int(load["address"]) for load in loads) & -PAGE
    for program in programs:
        at = int(program["address"]) - low
        program["offset"] = at if 0 <= at < len(data) else 0
        program["file_size"] = min(int(program["memory_size"]), max(len(data) - at, 0))
        if program["type"] == elf.PT_DYNAMIC:
            _relative_again(data[at : at + int(program["file_size"])], base - low, base, len(data))
    data.flush()


def _relative_again(table: NDArray[np.uint8], bias: int, base: int, span: int) -> None:
    """Undo what the loader did to a dynamic table."""
    entries = table[: len(table) // 16 * 16].view("<u8").reshape(-1, 2)
    for entry in entries:
        if int(entry[0]) in _DYNAMIC_ADDRESSES and base <= int(entry[1]) < base + span:
            entry[1] -= np.uint64(bias)


def mend_pe(path: Path, base: int) -> None:
    """Make the memory of a PE program, loaded at `base`, a file again. Raises ImageError or PlanError."""
    try:
        data = np.memmap(path, np.uint8, "r+")
    except (OSError, ValueError) as error:
        raise PlanError(f"{path}: the program's memory was not written ({error}); it cannot be traced") from None
    tables = pe.read_tables(memoryview(data), path)  # type: ignore[arg-type]  # an array is a buffer
    start = int.from_bytes(bytes(data[0x3C:0x40]), "little") + 4
    header = _record(data, start, pe.FILE_HEADER)
    optional = _record(data, start + header.dtype.itemsize, pe.OPTIONAL_HEADER)
    # The packer's relocations are not the program's: pointers are found by the addresses they hold.
    header["characteristics"] |= pe.FILE_RELOCS_STRIPPED
    optional["image_base"] = base
    first = start + pe.FILE_HEADER.itemsize + int(header["optional_size"])
    for i in range(len(tables.sections)):
        section = _record(data, first + i * pe.SECTION.itemsize, pe.SECTION)
        section["offset"] = section["rva"]
        section["memory_size"] = section["file_size"] = max(int(section["memory_size"]), int(section["file_size"]))
    data.flush()


def _record(data: NDArray[np.uint8], offset: int, kind: np.dtype[np.void]) -> Any:
    """A record in the data that can be changed there. Raises PlanError when it lies outside."""
    if offset + kind.itemsize > len(data):
        raise PlanError("what the program unpacked is cut off: it cannot be traced")
    return data[offset : offset + kind.itemsize].view(kind)[0]

"""Where the symbols of an ELF file are besides in itself: separate debug files, and the compressed table of some.

Sources: GDB's manual, "Debugging Information in Separate Files" (build-id directories, .gnu_debuglink and its CRC) and
"MiniDebugInfo" (.gnu_debugdata).
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from callscope.binary import elf_headers as elf
from callscope.errors import ImageError

SYSTEM_DEBUG_DIRECTORIES = (Path("/usr/lib/debug"),)
MOST_UNPACKED_BYTES = 1 << 27
_CHUNK = 1 << 20


@dataclass(frozen=True)
class SymbolFile:
    """A file, or an unpacked part of one, that may hold symbols.

    path: None when it is not a file of its own. base: address that relative addresses count from, as `Image.base`.
    """

    path: Path | None
    data: memoryview
    tables: elf.Tables
    base: int
    build_id: bytes

    def contents(self, name: str) -> memoryview | None:
        """The bytes of the first section called `name` that has some."""
        for section, found in zip(self.tables.sections, self.tables.section_names, strict=True):
            if found == name and int(section["type"]) != elf.SHT_NOBITS:
                return self.data[int(section["offset"]) : int(section["offset"]) + int(section["size"])]
        return None


def open_symbol_file(path: Path) -> SymbolFile:
    """Open a program, library or debug file; ImageError when it is none."""
    return symbol_file(elf.map_file(path), path, path)


def symbol_file(data: memoryview, path: Path | None, name: str | Path) -> SymbolFile:
    """Look at the bytes of an ELF file; errors call it `name`. Raises ImageError."""
    tables = elf.read_tables(data, name)
    loads = tables.programs[(tables.programs["type"] == elf.PT_LOAD) & (tables.programs["memory_size"] > 0)]
    base = int(loads["address"].min()) & -4096 if len(loads) else 0
    if base >= 1 << 47:
        raise ImageError(f"{name} is damaged: its addresses are no program's; get a complete copy")
    build_id = elf.find_build_id(data, tables.programs)
    if not build_id:
        # The segments of a debug file describe the program; its own note is found by its section.
        sections = zip(tables.sections, tables.section_names, strict=True)
        notes = next((s for s, found in sections if found == ".note.gnu.build-id"), None)
        if notes is not None:
            build_id = elf.build_id_of_notes(bytes(data[int(notes["offset"]) :][: min(int(notes["size"]), 1024)]))
    return SymbolFile(path, data, tables, base, build_id)


def find_debug_file(
    source: SymbolFile | None, build_id: bytes, directories: Sequence[Path], problems: list[str]
) -> SymbolFile | None:
    """The separate debug file of a file: by build-id, else by the name and checksum that `source` gives.

    Those that do not belong to it are passed over, with a line in `problems`.
    """
    for path in _by_build_id(build_id, directories):
        try:
            found = open_symbol_file(path)
        except ImageError as error:
            problems.append(str(error))
            continue
        if found.build_id == build_id:
            return found
        problems.append(f"{path} belongs to another build: its build-id is {found.build_id.hex() or 'missing'}")
    if source is None:
        return None
    name, checksum = _debug_link(source)
    for path in _by_name(source, name, directories):
        try:
            found = open_symbol_file(path)
        except ImageError as error:
            problems.append(str(error))
            continue
        if _checksum(found.data) == checksum:
            return found
        problems.append(f"{path} belongs to another build: its checksum is not the one {source.path} names")
    return None


def unpack_mini_debug(source: SymbolFile, problems: list[str]) -> SymbolFile | None:
    """The symbol file that .gnu_debugdata holds, compressed, or None."""
    packed = source.contents(".gnu_debugdata")
    if packed is None:
        return None
    try:
        decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MOST_UNPACKED_BYTES)
        data = decompressor.decompress(packed, MOST_UNPACKED_BYTES)
        if not decompressor.eof:
            raise lzma.LZMAError("it is cut short or too large")
        return symbol_file(memoryview(data), None, f".gnu_debugdata of {source.path}")
    except (lzma.LZMAError, ImageError) as error:
        problems.append(f"cannot read .gnu_debugdata of {source.path}: {error}")
        return None


def _by_build_id(build_id: bytes, directories: Sequence[Path]) -> Iterator[Path]:
    if len(build_id) < 2:
        return
    name = build_id.hex()
    for directory in directories:
        path = directory / ".build-id" / name[:2] / f"{name[2:]}.debug"
        if path.is_file():
            yield path


def _debug_link(source: SymbolFile) -> tuple[str, int]:
    """The file name and CRC-32 in .gnu_debuglink; an empty name when there is none or it is more than a name."""
    link = bytes((source.contents(".gnu_debuglink") or b"")[:4096])
    name, separator, _ = link.partition(b"\0")
    at = (len(name) + 4) & -4
    if not name or not separator or b"/" in name or name in (b".", b"..") or at + 4 > len(link):
        return "", 0
    return name.decode("utf-8", "surrogateescape"), int.from_bytes(link[at : at + 4], "little")


def _by_name(source: SymbolFile, name: str, directories: Sequence[Path]) -> Iterator[Path]:
    if not name or source.path is None:
        return
    place = source.path.resolve().parent
    for directory in (place, place / ".debug", *(d / place.relative_to("/") for d in directories)):
        path = directory / name
        if path.is_file() and not path.samefile(source.path):
            yield path


def _checksum(data: memoryview) -> int:
    """CRC-32 of a whole file."""
    checksum = 0
    for start in range(0, len(data), _CHUNK):
        checksum = zlib.crc32(data[start : start + _CHUNK], checksum)
    return checksum

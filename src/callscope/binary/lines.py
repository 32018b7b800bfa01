"""Source lines and inlined calls of addresses, from DWARF, through symbolic's symbol cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from callscope.binary.statement_lines import StatementLines

from callscope.binary import elf_headers as elf
from callscope.binary.debug_files import SymbolFile
from callscope.binary.demangle import demangle

MOST_DEBUG_BYTES = 1 << 32
_DEBUG_INFO = (".debug_info", ".zdebug_info")


class SourceFrame(NamedTuple):
    """One function at an address, inlined there or containing it; `name` may be mangled."""

    name: str
    file: str
    line: int


class LineTable:
    """The lines of one file's DWARF or PDB; `cache` is a symbolic.SymCache, whose methods have no types.

    `names_all`: it names every function, more of them than symbol tables do. `statements`: knows better which of
    several lines at an address is meant, by the file's own addresses, which begin at `base`.
    """

    def __init__(
        self,
        cache: Any,
        shift: int,
        names_all: bool = False,
        statements: StatementLines | None = None,
        base: int = 0,
    ) -> None:
        self.names_all = names_all
        self._cache = cache
        self._shift = shift
        self._statements, self._base = statements, base

    def frames(self, rva: int) -> list[SourceFrame]:
        """The functions at `rva`, innermost inlined first, the containing one last; empty when unknown."""
        if rva + self._shift < 0:
            return []
        found = self._cache.lookup(rva + self._shift)
        frames = [SourceFrame(f.symbol, f.full_path, int(f.line)) for f in found if f.full_path and f.line]
        better = self._statements.line(rva + self._base) if frames and self._statements else None
        if better is not None and better[1] != frames[0].line:
            path, line = better
            same = path.rpartition("/")[2] == frames[0].file.rpartition("/")[2]
            frames[0] = SourceFrame(frames[0].name, frames[0].file if same else path, line)
        return frames

    def function(self, rva: int) -> str | None:
        """The name of the function that contains `rva`, demangled, or None."""
        found = self._cache.lookup(rva + self._shift) if rva + self._shift >= 0 else []
        return demangle([found[-1].symbol])[0] or None if found else None


def has_lines(file: SymbolFile) -> bool:
    """Whether the file holds DWARF."""
    return any(file.contents(name) for name in _DEBUG_INFO)


def open_lines(file: SymbolFile, problems: list[str]) -> LineTable | None:
    """The lines of `file`, or None, with a line in `problems`, when its DWARF cannot be read.

    Reads all of its DWARF once: 10 to 50 ms a megabyte.
    """
    if file.path is None:
        return None
    unpacked = _unpacked_bytes(file)
    if unpacked > MOST_DEBUG_BYTES:
        problems.append(f"{file.path}: no lines: its debug information unpacks to {unpacked >> 20} MiB")
        return None
    try:
        # Not everywhere there is a build of it: names do not need it.
        from symbolic.debuginfo import Archive

        from callscope.binary.statement_lines import StatementLines

        cache = Archive.open(str(file.path)).get_object(arch="x86_64").make_symcache()
    except Exception as error:  # symbolic raises many kinds, and panics of its own for what it did not foresee
        problems.append(f"{file.path}: no lines: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
        return None
    # symbolic counts from the first PT_LOAD header's address, callscope from the page of the lowest.
    loads = file.tables.programs[file.tables.programs["type"] == elf.PT_LOAD]
    shift = file.base - int(loads["address"][0]) if len(loads) else 0
    return LineTable(cache, shift, statements=StatementLines(file), base=file.base)


def _unpacked_bytes(file: SymbolFile) -> int:
    """Bytes of the file's sections once decompressed, as their headers say (gABI, "Section Compression")."""
    total = 0
    packed = file.tables.sections[file.tables.sections["flags"] & elf.SHF_COMPRESSED != 0]
    for offset in packed["offset"].tolist():
        total += int.from_bytes(file.data[offset + 8 : offset + 16], "little")
    return total + int(np.minimum(file.tables.sections["size"], np.uint64(len(file.data))).sum())

"""Names, source files and lines of addresses in an image.

Names come from symbol tables, wherever the system keeps them; lines and inlined calls from DWARF or a PDB, through
symbolic.
Nothing here raises for a bad file: what cannot be read costs names, and a line in `problems`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from callscope.binary import elf_headers as elf
from callscope.binary.debug_files import (
    SYSTEM_DEBUG_DIRECTORIES,
    SymbolFile,
    find_debug_file,
    open_symbol_file,
    unpack_mini_debug,
)
from callscope.binary.demangle import demangle
from callscope.binary.elf import read_image
from callscope.binary.lines import LineTable, has_lines, open_lines
from callscope.binary.pe import read_pe
from callscope.binary.pe_headers import is_pe
from callscope.binary.pe_symbols import name_tables, open_pe_lines
from callscope.binary.symbol_tables import STB_LOCAL, SymbolTable, section_tables
from callscope.errors import ImageError

LONGEST_NAME = 16384
MOST_WITHOUT_SIZE = 4096
"""bytes that a symbol without size is taken to name at most"""


class InlinedCall(NamedTuple):
    """A function inlined at an address, and the line in it."""

    name: str
    file: str
    line: int


class Symbols:
    """The symbols of one image. `problems`: lines for people about what could not be used; grows as things are read."""

    def __init__(
        self,
        tables: Callable[[], list[tuple[SymbolTable, int]]],
        open_lines: Callable[[], LineTable | None],
        problems: list[str],
    ) -> None:
        self.problems = problems
        self._read_tables = tables
        self._open_lines = open_lines
        self._names: dict[int, str] = {}

    def name(self, rva: int) -> str | None:
        """The name of the function that contains `rva`, or None."""
        return self.names(np.array([rva], np.int64))[0]

    def names(self, rvas: NDArray[Any] | Sequence[int]) -> list[str | None]:
        """For each of `rvas` the name of the function that contains it, or None.

        Only names asked for are decoded and demangled. Of several symbols at one address the exported one is taken, of
        these the one with the fewest leading underscores, then the shortest.
        """
        wanted = np.asarray(rvas, np.int64)
        groups = self._table.find(wanted)
        missing = [group for group in np.unique(groups).tolist() if group >= 0 and group not in self._names]
        self._names.update(zip(missing, demangle([self._table.best_name(g) for g in missing]), strict=True))
        names = [self._names.get(group) or None for group in groups.tolist()]
        if None in names and self._lines and (self._lines.names_all or len(self._table.starts) == 0):
            names = [name or self._lines.function(int(rva)) for name, rva in zip(names, wanted, strict=True)]
        return names

    def aliases(self, rva: int) -> list[str]:
        """All names of the function that contains `rva`, demangled."""
        group = int(self._table.find(np.array([rva], np.int64))[0])
        return demangle(self._table.all_names(group)) if group >= 0 else []

    def location(self, rva: int) -> tuple[str, int] | None:
        """Source file and line of `rva` in the function that contains it, as `name` names it; None when unknown."""
        frames = self._lines.frames(rva) if self._lines else []
        return (frames[-1].file, frames[-1].line) if frames else None

    def inlines(self, rva: int) -> list[InlinedCall]:
        """The calls inlined at `rva`, innermost first, each with the line that is executing in it.

        The function that contains them is not among them.
        """
        frames = self._lines.frames(rva)[:-1] if self._lines else []
        names = demangle([frame.name for frame in frames])
        return [InlinedCall(name, frame.file, frame.line) for name, frame in zip(names, frames, strict=True)]

    @cached_property
    def _table(self) -> _NameTable:
        return _NameTable(self._read_tables())

    @cached_property
    def _lines(self) -> LineTable | None:
        return self._open_lines()


def open_symbols(
    path: str | Path, debug_directories: Sequence[str | Path] = (), build_id: bytes | None = None
) -> Symbols:
    """The symbols of the file at `path`, of its separate debug file, and of its .gnu_debugdata; of its PDB.

    debug_directories: searched before /usr/lib/debug, for .build-id/xx/yyyy.debug and for the name in .gnu_debuglink;
    for a PDB before the file's own directory and those of _NT_SYMBOL_PATH.
    build_id: what the file must be; when it is missing or another now, only a debug file with that build-id is used.
    """
    problems: list[str] = []
    directories = [Path(directory) for directory in debug_directories]
    found = _open_pe(Path(path), directories, build_id, problems)
    if found is not None:
        return found
    source: SymbolFile | None = None
    try:
        source = open_symbol_file(Path(path))
    except ImageError as error:
        problems.append(str(error))
    if source is not None and build_id is not None and source.build_id != build_id:
        problems.append(f"{path} is not the file that was traced: its build-id is {source.build_id.hex() or 'missing'}")
        source = None
    wanted = build_id if build_id is not None else (source.build_id if source else b"")
    debug = find_debug_file(source, wanted, [*directories, *SYSTEM_DEBUG_DIRECTORIES], problems)
    packed = unpack_mini_debug(source, problems) if source else None
    files = [file for file in (source, debug, packed) if file is not None]

    def tables() -> list[tuple[SymbolTable, int]]:
        found = [(table, file.base) for file in files for table in section_tables(file.data, file.tables)]
        if source is not None and len(source.tables.sections) == 0:
            found += [(table, source.base) for table in read_image(path).symbol_tables]
        return found

    def lines() -> LineTable | None:
        opened = (open_lines(file, problems) for file in files if has_lines(file))
        return next((table for table in opened if table is not None), None)

    return Symbols(tables, lines, problems)


def _open_pe(path: Path, directories: list[Path], build_id: bytes | None, problems: list[str]) -> Symbols | None:
    """The symbols of a Windows program or library; None for other files."""
    try:
        if not is_pe(elf.map_file(path)):
            return None
        image = read_pe(path)
    except ImageError as error:
        if path.is_file():
            problems.append(str(error))
        return None
    if build_id is not None and image.build_id != build_id:
        problems.append(f"{path} is not the file that was traced: its identity is {image.build_id.hex()}")
        return Symbols(list, lambda: None, problems)
    return Symbols(lambda: name_tables(image), lambda: open_pe_lines(image, directories, problems), problems)


class _NameTable:
    """Function symbols of several tables, sorted; names are decoded when asked for.

    starts: i8[n] rvas, each once: a group of symbols. Symbols of group i are _table, _name [_first[i] : _first[i + 1]].
    """

    def __init__(self, pieces: Sequence[tuple[SymbolTable, int]]) -> None:
        self._strings = [table.strings for table, _ in pieces]
        columns: list[tuple[NDArray[np.int64], ...]] = []
        for index, (table, base) in enumerate(pieces):
            records = table.functions()
            rva = records["value"].astype(np.int64) - base
            records, rva = records[rva >= 0], rva[rva >= 0]
            size = np.minimum(records["size"], np.uint64(1 << 40)).astype(np.int64)
            # Only where all functions have symbols may one without size be taken to reach to the next.
            size = np.where(size > 0, size, 0 if table.is_complete else 1)
            local = (records["info"] >> 4 == STB_LOCAL).astype(np.int64)
            columns.append((rva, size, local, np.full(len(rva), index), records["name"].astype(np.int64)))
        empty = np.empty(0, np.int64)
        rva, size, local, table_index, name = (
            np.concatenate([empty, *(column[i] for column in columns)]) for i in range(5)
        )
        # Exported symbols come first in their group.
        order = np.lexsort((table_index, local, rva))
        rva, self._local, self._table, self._name = rva[order], local[order], table_index[order], name[order]
        self.starts, first = np.unique(rva, return_index=True)
        self._first = np.append(first, len(rva))
        sizes = np.maximum.reduceat(size[order], first) if len(first) else empty
        following = np.minimum(np.append(self.starts[1:], np.iinfo(np.int64).max), self.starts + MOST_WITHOUT_SIZE)
        self._ends = np.where(sizes > 0, self.starts + sizes, following)
        reach = np.maximum.accumulate(self._ends)
        # The group that reaches furthest among those up to each: it may go on behind a small one inside it.
        self._widest = np.maximum.accumulate(np.where(self._ends == reach, np.arange(len(self._ends)), -1))

    def find(self, rvas: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each rva the group that contains it, or -1."""
        if len(self.starts) == 0:
            return np.full(len(rvas), -1)
        last = np.searchsorted(self.starts, rvas, side="right") - 1
        wide = self._widest[last]
        found = np.where(rvas < self._ends[last], last, np.where(rvas < self._ends[wide], wide, -1))
        return np.where(last >= 0, found, -1)

    def best_name(self, group: int) -> str:
        """The name to show for a group, still mangled; "" when it has none."""
        keys = [(local, len(name) - len(name.lstrip("_")), len(name), name) for local, name in self._named(group)]
        return min(keys)[3] if keys else ""

    def all_names(self, group: int) -> list[str]:
        """The names of a group, still mangled."""
        return [name for _, name in self._named(group)]

    def _named(self, group: int) -> Iterator[tuple[bool, str]]:
        """(whether it is local, its name) of each symbol of a group that has one, up to 64."""
        for index in range(int(self._first[group]), min(int(self._first[group + 1]), int(self._first[group]) + 64)):
            strings = self._strings[self._table[index]]
            name = elf.string_at(strings, int(self._name[index]), LONGEST_NAME)
            name = name if name.startswith("?") else name.partition("@")[0]  # a version, or Microsoft's mangling
            if name:
                yield bool(self._local[index]), name

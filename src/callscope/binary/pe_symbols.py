"""Where the names and lines of a PE file are: its exports and COFF symbols, DWARF in it, or a PDB beside it.

Sources: Microsoft, "PE Format" and "Symbol path for Windows debuggers" (_NT_SYMBOL_PATH, the layout of symbol stores);
the CodeView entry names the PDB and says by GUID and age which one it is.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from callscope.binary import elf_headers as elf
from callscope.binary import pe_headers as pe
from callscope.binary import pe_tables
from callscope.binary.dbghelp import DbgHelp, is_chosen
from callscope.binary.lines import MOST_DEBUG_BYTES, LineTable
from callscope.binary.pe import PeImage
from callscope.binary.symbol_tables import STB_GLOBAL, STB_LOCAL, STT_FUNC, SymbolTable
from callscope.errors import ImageError

SYMBOL_PATH = "_NT_SYMBOL_PATH"
_STORES = ("srv", "symsrv", "cache")
_DWARF_SECTION = "/"
"""what names longer than eight bytes begin with in the section table: only debug information has such"""


def name_tables(image: PeImage) -> list[tuple[SymbolTable, int]]:
    """(symbols, base) of the COFF symbol table and the exports, in the form of ELF symbols.

    Exports name a place each; beside a COFF symbol table, which has all functions, they reach to the next.
    """
    found = []
    every = len(image.symbols.names) > 0
    for symbols, is_complete, binding in ((image.symbols, True, STB_LOCAL), (image.exports, every, STB_GLOBAL)):
        strings = b"\0".join(name.encode() for name in symbols.names) + b"\0"
        lengths = np.array([len(name.encode()) + 1 for name in symbols.names], np.int64)
        records = np.zeros(len(symbols.names), elf.SYMBOL)
        records["name"] = np.cumsum(lengths) - lengths
        records["info"] = binding << 4 | STT_FUNC
        records["section"] = 1
        records["value"] = symbols.rva
        found.append((SymbolTable(records, memoryview(strings), is_complete), 0))
    return found


def open_pe_lines(image: PeImage, directories: Sequence[Path], problems: list[str]) -> LineTable | None:
    """Names and lines from the image's PDB, else from its own DWARF, or None.

    directories: searched for the PDB first. What belongs to another build or cannot be read is named in `problems`.
    """
    entry = pe_tables.codeview(image.read, image.directory(pe.DEBUG))
    if is_chosen():
        return _ask_dbghelp(image, [*directories, image.path.parent, *_symbol_path()], bool(entry), problems)
    guid = str(uuid.UUID(bytes_le=entry[:16])) if entry else ""
    for path in _places(image, entry, directories) if entry else ():
        found = _open(path, problems)
        if found is None:
            continue
        if str(found.debug_id)[: len(guid)].lower() != guid:
            problems.append(f"{path} belongs to another build: its GUID is {str(found.debug_id)[: len(guid)]}")
            continue
        return _lines(path, found, problems, names_all=True)
    if any(section.name.startswith(_DWARF_SECTION) for section in image.sections):
        found = _open(image.path, problems)
        return _lines(image.path, found, problems) if found is not None else None
    return None


def _ask_dbghelp(image: PeImage, directories: Sequence[Path], has_pdb: bool, problems: list[str]) -> LineTable | None:
    if not has_pdb and not any(section.name.startswith(_DWARF_SECTION) for section in image.sections):
        return None
    try:
        return LineTable(DbgHelp(image.path, directories), 0, names_all=has_pdb)
    except ImageError as error:
        problems.append(str(error))
        return None


def _places(image: PeImage, entry: bytes, directories: Sequence[Path]) -> Iterator[Path]:
    """Files that may be the image's PDB."""
    named = PureWindowsPath(entry[20:].split(b"\0")[0].decode("utf-8", "replace")).name
    key = uuid.UUID(bytes_le=entry[:16]).hex.upper() + f"{int.from_bytes(entry[16:20], 'little'):X}"
    for directory in (*directories, image.path.parent, *_symbol_path()):
        for name in dict.fromkeys((named, f"{image.path.stem}.pdb")):
            for path in (directory / name, directory / name / key / name) if name else ():
                if path.is_file():
                    yield path


def _symbol_path() -> Iterator[Path]:
    for element in os.environ.get(SYMBOL_PATH, "").split(";"):
        head, *rest = element.split("*")
        parts = rest if head.lower() in _STORES else [element]
        yield from (Path(part) for part in parts if part and "://" not in part)


def _open(path: Path, problems: list[str]) -> Any:
    """symbolic's object for a file, or None."""
    try:
        if path.stat().st_size > MOST_DEBUG_BYTES:
            problems.append(f"{path}: no lines: it has {path.stat().st_size >> 20} MiB")
            return None
        # Not everywhere there is a build of it.
        from symbolic.debuginfo import Archive

        return Archive.open(str(path)).get_object(arch="x86_64")
    except Exception as error:  # symbolic raises many kinds, and panics of its own for what it did not foresee
        problems.append(f"{path}: no lines: {_first_line(error)}")
        return None


def _lines(path: Path, found: Any, problems: list[str], names_all: bool = False) -> LineTable | None:
    try:
        return LineTable(found.make_symcache(), 0, names_all)
    except Exception as error:
        problems.append(f"{path}: no lines: {_first_line(error)}")
        return None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

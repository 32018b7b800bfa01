"""Symbol tables of ELF files as arrays: .symtab, .dynsym, and the dynamic table's when there are no section headers.

Sources: System V gABI chapter 4 "Symbol Table" and chapter 5 "Hash Table"; the GNU hash section as in glibc.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callscope.binary import elf_headers as elf
from callscope.binary.dynamic import (
    DT_GNU_HASH,
    DT_HASH,
    DT_STRSZ,
    DT_STRTAB,
    DT_SYMTAB,
    DynamicTable,
    Mapped,
    mapped_bytes,
    whole_records,
)

STT_FUNC, STT_GNU_IFUNC = 2, 10
STB_LOCAL, STB_GLOBAL, STB_WEAK, STB_GNU_UNIQUE = 0, 1, 2, 10
SHN_UNDEF = 0
MOST_TABLES = 8

_COLD_NAME = re.compile(rb"\.cold(?:\.\d+)?\0")


@dataclass(frozen=True)
class SymbolTable:
    """records: elf_headers.SYMBOL[n] as in the file; strings: the string table their names are offsets in.

    is_complete: it lists local functions too, as .symtab does and .dynsym does not.
    """

    records: NDArray[np.void]
    strings: memoryview
    is_complete: bool

    def functions(self) -> NDArray[np.void]:
        """The records of functions defined in this file."""
        kinds = self.records["info"] & 0xF
        kept = ((kinds == STT_FUNC) | (kinds == STT_GNU_IFUNC)) & (self.records["section"] != SHN_UNDEF)
        records: NDArray[np.void] = self.records[kept]
        return records

    def is_cold(self, records: NDArray[np.void]) -> NDArray[np.bool_]:
        """Which of `records` are called `something.cold`: what GCC and LLVM name a part split off a function."""
        text = bytes(self.strings)
        # [first, last] of the name offsets that lead to each such ending.
        spans = [(text.rfind(b"\0", 0, m.start()) + 1, m.start()) for m in _COLD_NAME.finditer(text)]
        if not spans:
            return np.zeros(len(records), np.bool_)
        firsts, lasts = np.array(spans, np.int64).T
        names = records["name"].astype(np.int64)
        span = np.searchsorted(firsts, names, side="right") - 1
        cold: NDArray[np.bool_] = (span >= 0) & (names <= lasts[span])
        return cold


def section_tables(data: memoryview, tables: elf.Tables) -> list[SymbolTable]:
    """The symbol tables that section headers name, .symtab before .dynsym. Cut at the file's end."""
    found = []
    for kind in (elf.SHT_SYMTAB, elf.SHT_DYNSYM):
        for index in np.flatnonzero(tables.sections["type"] == kind)[:MOST_TABLES].tolist():
            section = tables.sections[index]
            link = int(section["link"])
            if link < len(tables.sections) and int(section["entry_size"]) == elf.SYMBOL.itemsize:
                records = whole_records(_contents(data, section), elf.SYMBOL)
                strings = _contents(data, tables.sections[link])
                found.append(SymbolTable(records, strings, kind == elf.SHT_SYMTAB))
    return found


def dynamic_table(
    data: memoryview, dynamic: DynamicTable, segments: Sequence[Mapped], low: int, at_least: int = 0
) -> SymbolTable:
    """The symbols the dynamic loader uses, found without section headers; `low` is the address rvas count from.

    Hash tables may leave out the symbols of other files: `at_least` so many there are.
    """
    tags = dynamic.tags
    strings = mapped_bytes(data, segments, tags.get(DT_STRTAB, 0) - low, tags.get(DT_STRSZ, 0))
    count = 0
    if DT_HASH in tags:
        head = mapped_bytes(data, segments, tags[DT_HASH] - low, 8)
        count = int.from_bytes(head[4:8], "little")
    elif DT_GNU_HASH in tags:
        count = _gnu_hash_symbols(mapped_bytes(data, segments, tags[DT_GNU_HASH] - low, len(data)))
    symbols = mapped_bytes(data, segments, tags.get(DT_SYMTAB, 0) - low, max(count, at_least) * elf.SYMBOL.itemsize)
    return SymbolTable(whole_records(symbols, elf.SYMBOL), strings, False)


def _contents(data: memoryview, section: np.void) -> memoryview:
    if int(section["type"]) == elf.SHT_NOBITS:
        return data[:0]
    return data[int(section["offset"]) : int(section["offset"]) + int(section["size"])]


def _gnu_hash_symbols(table: memoryview) -> int:
    """How many symbols a DT_GNU_HASH table covers: the chain of the highest bucket ends at the last symbol."""
    words: NDArray[Any] = whole_records(table, np.dtype("<u4"))
    if len(words) < 4:
        return 0
    bucket_count, first_symbol, bloom_words = (int(word) for word in words[:3])
    buckets = words[4 + 2 * bloom_words :][:bucket_count]
    highest = int(buckets.max()) if len(buckets) else 0
    if highest < first_symbol:
        return first_symbol
    chain = words[4 + 2 * bloom_words + bucket_count + highest - first_symbol :]
    ends = np.flatnonzero(chain & 1)
    return highest + 1 + int(ends[0]) if len(ends) else 0

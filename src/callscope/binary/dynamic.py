"""The dynamic table of an ELF file: names it asks for, and the code addresses its relocations store.

Sources: System V gABI chapter 5 (dynamic section, relocation), its RELR proposal (packed relative relocations), and the
x86-64 psABI, table "Relocation Types" and section "Procedure Linkage Table".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from callscope.binary import elf_headers as elf

DT_HASH, DT_GNU_HASH = 4, 0x6FFFFEF5
DT_NEEDED, DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ, DT_STRSZ, DT_SONAME = 1, 5, 6, 7, 8, 10, 14
DT_PLTRELSZ, DT_JMPREL, DT_RELRSZ, DT_RELR, DT_FLAGS_1 = 2, 23, 35, 36, 0x6FFFFFFB
DF_1_PIE = 0x08000000
R_64, R_GLOB_DAT, R_JUMP_SLOT, R_RELATIVE, R_IRELATIVE = 1, 6, 7, 8, 37
MOST_DYNAMIC_ENTRIES = 1 << 16
MOST_NEEDED = 4096
MOST_TABLES = 16
STUB_ALIGN = 16
PACKED_BATCH = 1 << 16


class Mapped(Protocol):
    """What of a segment is needed to find its bytes: `size` bytes from `offset` on lie at `rva`."""

    @property
    def rva(self) -> int:
        """Relative address of its first byte."""

    @property
    def size(self) -> int:
        """Bytes in the file."""

    @property
    def offset(self) -> int:
        """Place in the file."""


@dataclass(frozen=True)
class DynamicTable:
    """The facts used from a dynamic table; all empty when the file has none. tags: the first value of each tag."""

    tags: dict[int, int]
    needed: tuple[str, ...]
    name: str | None

    @property
    def is_pie(self) -> bool:
        """Whether the linker marked the file a position-independent executable."""
        return bool(self.tags.get(DT_FLAGS_1, 0) & DF_1_PIE)


@dataclass(frozen=True)
class Relocations:
    """What relocations say about code.

    pointer_targets: u8 rvas that they store, of code or data, in no order, repeated or not. jump_slots: sorted u8 rvas
    of the slots that the procedure linkage table jumps through. slots, slot_symbols: rvas (u8) of all words that take
    the address of a symbol of another or this file, and the symbols' numbers (u8), in parallel.
    """

    pointer_targets: NDArray[np.uint64]
    jump_slots: NDArray[np.uint64]
    slots: NDArray[np.uint64]
    slot_symbols: NDArray[np.uint64]


def read_dynamic(data: memoryview, tables: elf.Tables, segments: Sequence[Mapped], low: int) -> DynamicTable:
    """Read PT_DYNAMIC; `low` is the address all rvas count from. Strings outside the string table are empty."""
    entries = _entries(data, tables.programs)
    tags: dict[int, int] = {}
    for tag, value in entries:
        tags.setdefault(tag, value)
    strings = mapped_bytes(data, segments, tags.get(DT_STRTAB, 0) - low, tags.get(DT_STRSZ, 0))
    names = [value for tag, value in entries if tag == DT_NEEDED][:MOST_NEEDED]
    return DynamicTable(
        tags=tags,
        needed=tuple(elf.string_at(strings, name) for name in names),
        name=elf.string_at(strings, tags[DT_SONAME]) if DT_SONAME in tags else None,
    )


def read_relocations(
    data: memoryview, sections: NDArray[np.void], dynamic: DynamicTable, segments: Sequence[Mapped], low: int
) -> Relocations:
    """Read the relocation tables that `dynamic` names; of a file without a dynamic table those of its `sections`.

    Tables that leave the file are cut at its end, addresses that no segment maps are ignored.
    """

    def table(address_tag: int, size_tag: int) -> memoryview:
        return mapped_bytes(data, segments, dynamic.tags.get(address_tag, 0) - low, dynamic.tags.get(size_tag, 0))

    pieces = [table(DT_RELA, DT_RELASZ), table(DT_JMPREL, DT_PLTRELSZ)]
    if not dynamic.tags:
        # Static programs relocate themselves; only their section headers say where the relocations are.
        kept = (sections["flags"] & elf.SHF_ALLOC != 0) & (sections["type"] == elf.SHT_RELA)
        pieces += [data[int(s["offset"]) : int(s["offset"]) + int(s["size"])] for s in sections[kept][:MOST_TABLES]]
    relocations = np.concatenate([whole_records(piece, elf.RELOCATION) for piece in pieces])
    packed = whole_records(table(DT_RELR, DT_RELRSZ), np.dtype("<u8"))
    symbols = dynamic.tags.get(DT_SYMTAB, 0) - low
    targets = [_targets(data, segments, symbols, relocations), _packed_targets(data, segments, packed, low)]
    kinds = relocations["info"] & 0xFFFFFFFF
    named = relocations[(kinds == R_JUMP_SLOT) | (kinds == R_GLOB_DAT)]
    return Relocations(
        np.concatenate(targets) - np.uint64(low),
        np.unique(relocations["offset"][kinds == R_JUMP_SLOT]) - np.uint64(low),
        named["offset"] - np.uint64(low),
        named["info"] >> np.uint64(32),
    )


def mapped_bytes(data: memoryview, segments: Sequence[Mapped], rva: int, size: int) -> memoryview:
    """Up to `size` bytes of the file as mapped at `rva`; fewer where the segment's bytes end, none outside all."""
    for segment in segments:
        if segment.rva <= rva < segment.rva + segment.size:
            start = segment.offset + rva - segment.rva
            return data[start : start + min(size, segment.rva + segment.size - rva)]
    return data[:0]


def whole_records(piece: memoryview, dtype: np.dtype[Any]) -> NDArray[Any]:
    """`piece` as an array of `dtype`, without an incomplete last record."""
    return np.frombuffer(piece, dtype, len(piece) // dtype.itemsize)


def find_plt_stubs(code: memoryview, rva: int, slots: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """Runs of procedure linkage table stubs in `code`, whose first byte is at `rva`: (first rva, rva after the last).

    A stub is a 16-byte block holding `jmp [rip + displacement]` through one of `slots`; the common first stub, which
    pushes instead, belongs to the run that follows it.
    """
    raw = np.frombuffer(code, np.uint8)
    if len(raw) < STUB_ALIGN or len(slots) == 0:
        return []
    jumps = np.flatnonzero((raw[:-5] == 0xFF) & (raw[1:-4] == 0x25))
    displacement = np.ascontiguousarray(raw[jumps[:, None] + np.arange(2, 6)]).view("<i4").ravel()
    targets = (rva + jumps + 6 + displacement).astype(np.uint64)
    blocks = np.unique((rva + jumps[np.isin(targets, slots)]) // STUB_ALIGN)
    if len(blocks) == 0:
        return []
    breaks = np.flatnonzero(np.diff(blocks) > 1)
    firsts = blocks[np.concatenate([[0], breaks + 1])].tolist()
    lasts = blocks[np.concatenate([breaks, [len(blocks) - 1]])].tolist()
    found = []
    for first, last in zip(firsts, lasts, strict=True):
        start = first * STUB_ALIGN
        before = start - STUB_ALIGN - rva
        if before >= 0 and bytes(code[before : before + 2]) == b"\xff\x35":
            start -= STUB_ALIGN
        found.append((max(start, rva), min((last + 1) * STUB_ALIGN, rva + len(raw))))
    return found


def _entries(data: memoryview, programs: NDArray[np.void]) -> list[tuple[int, int]]:
    """The (tag, value) pairs of PT_DYNAMIC up to DT_NULL."""
    found = programs[programs["type"] == elf.PT_DYNAMIC]
    if len(found) == 0:
        return []
    start = int(found[0]["offset"])
    piece = data[start : start + min(int(found[0]["file_size"]), MOST_DYNAMIC_ENTRIES * 16)]
    pairs = np.frombuffer(piece, "<u8", len(piece) // 16 * 2).reshape(-1, 2).tolist()
    end = next((index for index, (tag, _) in enumerate(pairs) if tag == 0), len(pairs))
    return [(tag, value) for tag, value in pairs[:end]]


def _targets(
    data: memoryview, segments: Sequence[Mapped], symbol_table: int, relocations: NDArray[np.void]
) -> NDArray[np.uint64]:
    """The addresses that `relocations` store, as far as this file alone decides them."""
    kinds = relocations["info"] & 0xFFFFFFFF
    addends: NDArray[np.uint64] = relocations["addend"].astype(np.uint64)
    fixed: NDArray[np.uint64] = addends[(kinds == R_RELATIVE) | (kinds == R_IRELATIVE)]
    named = (kinds == R_64) | (kinds == R_GLOB_DAT) | (kinds == R_JUMP_SLOT)
    indices = relocations["info"][named] >> np.uint64(32)
    if len(indices) == 0:
        return fixed
    size = (int(indices.max()) + 1) * elf.SYMBOL.itemsize
    symbols = whole_records(mapped_bytes(data, segments, symbol_table, size), elf.SYMBOL)
    values: NDArray[np.uint64] = symbols["value"]
    known = indices < len(values)
    addend = np.where(kinds[named] == R_64, addends[named], np.uint64(0))
    return np.concatenate([fixed, values[indices[known]] + addend[known]])


def _packed_targets(
    data: memoryview, segments: Sequence[Mapped], entries: NDArray[np.uint64], low: int
) -> NDArray[np.uint64]:
    """The addresses that RELR relocations store: the words they point at.

    An even entry is the address of a word to relocate; an odd one is a bit map of the 63 words after the last word
    covered (gABI, "Relocation Table", SHT_RELR).
    """
    found = [np.empty(0, np.uint64)]
    is_map = entries & 1 == 1
    index = np.arange(len(entries))
    last_address = np.maximum.accumulate(np.where(is_map, -1, index))
    for start in range(0, len(entries), PACKED_BATCH):
        part = slice(start, start + PACKED_BATCH)
        mapped = is_map[part] & (last_address[part] >= 0)
        places = [entries[part][~is_map[part]]]
        bits = np.unpackbits(entries[part][mapped].view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")[:, 1:]
        rows, columns = np.nonzero(bits)
        since = (index[part] - last_address[part] - 1)[mapped].astype(np.uint64)
        firsts = entries[last_address[part][mapped]] + np.uint64(8) + since * np.uint64(63 * 8)
        places.append(firsts[rows] + columns.astype(np.uint64) * np.uint64(8))
        found.append(_words_at(data, segments, np.concatenate(places) - np.uint64(low)))
    return np.concatenate(found)


def _words_at(data: memoryview, segments: Sequence[Mapped], rvas: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The 8-byte words mapped at `rvas`, in any order, without those that no segment maps; each value once."""
    raw = np.frombuffer(data, np.uint8)
    found = [np.empty(0, np.uint64)]
    for segment in segments:
        if segment.size < 8:
            continue
        inside = rvas[(rvas >= segment.rva) & (rvas <= segment.rva + segment.size - 8)].astype(np.int64)
        places = inside + (segment.offset - segment.rva)
        found.append(np.unique(raw[places[:, None] + np.arange(8)].view("<u8").ravel()))
    return np.concatenate(found)

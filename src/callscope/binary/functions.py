"""The functions of an image: what can be entered by a call, and the parts that compilers split off them.

They come from call frame information, which stripped files keep too; from symbols, for code without it; and from the
targets of direct calls, for code with neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callscope.binary.cfi import CFA_RSP, FRAME_COLD, FRAME_SIGNAL, FrameTable
from callscope.binary.image import Image, joined_ranges
from callscope.binary.open import unwinding

HAS_FDE = 1
"""call frame information covers it"""
SIGNAL_FRAME = 2
"""the return trampoline of signal handlers: entered by the kernel"""
NOP = 0x90
COLD = 4
"""a part of another function: its first CFA is not rsp + 8, or its symbol is called `something.cold`"""
FROM_SYMBOL = 8
"""its start was found in a symbol table only"""
NO_SIZE = 16
"""nothing says where it ends: it was given everything up to the next function"""
_ALIGNMENT = 16
_PADDING = b"\xcc"
LONGEST_LEAF = 1 << 16
"""bytes of a function without unwind information that are looked at for its end"""
NAMED = 32
"""a function symbol stands at its start, and does not call it cold"""


@dataclass(frozen=True)
class FunctionTable:
    """The functions of an image, sorted by address; they do not overlap.

    rva, size: u4[n], sizes above 0. flags: u4[n] of HAS_FDE, SIGNAL_FRAME, COLD, FROM_SYMBOL, NO_SIZE, NAMED. entry:
    i8[n], index of the frame description entry that covers it, or -1.
    """

    rva: NDArray[np.uint32]
    size: NDArray[np.uint32]
    flags: NDArray[np.uint32]
    entry: NDArray[np.int64]

    @property
    def has_fde(self) -> NDArray[np.bool_]:
        """Which have call frame information."""
        return self._having(HAS_FDE)

    @property
    def signal_frame(self) -> NDArray[np.bool_]:
        """Which are return trampolines of signal handlers."""
        return self._having(SIGNAL_FRAME)

    @property
    def cold(self) -> NDArray[np.bool_]:
        """Which are parts split off other functions, as far as frame information and names tell."""
        return self._having(COLD)

    @property
    def from_symbol(self) -> NDArray[np.bool_]:
        """Which start where only a symbol says so."""
        return self._having(FROM_SYMBOL)

    @property
    def named(self) -> NDArray[np.bool_]:
        """Which have a function symbol of their own."""
        return self._having(NAMED)

    @property
    def no_size(self) -> NDArray[np.bool_]:
        """Which end where the next one starts for want of knowledge."""
        return self._having(NO_SIZE)

    def _having(self, flag: int) -> NDArray[np.bool_]:
        having: NDArray[np.bool_] = self.flags & flag != 0
        return having

    def index_at(self, rvas: NDArray[Any]) -> NDArray[np.int64]:
        """For each rva the index of the function that contains it, or -1."""
        found = np.searchsorted(self.rva, rvas, side="right") - 1
        if len(self.rva) == 0:
            return found
        offset = np.asarray(rvas).astype(np.int64) - self.rva[found]
        return np.where((found >= 0) & (offset < self.size[found]), found, -1)


@dataclass(frozen=True)
class _Symbols:
    """Function symbols in code, sorted by address, one for each (the largest); cold: by name."""

    rva: NDArray[np.int64]
    size: NDArray[np.int64]
    cold: NDArray[np.bool_]


@dataclass(frozen=True)
class _Spans:
    """Functions being collected: columns of FunctionTable, int64, any order."""

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    flags: NDArray[np.int64]
    entry: NDArray[np.int64]


def find_functions(
    image: Image, extra_targets: NDArray[Any] | None = None, frames: FrameTable | None = None
) -> FunctionTable:
    """Find the image's functions.

    extra_targets: rvas of direct calls; those outside every other function start functions of their own.
    frames: what `unwinding(image).frames` gave, to save doing it again.
    Stubs of the procedure linkage table are no functions. Raises ImageError as `frame_table` does.
    """
    frames = unwinding(image).frames if frames is None else frames
    symbols = _function_symbols(image)
    covered = _from_frames(image, frames)
    covered = _split(covered, symbols, frames)
    known = _join([covered, _from_symbols(image, covered, symbols)])
    starts = [symbols.rva[symbols.size == 0], np.array([image.entry], np.int64)]
    if extra_targets is not None:
        starts.append(_in_code(image, np.asarray(extra_targets).astype(np.int64)))
    spans = _join([known, _unsized(image, known, _in_code(image, np.concatenate(starts)), symbols)])
    flags = spans.flags | np.where(np.isin(spans.start, symbols.rva[symbols.cold]), COLD, 0)
    flags |= np.where(np.isin(spans.start, symbols.rva[~symbols.cold]), NAMED, 0)
    return FunctionTable(
        spans.start.astype(np.uint32), (spans.end - spans.start).astype(np.uint32), flags.astype(np.uint32), spans.entry
    )


def _function_symbols(image: Image) -> _Symbols:
    """All symbols of functions in code."""
    found = image.function_symbols()
    rva, size, cold = found.rva, found.size, found.is_cold
    order = np.lexsort((-size, rva))
    order = order[np.isin(rva[order], _in_code(image, rva))]
    rva, first = np.unique(rva[order], return_index=True)
    # A part keeps its own name: it is cold only if all its names say so.
    named = np.logical_and.reduceat(cold[order], first) if len(first) else np.empty(0, np.bool_)
    return _Symbols(rva, size[order][first], named)


def _in_code(image: Image, rvas: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of `rvas` in code sections and not in procedure linkage tables."""
    inside: NDArray[np.int64] = rvas[(rvas >= 0) & (rvas < image.span)]
    stubs = joined_ranges(list(image.plt_ranges))
    kept = image.in_code(inside) & (np.searchsorted(stubs, inside, side="right") % 2 == 0)
    found: NDArray[np.int64] = inside[kept]
    return found


def _from_frames(image: Image, frames: FrameTable) -> _Spans:
    """One function for each frame description entry in code; an entry that runs into the next ends there."""
    all_starts = frames.fdes["start"].astype(np.int64)
    kept = np.flatnonzero(np.isin(all_starts, _in_code(image, all_starts)))
    fdes = frames.fdes[kept]
    start = all_starts[kept]
    end = np.minimum(start + fdes["size"], _section_ends(image, start))
    end[:-1] = np.minimum(end[:-1], start[1:])
    flags = np.full(len(start), HAS_FDE, np.int64)
    flags |= np.where(fdes["flags"] & FRAME_SIGNAL, SIGNAL_FRAME, 0)
    flags |= np.where((fdes["flags"] & FRAME_COLD != 0) | _is_behind_nop(image, frames, start), COLD, 0)
    return _Spans(start, end, flags, kept)


def _is_behind_nop(image: Image, frames: FrameTable, starts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which entries begin with a nop behind which the stack is not as a call leaves it, though a nop does not move it.

    GCC puts one before a landing pad that would be the first byte of its part, for a pad at 0 means that there is none.
    """
    rows = frames.rows[np.maximum(frames.rows_at(starts + 1), 0)]
    found: NDArray[np.bool_] = (rows["cfa_kind"] != CFA_RSP) | (rows["cfa_offset"] != 8)
    for section in image.code_sections:
        code = np.frombuffer(image.section_data(section), np.uint8)
        inside = (starts >= section.rva) & (starts < section.rva + len(code))
        found[inside] &= code[starts[inside] - section.rva] == NOP
    return found


def _section_ends(image: Image, rvas: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each rva in code the end of its section."""
    sections = image.code_sections
    ends = np.array([section.rva + section.file_size for section in sections], np.int64)
    starts = np.array([section.rva for section in sections], np.int64)
    ends = np.maximum.accumulate(ends)
    return ends[np.searchsorted(starts, rvas, side="right") - 1] if len(ends) else np.empty(0, np.int64)


def _split(covered: _Spans, symbols: _Symbols, frames: FrameTable) -> _Spans:
    """Split entries that cover several functions, as in hand-written assembly, at the symbols inside them.

    A symbol starts a function of its own where it has a size, the symbols before it in the entry end before it (else it
    is a second way into the same function), and the stack is as a call leaves it. Each piece reaches up to the next, so
    that no code gets lost.
    """
    owner = np.searchsorted(covered.start, symbols.rva, side="right") - 1
    if len(covered.start) == 0:
        return covered
    end = np.minimum(symbols.rva + symbols.size, covered.end[owner])
    inside = (owner >= 0) & (symbols.rva < covered.end[owner]) & (symbols.size > 0)
    # How far the symbols before reach; none reaches out of its entry.
    before = np.concatenate([[0], np.maximum.accumulate(np.where(inside, end, 0))[:-1]])
    strict = inside & (symbols.rva > covered.start[owner]) & (before <= symbols.rva)
    strict &= covered.flags[owner] & (SIGNAL_FRAME | COLD) == 0
    row = frames.rows[np.maximum(frames.rows_at(symbols.rva), 0)]
    strict &= (row["cfa_kind"] == CFA_RSP) & (row["cfa_offset"] == 8)
    inner = np.flatnonzero(strict)
    start = np.concatenate([covered.start, symbols.rva[inner]])
    parent = np.concatenate([np.arange(len(covered.start)), owner[inner]])
    flags = np.concatenate([covered.flags, np.full(len(inner), HAS_FDE | FROM_SYMBOL)])
    order = np.argsort(start, kind="stable")
    start, parent, flags = start[order], parent[order], flags[order]
    end = covered.end[parent]
    end[:-1] = np.minimum(end[:-1], start[1:])
    return _Spans(start, end, flags, covered.entry[parent])


def _from_symbols(image: Image, covered: _Spans, symbols: _Symbols) -> _Spans:
    """Functions of symbols with sizes where no entry is; those inside another symbol's function are left out."""
    sized = symbols.size > 0
    start = symbols.rva[sized]
    end = np.minimum(start + symbols.size[sized], _section_ends(image, start))
    owner = np.searchsorted(covered.start, start, side="right") - 1
    next_start = np.append(covered.start, np.iinfo(np.int64).max)[owner + 1]
    free = (owner < 0) | (np.append(covered.end, 0)[owner] <= start)
    start, end = start[free], np.minimum(end, next_start)[free]
    if len(start):
        reach = np.maximum.accumulate(end)
        outer = np.concatenate([[True], start[1:] >= reach[:-1]])
        start, end = start[outer], end[outer]
    return _Spans(start, end, np.full(len(start), FROM_SYMBOL), np.full(len(start), -1))


def _unsized(image: Image, known: _Spans, starts: NDArray[np.int64], symbols: _Symbols) -> _Spans:
    """Functions at `starts`, as far as no known one is there, each up to the next start or its section's end."""
    starts = np.unique(starts)
    owner = np.searchsorted(known.start, starts, side="right") - 1
    free = (owner < 0) | (np.append(known.end, 0)[owner] <= starts)
    starts = starts[free]
    all_starts = np.concatenate([np.sort(np.concatenate([known.start, starts])), [np.iinfo(np.int64).max]])
    following = all_starts[np.searchsorted(all_starts, starts, side="right")]
    end = np.minimum(following, _section_ends(image, starts))
    if image.is_pe:
        from callscope.binary.edges import flow_end  # it brings the decoder, which readers of traces seldom need

        end = np.minimum(end, starts + LONGEST_LEAF)
        end = np.array([flow_end(image, *span) for span in zip(starts.tolist(), end.tolist(), strict=True)], np.int64)
        starts, end = starts[end > starts], end[end > starts]
    flags = np.where(np.isin(starts, symbols.rva), FROM_SYMBOL | NO_SIZE, NO_SIZE)
    return _Spans(starts, end, flags, np.full(len(starts), -1))


def likely_starts(image: Image, table: FunctionTable, rvas: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Those of `rvas`, which pointers or jumps lead to, where a function without unwind information seems to begin.

    It lies outside those of `table`, on a 16-byte boundary, first or behind padding or a function, and its code ends in
    front of padding or a boundary: data in the code does not look so.
    """
    from callscope.binary.edges import flow_end

    places = np.unique(rvas[rvas % _ALIGNMENT == 0]).astype(np.int64)
    places = _in_code(image, places[table.index_at(places) < 0])
    bounds = np.append(table.rva.astype(np.int64), np.iinfo(np.int64).max)
    limits = np.minimum(bounds[np.searchsorted(bounds, places)], _section_ends(image, places))
    first = {section.rva for section in image.code_sections}
    found = []
    for rva, limit in zip(places.tolist(), limits.tolist(), strict=True):
        before = table.index_at(np.array([rva - 1]))[0]
        behind = rva in first or image.read(rva - 1, 1) == _PADDING or before >= 0
        end = flow_end(image, rva, min(limit, rva + LONGEST_LEAF)) if behind else rva
        if end > rva and (end % _ALIGNMENT == 0 or image.read(end, 1) == _PADDING):
            found.append(rva)
    return np.array(found, np.uint32)


def _join(parts: list[_Spans]) -> _Spans:
    """All spans, sorted by start."""
    start = np.concatenate([part.start for part in parts])
    order = np.argsort(start, kind="stable")
    return _Spans(
        start[order],
        np.concatenate([part.end for part in parts])[order],
        np.concatenate([part.flags for part in parts])[order],
        np.concatenate([part.entry for part in parts])[order],
    )

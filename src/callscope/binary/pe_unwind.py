"""Unwind information of PE files: where each function's frame is, and where exceptions are handled.

Source: Microsoft, "x64 exception handling" (learn.microsoft.com/cpp/build/exception-handling-x64): RUNTIME_FUNCTION,
UNWIND_INFO, UNWIND_CODE. Addresses are relative to the image's base.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from callscope.binary.cfi import (
    CFA_RBP,
    CFA_REGISTER,
    CFA_RSP,
    CFA_UNKNOWN,
    FDE,
    FRAME_COLD,
    FRAME_DAMAGED,
    RETURN_ADDRESS,
    ROW,
    SAVED_SAME,
    SAVED_UNKNOWN,
    FrameTable,
    LandingPads,
    landing_pads,
)
from callscope.binary.pe import PeImage, pe_functions

PUSH, ALLOC_LARGE, ALLOC_SMALL, SET_FRAME, SAVE, SAVE_FAR, EPILOGUE, SPARE, SAVE_XMM, SAVE_XMM_FAR, MACHINE_FRAME = (
    range(11)
)
_SLOTS = {PUSH: 1, ALLOC_SMALL: 1, SET_FRAME: 1, SAVE: 2, SAVE_FAR: 3, EPILOGUE: 1, SAVE_XMM: 2, SAVE_XMM_FAR: 3}
HAS_HANDLER, IS_CHAINED = 3, 4
"""UNWIND_INFO.Flags: EHANDLER | UHANDLER, CHAININFO"""
_MOST_LINKS = 32
_MOST_SCOPES = 4096
_OMIT, _ULEB = 0xFF, 0x01
_TYPE_ENCODINGS = frozenset({0x00, 0x03, 0x0B, 0x1B, 0x9B, _OMIT})
_RBP = 5
_CALLEE_SAVED = (3, 5, 12, 13, 14, 15)
"""rbx, rbp, r12 to r15"""
_UNKNOWN = (CFA_UNKNOWN, 255, 0, *(SAVED_SAME,) * len(_CALLEE_SAVED))
# x64 register numbers (as instructions encode them) -> DWARF's (System V ABI for x86-64, figure 3.36)
_DWARF = (0, 2, 1, 3, 7, 6, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15)


@dataclass(frozen=True, slots=True)
class UnwindCode:
    """One unwind operation: offset behind its instruction, operation, operand `info`, and its bytes in the file.

    `size`: bytes by which it moves the stack pointer down.
    """

    offset: int
    operation: int
    info: int
    raw: bytes
    size: int


@dataclass(frozen=True, slots=True)
class UnwindInfo:
    """One UNWIND_INFO. codes: in the order of unwinding, without EPILOGUE. frame: frame register and scaled offset, the
    byte as in the file. handler, handler_data: rvas, 0 for none; chained: the RUNTIME_FUNCTION it goes on with.
    """

    prologue: int
    frame: int
    codes: tuple[UnwindCode, ...]
    handler: int
    handler_data: int
    chained: tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class Fragment:
    """One RUNTIME_FUNCTION with what it says; `primary`: begin of the function it is a part of, else its own."""

    begin: int
    end: int
    unwind: int
    info: UnwindInfo
    primary: int


class Readable(Protocol):
    """What lies at addresses relative to an image's base."""

    def read(self, rva: int, size: int) -> bytes:
        """Up to `size` bytes from `rva` on."""


@dataclass(frozen=True)
class Beside:
    """Code that was put `delta` bytes from an image's base, with RUNTIME_FUNCTIONs of its own at `table` in `data`,
    which may be chained to the image's. Addresses are relative to the image's base.
    """

    image: PeImage
    delta: int
    data: bytes
    table: int
    table_bytes: int

    def read(self, rva: int, size: int) -> bytes:
        """As `PeImage.read`, of both."""
        start = rva - self.delta
        return self.data[start : start + size] if 0 <= start < len(self.data) else self.image.read(rva, size)

    @property
    def functions(self) -> NDArray[np.int64]:
        """As `pe_functions`. They come from a plan, which is whole."""
        words = self.data[self.table : self.table + self.table_bytes // 12 * 12]
        return np.frombuffer(words, "<u4").reshape(-1, 3).astype(np.int64)


class UnwindTable:
    """The functions of an image's exception directory, or of code beside it. `fragments` are sorted; `damaged` are
    (begin, end) of those that cannot be read.
    """

    def __init__(self, image: PeImage, beside: Beside | None = None) -> None:
        self._image = image
        self._data: Readable = beside or image
        self._known: dict[int, UnwindInfo | None] = {}
        self._states: dict[tuple[int, int, int] | None, _State] = {}
        self.fragments: list[Fragment] = []
        self.damaged: list[tuple[int, int]] = []
        functions = beside.functions if beside else pe_functions(image)
        for begin, end, unwind in functions.tolist():
            found = self._resolve(begin, end, unwind)
            primary = None if found is None else self._primary(begin, found[1])
            if found is None or primary is None:
                self.damaged.append((begin, end))
            else:
                self.fragments.append(Fragment(begin, end, *found, primary))

    def _resolve(self, begin: int, end: int, unwind: int) -> tuple[int, UnwindInfo] | None:
        """The UNWIND_INFO of an entry, which may name another entry instead (lowest bit set)."""
        for _ in range(_MOST_LINKS):
            if not unwind & 1:
                info = self._info(unwind)
                return None if info is None else (unwind, info)
            raw = self._data.read(unwind & ~1, 12)
            if len(raw) < 12:
                return None
            unwind = int.from_bytes(raw[8:], "little")
        return None

    def _primary(self, begin: int, info: UnwindInfo) -> int | None:
        for _ in range(_MOST_LINKS):
            if info.chained is None:
                return begin
            begin = info.chained[0]
            found = self._resolve(*info.chained)
            if found is None:
                return None
            info = found[1]
        return None

    def _info(self, rva: int) -> UnwindInfo | None:
        if rva not in self._known:
            self._known[rva] = read_unwind_info(self._data, rva)
        return self._known[rva]

    def whole_codes(self, info: UnwindInfo) -> list[UnwindCode]:
        """All operations in effect in a fragment's body, those of the fragments it is chained to included."""
        codes = list(info.codes)
        for _ in range(_MOST_LINKS):
            found = None if info.chained is None else self._resolve(*info.chained)
            if found is None:
                break
            info = found[1]
            codes += info.codes
        return codes

    def _before(self, chained: tuple[int, int, int] | None) -> _State:
        """The frame that a fragment chained to an entry begins with."""
        if chained not in self._states:
            state = _State()
            found = None if chained is None else self._resolve(*chained)
            for code in reversed(self.whole_codes(found[1])) if found else ():
                state.apply(code, found[1].frame if found else 0)
            self._states[chained] = state
        return self._states[chained]

    @cached_property
    def frames(self) -> FrameTable:
        """The same as call frame information: one entry a function, with the fragments that follow it immediately.

        A fragment elsewhere has an entry of its own, FRAME_COLD. Rows tell of prologues and bodies, not of epilogues,
        which this unwind information does not describe.
        """
        entries: list[tuple[int, int, int]] = []
        first_rows: list[int] = []
        rows: list[tuple[int, ...]] = []
        owner = -1
        for fragment in self.fragments:
            changes = self._rows(fragment)
            begin = fragment.begin + self._padding(fragment)
            if begin == fragment.end:
                continue
            if entries and fragment.primary == owner and entries[-1][1] == fragment.begin and fragment.info.chained:
                entries[-1] = (entries[-1][0], fragment.end, entries[-1][2])
            else:
                owner = fragment.primary
                cold = fragment.primary != fragment.begin or changes[0][1:4] != (CFA_RSP, 7, 8)
                entries.append((begin, fragment.end, FRAME_COLD if cold else 0))
                first_rows.append(len(rows))
                changes[0] = (begin, *changes[0][1:])
            rows += changes
        whole = len(entries)
        entries += [(begin, end, FRAME_DAMAGED) for begin, end in self.damaged]
        first_rows += range(len(rows), len(rows) + len(self.damaged))
        rows += [(begin, *_UNKNOWN) for begin, _ in self.damaged]
        return _table(entries, first_rows, rows, whole)

    def _padding(self, fragment: Fragment) -> int:
        """Bytes of int3 that an entry begins with: V8's tables begin before the code they mean."""
        size = 0
        while fragment.begin + size < fragment.end and self._data.read(fragment.begin + size, 1) == b"\xcc":
            size += 1
        return size

    def _rows(self, fragment: Fragment) -> list[tuple[int, ...]]:
        """(rva, and what `_State.row` says) where the frame changes in a fragment; the first at its begin."""
        info = fragment.info
        state = copy(self._before(info.chained))
        rows = {fragment.begin: state.row()}
        for code in reversed(info.codes):
            state.apply(code, info.frame)
            rows[fragment.begin + code.offset] = state.row()
        return [(rva, *row) for rva, row in sorted(rows.items()) if rva < fragment.end]

    def landing_pads(self) -> LandingPads:
        """As `handler_targets`."""
        return handler_targets(self._image, self)

    def owners(self) -> dict[int, int]:
        """begin of each fragment that is a part of another function -> begin of that function."""
        return {f.begin: f.primary for f in self.fragments if f.primary != f.begin}


class _State:
    """Where the canonical frame address is, while the operations of a prologue are applied in order."""

    def __init__(self) -> None:
        self.depth = 8
        self.frame: tuple[int, int] | None = None
        self.known = True
        self.saved: tuple[int, ...] = (SAVED_SAME,) * len(_CALLEE_SAVED)

    def apply(self, code: UnwindCode, frame: int) -> None:
        self.depth += code.size
        if code.operation == SET_FRAME:
            self.frame = (frame & 15, self.depth - (frame >> 4) * 16)
        elif code.operation == MACHINE_FRAME:
            self.known = False
        elif code.operation in (PUSH, SAVE, SAVE_FAR) and code.info in _CALLEE_SAVED:
            operand = int.from_bytes(code.raw[2:], "little") * (8 if code.operation == SAVE else 1)
            saved = list(self.saved)
            saved[_CALLEE_SAVED.index(code.info)] = (0 if code.operation == PUSH else operand) - self.depth
            self.saved = tuple(saved)

    def row(self) -> tuple[int, ...]:
        """CFA_*, DWARF register, offset, and where the registers of _CALLEE_SAVED are, from the frame address."""
        if not self.known:
            return CFA_UNKNOWN, 255, 0, *self.saved
        if self.frame is None:
            return CFA_RSP, 7, self.depth, *self.saved
        register, offset = self.frame
        return (CFA_RBP if register == _RBP else CFA_REGISTER), _DWARF[register], offset, *self.saved


def _table(
    entries: list[tuple[int, int, int]], first_rows: list[int], rows: list[tuple[int, ...]], whole: int
) -> FrameTable:
    fdes = np.zeros(len(entries), FDE)
    columns = np.array(entries, np.int64).reshape(-1, 3)
    fdes["start"], fdes["size"], fdes["flags"] = columns[:, 0], columns[:, 1] - columns[:, 0], columns[:, 2]
    fdes["first_row"] = first_rows
    fdes["row_count"] = np.diff(np.append(first_rows, len(rows)))
    table = np.zeros(len(rows), ROW)
    values = np.array(rows, np.int64).reshape(-1, 4 + len(_CALLEE_SAVED))
    for index, name in enumerate(("rva", "cfa_kind", "cfa_register", "cfa_offset")):
        table[name] = values[:, index]
    table["saved"][:, :RETURN_ADDRESS] = values[:, 4:]
    table["saved"][:, RETURN_ADDRESS] = SAVED_UNKNOWN
    if whole == len(entries):
        return FrameTable(fdes, table)
    # Rows go with their entries.
    order = np.argsort(fdes["start"], kind="stable")
    pieces = [table[f["first_row"] : f["first_row"] + f["row_count"]] for f in fdes[order]]
    fdes = fdes[order]
    fdes["first_row"] = np.concatenate([[0], np.cumsum(fdes["row_count"])[:-1]])
    return FrameTable(fdes, np.concatenate(pieces))


def read_unwind_info(image: Readable, rva: int) -> UnwindInfo | None:
    """The UNWIND_INFO at `rva`, or None when it is cut short or says what no version knows."""
    head = image.read(rva, 4)
    if len(head) < 4 or head[0] & 7 not in (1, 2):
        return None
    flags, prologue, count, frame = head[0] >> 3, head[1], head[2], head[3]
    raw = image.read(rva + 4, 2 * count)
    if len(raw) < 2 * count:
        return None
    codes = _codes(raw)
    after = rva + 4 + 2 * (count + (count & 1))
    tail = image.read(after, 12)
    if codes is None or (flags & IS_CHAINED and len(tail) < 12) or (flags & HAS_HANDLER and len(tail) < 4):
        return None
    words = [int.from_bytes(tail[at : at + 4], "little") for at in (0, 4, 8)]
    if flags & IS_CHAINED:
        return UnwindInfo(prologue, frame, codes, 0, 0, (words[0], words[1], words[2]))
    if flags & HAS_HANDLER:
        return UnwindInfo(prologue, frame, codes, words[0], after + 4, None)
    return UnwindInfo(prologue, frame, codes, 0, 0, None)


def _codes(raw: bytes) -> tuple[UnwindCode, ...] | None:
    found = []
    at = 0
    while at < len(raw):
        offset, operation, info = raw[at], raw[at + 1] & 15, raw[at + 1] >> 4
        slots = (2 if info == 0 else 3) if operation == ALLOC_LARGE else _SLOTS.get(operation, 0)
        if operation == MACHINE_FRAME:
            slots = 1
        code = raw[at : at + 2 * slots]
        if not slots or len(code) < 2 * slots:
            return None
        at += 2 * slots
        if operation == EPILOGUE:
            continue
        operand = int.from_bytes(code[2:], "little")
        size = {
            PUSH: 8,
            ALLOC_SMALL: 8 * info + 8,
            ALLOC_LARGE: operand * 8 if info == 0 else operand,
            MACHINE_FRAME: 40 + 8 * info,
        }.get(operation, 0)
        found.append(UnwindCode(offset, operation, info, code, size))
    return tuple(found)


def _is_exception_table(head: bytes) -> bool:
    """Whether an LSDA (Itanium C++ ABI) may begin so: no own start, a usual type encoding, ULEB128 call sites."""
    if len(head) < 16 or head[0] != _OMIT or head[1] not in _TYPE_ENCODINGS:
        return False
    at = 2
    while head[1] != _OMIT and at < len(head) - 2 and head[at] & 0x80:
        at += 1
    return head[at + (head[1] != _OMIT)] == _ULEB


def handler_targets(image: PeImage, table: UnwindTable) -> LandingPads:
    """Where functions go on after an exception, besides handlers that are functions of their own.

    Nothing marks which handler a function has, so the data behind it is read for what it can be: the scope table of
    __C_specific_handler (a count, then begin, end, filter, target), when all of its ranges lie in the function; else
    the exception table (LSDA) of __gxx_personality_seh0, when it begins as GCC and LLVM begin them. `unreadable` are
    the indices of entries whose unwind information is damaged, `guarded` the ranges of scope tables.
    """
    fdes = table.frames.fdes.copy()
    found = [np.empty(0, np.uint32)]
    guarded = [np.empty((0, 2), np.int64)]
    owner = np.searchsorted(fdes["start"], [fragment.begin for fragment in table.fragments], side="right") - 1
    for fragment, index in zip(table.fragments, owner.tolist(), strict=True):
        data = fragment.info.handler_data
        if not data:
            continue
        begin, end = int(fdes["start"][index]), int(fdes["start"][index]) + int(fdes["size"][index])
        count = int.from_bytes(image.read(data, 4), "little")
        if _is_exception_table(image.read(data, 16)):
            fdes["lsda"][index] = data
        elif 0 < count <= _MOST_SCOPES and begin <= int.from_bytes(image.read(data + 4, 4), "little") < end:
            raw = image.read(data + 4, 16 * count)
            scopes = np.frombuffer(raw[: len(raw) // 16 * 16], "<u4").reshape(-1, 4)
            inside = (scopes[:, 0] >= begin) & (scopes[:, 0] < scopes[:, 1]) & (scopes[:, 1] <= end)
            if len(scopes) == count and inside.all():
                found.append(scopes[:, 3][(scopes[:, 3] >= begin) & (scopes[:, 3] < end)])
                guarded.append(scopes[:, :2].astype(np.int64))
    pads = landing_pads(image, FrameTable(fdes, table.frames.rows))
    damaged = np.flatnonzero(fdes["flags"] & FRAME_DAMAGED)
    unreadable = np.concatenate([pads.unreadable, damaged])
    return LandingPads(np.unique(np.concatenate([pads.pads, *found])), unreadable, np.concatenate(guarded))

"""Unwind information for trampolines of PE images, so that Windows' unwinder walks through them.

Source: Microsoft, "x64 exception handling": UNWIND_INFO, chained unwind information, and the unwind procedure, which
undoes an epilogue by executing what is ahead of the instruction pointer, except inside a prologue. Every stretch of a
trampoline with one state of the frame therefore gets a RUNTIME_FUNCTION that is all prologue, its operations already
done: nothing is guessed from the trampoline's instructions.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from iced_x86 import Code, Instruction, Register
from numpy.typing import NDArray

from callscope.binary import disassembly as dis
from callscope.binary.pe_unwind import ALLOC_SMALL, IS_CHAINED, PUSH, SET_FRAME, UnwindTable
from callscope.patching.code import Piece
from callscope.patching.frames import Frames
from callscope.patching.text import Text

_LONGEST = 255
"""bytes of a prologue that UNWIND_INFO can tell"""
_VERSION = 1
_ADDS = frozenset({Code.ADD_RM64_IMM8, Code.ADD_RM64_IMM32})
_MOVES = frozenset({Code.MOV_R64_RM64, Code.MOV_RM64_R64})
_NAMES = "RAX RCX RDX RBX RSP RBP RSI RDI R8 R9 R10 R11 R12 R13 R14 R15"
_NUMBER = {getattr(Register, name): number for number, name in enumerate(_NAMES.split())}


@dataclass(frozen=True, slots=True)
class _State:
    """The operations that undo the frame at an instruction: raw codes in order, the frame register's byte, and the
    RUNTIME_FUNCTION to go on with.
    """

    codes: bytes
    frame: int
    chained: tuple[int, int, int] | None

    def record(self, size: int, pushed: int) -> bytes:
        """The bytes of code, and the UNWIND_INFO of code that moved the stack pointer `pushed` bytes further down."""
        codes = self.codes
        if pushed:
            codes = bytes([0, ALLOC_SMALL | (pushed // 8 - 1) << 4]) + codes
        flags = IS_CHAINED if self.chained else 0
        out = bytes([_VERSION | flags << 3, size, len(codes) // 2, self.frame]) + codes + bytes(len(codes) % 4)
        if self.chained:
            out += struct.pack("<III", *self.chained)
        return struct.pack("<I", size) + out


_BARE = _State(b"", 0, None)
"""nothing but a return address on the stack: needs no information"""


class SehFrames(Frames):
    """Look-ups in a PE image's unwind information, epilogues included."""

    def __init__(self, table: UnwindTable, text: Text) -> None:
        super().__init__(table.frames)
        self._table = table
        self._text = text
        self._begins = [fragment.begin for fragment in table.fragments]
        self._epilogues = lru_cache(64)(self._find_epilogues)

    def stack_offset(self, rva: int) -> int | None:
        """As `Frames.stack_offset`; code without unwind information keeps the stack as a call leaves it."""
        index = self._fragment(rva)
        if index is None:
            return 8
        rest = self._still_pushed(rva)
        return super().stack_offset(rva) if rest is None else 8 + 8 * len(rest)

    def records(self, piece: Piece) -> list[tuple[int, bytes]]:
        """(offset, record) of each stretch of a trampoline that needs one: its size (u4), then UNWIND_INFO."""
        changes: list[tuple[int, int, int]] = [(place, 0, ip) for ip, place in piece.moved[1:]]
        changes += [(position, 1, amount) for position, amount in piece.pushed]
        changes.append((piece.end, 2, 0))
        changes.sort()
        state, pushed, start = self._undoing(piece.moved[0][0]) if piece.moved else _BARE, 0, piece.start
        found: list[tuple[int, bytes]] = []
        for position, what, value in changes:
            after, more = (self._undoing(value), 0) if what == 0 else (state, value)
            if (after, more) == (state, 0) and what != 2:
                continue
            if state != _BARE or pushed:
                stretches = range(start, position, _LONGEST)
                found += [(at, state.record(min(_LONGEST, position - at), pushed)) for at in stretches]
            state, pushed, start = after, pushed + more, position
        return found

    def _fragment(self, rva: int) -> int | None:
        index = bisect_right(self._begins, rva) - 1
        return index if index >= 0 and rva < self._table.fragments[index].end else None

    def _undoing(self, rva: int) -> _State:
        index = self._fragment(rva)
        if index is None:
            return _BARE
        rest = self._still_pushed(rva)
        if rest is not None:
            return _State(b"".join(bytes([0, PUSH | register << 4]) for register in rest), 0, None)
        fragment = self._table.fragments[index]
        info, offset = fragment.info, rva - fragment.begin
        done = [code for code in info.codes if code.offset <= offset]
        if len(done) == len(info.codes):
            if not done and not info.chained and not info.handler:
                return _BARE
            return _State(b"", info.frame, (fragment.begin, fragment.end, fragment.unwind))
        codes = b"".join(b"\0" + code.raw[1:] for code in done)
        frame = info.frame if any(code.operation == SET_FRAME for code in done) else 0
        return _State(codes, frame, info.chained)

    def _still_pushed(self, rva: int) -> tuple[int, ...] | None:
        """The registers that an epilogue has still to pop at an address; None where the frame is whole."""
        function = self._text.function_at(rva)
        return None if function is None else self._epilogues(function).get(rva)

    def _find_epilogues(self, function: int) -> dict[int, tuple[int, ...]]:
        """Address of each instruction of a function's epilogues behind the first -> the registers still to pop.

        An epilogue may begin in one fragment of the function and end in another.
        """
        begin, end = self._text.starts[function], self._text.ends[function]
        code = self._text.instructions(function)
        found: dict[int, tuple[int, ...]] = {}
        for position, last in enumerate(code):
            kind = dis.KINDS[last.code]
            if kind not in (dis.RET, dis.JUMP, dis.INDIRECT_JUMP):
                continue
            if kind == dis.JUMP and begin < last.near_branch_target < end:
                continue
            first = position
            while first and code[first - 1].code == Code.POP_R64:
                first -= 1
            if kind == dis.RET or first < position or self._is_released(code[:first], last.ip):
                pops = tuple(_NUMBER[instruction.op0_register] for instruction in code[first:position])
                found |= {code[place].ip: pops[place - first :] for place in range(first, position + 1)}
        return found

    def _is_released(self, before: list[Instruction], place: int) -> bool:
        """Whether the instructions `before` a place leave nothing but the return address of the frame."""
        depth, frame = 8, False
        index = self._fragment(before[-1].ip if before else place)
        for code in self._table.whole_codes(self._table.fragments[index].info) if index is not None else ():
            depth += code.size
            frame |= code.operation == SET_FRAME
        if not before or before[-1].op0_register != Register.RSP:
            return depth == 8
        if before[-1].code in _ADDS:
            return depth == 8 + before[-1].immediate(1)
        return before[-1].code in _MOVES or (frame and before[-1].code == Code.LEA_R64_M)


def join_table(records: list[bytes], starts: NDArray[np.int64], table_offset: int, delta: int) -> bytes:
    """The RUNTIME_FUNCTION table of a region at `delta` from the image, then what its entries name.

    `starts`: offset in the region of each record's code, int64, shape (n,), ascending; `table_offset`: of the table.
    """
    places: dict[bytes, int] = {}
    information = bytearray()
    base = delta + table_offset + 12 * len(records)
    rows = np.empty((len(records), 3), np.int64)
    for row, record in enumerate(records):
        place = places.get(record)
        if place is None:
            place = places[record] = len(information)
            information += record[4:] + bytes(-len(record) % 4)
        rows[row, 1:] = int.from_bytes(record[:4], "little"), base + place
    rows[:, 0] = starts + delta
    rows[:, 1] += rows[:, 0]
    return rows.astype("<u4").tobytes() + bytes(information)

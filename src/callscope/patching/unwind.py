"""Call frame information for trampolines, so that unwinders and debuggers walk through them.

A trampoline's frame is the displaced instructions' frame, plus what the trampoline itself pushes. Format: DWARF 5,
section 6.4, in the form of .eh_frame (Linux Standard Base, "Exception Frames").
"""

from __future__ import annotations

import struct
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from callscope.patching.code import Piece
from callscope.patching.frames import AT_ENTRY, SAVED_REGISTERS, Frames, FrameState

_RSP = 7
_RA = 16
_ADVANCE1, _ADVANCE2, _ADVANCE4 = 0x02, 0x03, 0x04
_DEF_CFA, _DEF_CFA_OFFSET = 0x0C, 0x0E
_OFFSET = 0x80
_SAME_VALUE = 0x08
_OFFSET_SF = 0x11

# CIE version 1, augmentation "zR" with pc-relative signed 32-bit addresses; at its start CFA = rsp + 8, return
# address at CFA - 8.
_CIE_BODY = struct.pack("<IB3sBBBBB", 0, 1, b"zR\0", 1, 0x78, _RA, 1, 0x1B) + bytes(
    [_DEF_CFA, _RSP, 8, _OFFSET | _RA, 1]
)


def _padded(body: bytes) -> bytes:
    """A record with its length in front, filled with no-operations to a multiple of 8 bytes."""
    body += bytes(-(len(body) + 4) % 8)
    return struct.pack("<I", len(body)) + body


CIE = _padded(_CIE_BODY)
TERMINATOR = bytes(8)


def _uleb(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _sleb(value: int) -> bytes:
    out = bytearray()
    while not -64 <= value < 64:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value & 0x7F)
    return bytes(out)


@lru_cache(65536)
def _change(old: FrameState, new: FrameState) -> bytes:
    """Instructions that turn one state of the frame into another."""
    out = bytearray()
    if new.register != old.register:
        out += bytes([_DEF_CFA]) + _uleb(new.register) + _uleb(new.offset)
    elif new.offset != old.offset:
        out += bytes([_DEF_CFA_OFFSET]) + _uleb(new.offset)
    for register, before, after in zip(SAVED_REGISTERS, old.saved, new.saved, strict=True):
        if before == after:
            continue
        if after is None:
            out += bytes([_SAME_VALUE]) + _uleb(register)
        elif after < 0 and after % 8 == 0:
            out += bytes([_OFFSET | register]) + _uleb(-after // 8)
        else:
            out += bytes([_OFFSET_SF]) + _uleb(register) + _sleb(after // -8)
    return bytes(out)


def _advance(distance: int) -> bytes:
    if distance < 64:
        return bytes([0x40 | distance]) if distance else b""
    if distance < 256:
        return struct.pack("<BB", _ADVANCE1, distance)
    if distance < 65536:
        return struct.pack("<BH", _ADVANCE2, distance)
    return struct.pack("<BI", _ADVANCE4, distance)


def default_record(size: int) -> bytes:
    """The record of `size` bytes of code that run with just a return address on the stack."""
    return _padded(struct.pack("<IiiB", 0, 0, size, 0))


def _settled(state: FrameState) -> FrameState:
    """The state without saved registers where nothing is on the stack but the return address.

    Compilers leave the places of popped registers in the rules of an epilogue, for the values below the stack pointer
    are still good there. A trampoline's call overwrites them; the registers hold the caller's values again.
    """
    return AT_ENTRY if (state.register, state.offset) == (AT_ENTRY.register, AT_ENTRY.offset) else state


def describe(piece: Piece, frames: Frames) -> bytes | None:
    """The record of one trampoline, its CIE pointer and start left 0; None when the original frame is not known."""
    first = frames.state_at(piece.moved[0][0]) if piece.moved else AT_ENTRY
    if first is None:
        return None
    # (offset, state) where the frame changes: at the trampoline's own pushes, and at moved instructions.
    changes: list[tuple[int, int, FrameState | int]] = [(position, 1, amount) for position, amount in piece.pushed]
    if len(piece.moved) > 1:
        rows = frames.states_between(piece.moved[0][0], piece.moved[-1][0])
        if rows:
            places = dict(piece.moved)
            for rva, state in rows:
                if state is None:
                    return None
                if rva in places:
                    changes.append((places[rva], 0, state))
    changes.sort(key=lambda change: (change[0], change[1]))
    state, extra = _settled(first), 0
    out = bytearray(_change(AT_ENTRY, state))
    shown = state
    last = piece.start
    for position, _, change in changes:
        if isinstance(change, int):
            extra += change
        else:
            state = _settled(change)
        now = state.moved(extra)
        if now != shown:
            out += _advance(position - last) + _change(shown, now)
            shown, last = now, position
    return _padded(struct.pack("<IiiB", 0, 0, piece.end - piece.start, 0) + bytes(out))


class EhFrames(Frames):
    """Look-ups in an ELF image's frame table, and what follows from it for trampolines."""

    def records(self, piece: Piece) -> list[tuple[int, bytes]]:
        """(offset, record) of a trampoline, as `describe` makes it; none where the original frame is not known."""
        record = describe(piece, self)
        return [] if record is None else [(piece.start, record)]


def join(records: list[bytes], starts: NDArray[np.int64], section_offset: int) -> bytes:
    """The .eh_frame section of a region.

    `starts`: offset in the region of each record's trampoline, int64, shape (n,); `section_offset`: of the section
    itself.
    """
    body = bytearray(CIE + b"".join(records) + TERMINATOR)
    lengths = np.fromiter((len(record) for record in records), np.int64, len(records))
    places = len(CIE) + np.concatenate([[0], np.cumsum(lengths)[:-1]]) if len(records) else np.empty(0, np.int64)
    data = np.frombuffer(body, "u1").copy()
    for offset, values in ((4, places + 4), (8, starts - (section_offset + places + 8))):
        data[(places + offset)[:, None] + np.arange(4)] = values.astype("<i4").view("u1").reshape(-1, 4)
    return data.tobytes()


def symbol_file(code_bytes: int, frames_offset: int, frames: bytes) -> bytes:
    """An ELF image that gives a debugger the frames; section addresses are offsets in the region.

    The frames follow it immediately in the region. Format: System V ABI, chapter 4 (object files).
    """
    names = b"\0.text\0.eh_frame\0.shstrtab\0.symtab\0.strtab\0"
    strings = b"\0[callscope trampolines]\0"
    symbols = bytes(24) + struct.pack("<IBBHQQ", 1, 2, 0, 1, 0, code_bytes)
    header_bytes = 64
    names_at = header_bytes
    strings_at = names_at + len(names)
    symbols_at = (strings_at + len(strings) + 7) & -8
    sections_at = symbols_at + len(symbols)
    before = sections_at + 6 * 64
    size = (before + 4095) & -4096

    def section(name: bytes, kind: int, flags: int, address: int, offset: int, length: int, link: int = 0) -> bytes:
        entry = 24 if kind == 2 else 0
        info = 1 if kind == 2 else 0
        return struct.pack("<IIQQQQIIQQ", names.index(name), kind, flags, address, offset, length, link, info, 8, entry)

    sections = bytes(64)
    sections += section(b".text", 8, 6, 0, 0, code_bytes)
    sections += section(b".eh_frame", 1, 2, frames_offset, size, len(frames))
    sections += section(b".shstrtab", 3, 0, 0, names_at, len(names))
    sections += section(b".symtab", 2, 0, 0, symbols_at, len(symbols), 5)
    sections += section(b".strtab", 3, 0, 0, strings_at, len(strings))
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, sections_at, 0, header_bytes, 0, 0, 64, 6, 3)
    image = header + names + strings
    image += bytes(symbols_at - len(image)) + symbols + sections
    return image + bytes(size - len(image))

"""Windows' unwinder, as Microsoft publishes it, on symbolic register values: the truth that plans are checked against.

Source: "x64 exception handling", sections "Unwind procedure", "Epilog code" and "UNWIND_CODE"
(learn.microsoft.com/cpp/build/exception-handling-x64). It shares no code with the planner.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

Read = Callable[[int, int], bytes]
"""(rva, size) -> bytes of memory"""
Value = tuple[str, int]
"""a register's name before unwinding, and what is added to it"""

NAMES = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"]
_SLOTS = {0: 1, 2: 1, 3: 1, 4: 2, 5: 3, 6: 1, 8: 2, 9: 3, 10: 1}


@dataclass
class Caller:
    """What unwinding one frame gives: the stack pointer in the caller, and where the pushed registers lie on the stack.

    `stored`: where those lie that a prologue stores otherwise.
    """

    rsp: Value = ("rsp", 0)
    pushed: dict[str, Value] = field(default_factory=dict)
    stored: dict[str, Value] = field(default_factory=dict)

    def up(self, amount: int) -> None:
        """Move the stack pointer up."""
        self.rsp = (self.rsp[0], self.rsp[1] + amount)

    def pop(self, register: int) -> None:
        """Take a register from the stack."""
        self.pushed[NAMES[register]] = self.rsp
        self.up(8)


class Table:
    """RUNTIME_FUNCTION entries, looked up by address."""

    def __init__(self, data: bytes) -> None:
        self.entries = sorted(struct.iter_unpack("<III", data))
        self._begins = [begin for begin, _, _ in self.entries]

    def lookup(self, rip: int) -> tuple[int, int, int] | None:
        """The entry that contains an address."""
        index = bisect_right(self._begins, rip) - 1
        return self.entries[index] if index >= 0 and rip < self.entries[index][1] else None


def unwind(read: Read, entry: tuple[int, int, int] | None, rip: int) -> Caller:
    """Unwind one frame from `rip`; `entry` is the RUNTIME_FUNCTION that contains it."""
    caller = Caller()
    if entry is not None:
        begin, end, at = entry
        while at & 1:
            begin, end, at = struct.unpack("<III", read(at & ~1, 12))
        if rip - begin >= read(at + 1, 1)[0] and _epilogue(read, caller, rip, begin, end, read(at + 3, 1)[0] & 15):
            return caller
        _prologue(read, caller, rip, begin, at)
    caller.up(8)
    return caller


def frame_distance(read: Read, entry: tuple[int, int, int]) -> Value | None:
    """The frame register of a function and how far above the stack pointer it is in the body; None without one."""
    while True:
        at = entry[2]
        head, _, count, frame_byte = read(at, 4)
        distance, found = 16 * (frame_byte >> 4), False
        for operation, info, operand in reversed(_operations(read(at + 4, 2 * count), 255)):
            if found:
                moved = Caller()
                _undo(moved, ("", 0), operation, info, operand)
                distance += moved.rsp[1]
            found |= operation == 3
        if found:
            return NAMES[frame_byte & 15], distance
        if not head >> 3 & 4:
            return None
        entry = struct.unpack("<III", read(at + 4 + 2 * (count + (count & 1)), 12))


def _operations(codes: bytes, reached: int) -> list[tuple[int, int, int]]:
    """(operation, info, operand) of the unwind codes whose instructions end at `reached` or before."""
    found = []
    index = 0
    while index < len(codes):
        offset, operation, info = codes[index], codes[index + 1] & 15, codes[index + 1] >> 4
        slots = 2 + (info != 0) if operation == 1 else _SLOTS[operation]
        if offset <= reached:
            found.append((operation, info, int.from_bytes(codes[index + 2 : index + 2 * slots], "little")))
        index += 2 * slots
    return found


def _epilogue(read: Read, caller: Caller, rip: int, begin: int, end: int, frame_register: int) -> bool:
    """Execute what is ahead when it is an epilogue."""
    done = Caller()
    at = rip
    head = read(at, 8).ljust(8, b"\0")
    if head[:3] == b"\x48\x83\xc4":
        done.up(struct.unpack("<b", head[3:4])[0])
        at += 4
    elif head[:3] == b"\x48\x81\xc4":
        done.up(struct.unpack("<i", head[3:7])[0])
        at += 7
    elif head[0] in (0x48, 0x49) and head[1] == 0x8D and head[2] >> 3 & 7 == 4 and frame_register:
        register = head[2] & 7 | (head[0] & 1) << 3
        mode = head[2] >> 6
        if register == frame_register and mode in (1, 2):
            done.rsp = (NAMES[register], struct.unpack_from("<b" if mode == 1 else "<i", head, 3)[0])
            at += 4 if mode == 1 else 7
    while True:
        head = read(at, 2).ljust(2, b"\0")
        if head[0] & 0xF8 == 0x58:
            done.pop(head[0] & 7)
            at += 1
        elif head[0] == 0x41 and head[1] & 0xF8 == 0x58:
            done.pop(head[1] & 7 | 8)
            at += 2
        else:
            break
    if not _leaves(read(at, 8).ljust(8, b"\0"), at, begin, end):
        return False
    done.up(8)
    caller.rsp, caller.pushed = done.rsp, done.pushed
    return True


def _leaves(code: bytes, at: int, begin: int, end: int) -> bool:
    """Whether an instruction ends an epilogue: ret, or a jump that leaves the function."""
    if code[0] == 0xC3 or code[:2] == b"\xf3\xc3":
        return True
    if code[0] == 0xEB:
        return not begin < at + 2 + struct.unpack_from("<b", code, 1)[0] < end
    if code[0] == 0xE9:
        return not begin < at + 5 + struct.unpack_from("<i", code, 1)[0] < end
    if code[0] & 0xF8 == 0x48:  # a prefix without effect on a jump, by which compilers mark the end of an epilogue
        return code[1] == 0xFF and code[2] >> 3 & 7 == 4
    return code[0] == 0xFF and code[1] == 0x25


def _prologue(read: Read, caller: Caller, rip: int, begin: int, at: int) -> None:
    """Undo the operations of a prologue, as far as they were executed, and those it is chained to."""
    frame: Value | None = None
    while True:
        head, size, count, frame_byte = read(at, 4)
        codes = read(at + 4, 2 * count)
        assert head & 7 in (1, 2) and len(codes) == 2 * count
        reached = rip - begin if 0 <= rip - begin < size else 255
        operations = _operations(codes, reached)
        if frame is None:
            set_up = any(operation == 3 for operation, _, _ in operations) or reached == 255 or head >> 3 & 4
            frame = (NAMES[frame_byte & 15], -16 * (frame_byte >> 4)) if frame_byte and set_up else caller.rsp
        for operation, info, operand in operations:
            _undo(caller, frame, operation, info, operand)
        if not head >> 3 & 4:
            return
        begin, _, at = struct.unpack("<III", read(at + 4 + 2 * (count + (count & 1)), 12))


def _undo(caller: Caller, frame: Value, operation: int, info: int, operand: int) -> None:
    if operation == 0:
        caller.pop(info)
    elif operation == 1:
        caller.up(operand * 8 if info == 0 else operand)
    elif operation == 2:
        caller.up(8 * info + 8)
    elif operation == 3:
        caller.rsp = frame
    elif operation in (4, 5):
        caller.stored[NAMES[info]] = (frame[0], frame[1] + operand * (8 if operation == 4 else 1))
    elif operation in (8, 9):
        caller.stored[f"xmm{info}"] = (frame[0], frame[1] + operand * (16 if operation == 8 else 1))

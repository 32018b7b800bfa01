"""The code a plan is made for: its bytes, where control may arrive, and which bytes are taken."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from iced_x86 import Decoder, Instruction
from numpy.typing import NDArray

from callscope.binary import disassembly as dis
from callscope.patching.capture import Capture
from callscope.patching.runs import JUMP_BYTES

SOFT = 1
"""barrier: the target of direct jumps only, all of them known"""
HARD = 2
"""barrier: something else may lead here (a pointer, a table, a landing pad, a call)"""

DATA = 4
"""barrier: not an instruction"""
GUARDED = 8
"""barrier: in the range of a `__try`, whose handler is found by the address of the instruction that faults"""

NOT_PART = 0
PART = 1
SIGNAL_FRAME = 2
HOOK = 3
UNTOUCHED = (SIGNAL_FRAME, HOOK)
"""kinds of functions that stay as they are"""

# The no-operations that compilers and assemblers pad with (Intel SDM volume 2B, NOP), int3, and zero bytes between
# functions.
_PADDING = re.compile(
    rb"(?:\xcc|(?:\x66{0,12}\x2e?)(?:\x90|\x0f\x1f(?:\x00|\x40\x00|\x44\x00\x00|\x80\x00{4}|\x84\x00{5})))*", re.DOTALL
)
_WAYS_IN = re.compile(rb"[\x01-\x03\x09-\x0b]")  # SOFT or HARD, and not DATA
_BEGINS = 2
_CALLS = frozenset({dis.CALL, dis.INDIRECT_CALL})
_BRANCHES = frozenset({dis.JUMP, dis.BRANCH, dis.LOOP})
_ZEROS = re.compile(rb"\x00*")
MOST_PADDING = 64


@dataclass
class Text:
    """The executable bytes of an image from `low` up to `high` (relative addresses), shared by all planners of a run.

    `barriers`: one byte per code byte, of the bits above. `starts`, `ends`, `kinds`, `owners`: the functions in
    order of address. `branch_targets` (sorted) and `branch_sources`: every direct jump. `plt`: ranges of linkage
    stubs. `undecodable`: functions that cannot be planned. `conditional_entries`: starts that conditional jumps of
    other functions lead to. `switches`: functions with a jump table. `interior_pointers`: functions with an address
    inside them stored somewhere. `landings`: where exceptions and longjmp resume, sorted. `exposed`: where a patch must
    not look like the end of an epilogue, for a return address leads an unwinder there. `red_zone`: code may use the 128
    bytes below the stack pointer. `mixed`: data may lie in functions, between their instructions. `calls_stay`: no
    call may move. `captures`: what to record of arguments and results, by function index. `hooks`: calls of the
    compiler's hooks; `silenced`: address -> (bytes, function index) of those that `code`
    does not hold as the file does; `file_code`: what the file holds; `hooked`:
    functions whose first hook tells of themselves, and stays.
    """

    low: int
    high: int
    code: bytes
    barriers: bytearray
    starts: list[int]
    ends: list[int]
    kinds: bytearray
    owners: NDArray[np.uint32]
    branch_targets: NDArray[np.uint32]
    branch_sources: NDArray[np.uint32]
    plt: tuple[tuple[int, int], ...]
    undecodable: frozenset[int]
    conditional_entries: frozenset[int]
    switches: frozenset[int]
    interior_pointers: frozenset[int]
    landings: list[int]
    exposed: frozenset[int]
    red_zone: bool
    mixed: bool
    calls_stay: bool
    captures: Mapping[int, Capture] = field(default_factory=dict)
    hooks: frozenset[int] = frozenset()
    silenced: dict[int, tuple[int, int]] = field(default_factory=dict)
    file_code: bytes = b""
    hooked: set[int] = field(default_factory=set)

    def bytes_at(self, address: int, count: int) -> bytes:
        """Up to `count` code bytes from a relative address on."""
        return self.code[address - self.low : address - self.low + count]

    def decode(self, start: int, end: int) -> list[Instruction]:
        """The instructions from `start` up to `end`."""
        return list(Decoder(64, self.code[start - self.low : end - self.low], ip=start))

    def instructions(self, index: int) -> list[Instruction]:
        """The instructions of a function in order of address; in `mixed` code those that control is known to reach."""
        start, end = self.starts[index], self.ends[index]
        if not self.mixed:
            return self.decode(start, end)
        decoder = Decoder(64, self.code[start - self.low : end - self.low], ip=start)
        seen = bytearray(end - start)
        found: list[Instruction] = []
        waiting = [*reversed(self._ways_in(index)), start]
        while waiting:
            address = waiting.pop()
            if not start <= address < end or seen[address - start]:
                continue
            decoder.position, decoder.ip = address - start, address
            path = self._path(decoder, seen, start)
            found += path
            waiting += [step.near_branch_target for step in path if dis.KINDS[step.code] in _BRANCHES]
        return sorted(found, key=lambda instruction: instruction.ip)

    def _path(self, decoder: Decoder, seen: bytearray, start: int) -> list[Instruction]:
        """The instructions from where `decoder` stands up to a jump or what is in `seen` (a byte for each byte from
        `start` on) already; none when they run into data or into the middle of an instruction: then they are data too.
        """
        path: list[Instruction] = []
        for instruction in decoder:
            first, last = instruction.ip - start, instruction.next_ip - start
            if seen[first] == _BEGINS:
                break
            kind = dis.KINDS[instruction.code]
            data = self.barriers[instruction.ip - self.low] & DATA
            if kind == dis.INVALID or data or any(seen[first:last]):
                if path and dis.KINDS[path[-1].code] in _CALLS:
                    break  # one that does not return
                for step in path:
                    seen[step.ip - start : step.next_ip - start] = bytes(step.len)
                return []
            seen[first:last] = _BEGINS.to_bytes() + b"\x01" * (last - first - 1)
            path.append(instruction)
            if kind in dis.NEVER_RETURNS:
                break
        return path

    def _ways_in(self, index: int) -> list[int]:
        """Where control may come into a function besides its start: by pointers, tables, and from its other parts."""
        start, end = self.starts[index] - self.low, self.ends[index] - self.low
        found = []
        for match in _WAYS_IN.finditer(self.barriers, start, end):
            address = match.start() + self.low
            if self.barriers[match.start()] & HARD or any(
                (function := self.function_at(source)) is not None
                and function != index
                and self.owners[function] == self.owners[index]
                for source in self.sources_of(address)
            ):
                found.append(address)
        return found

    def lead(self, address: int) -> int:
        """Bytes of no-operation that a jump written at an address needs before it.

        Windows' unwinder takes a jump that leaves the function for the end of an epilogue, and undoes an epilogue by
        what is still ahead of it.
        """
        return 1 if address in self.exposed else 0

    def barrier(self, address: int) -> int:
        """SOFT, HARD, DATA and GUARDED bits at an address."""
        return self.barriers[address - self.low]

    def function_at(self, address: int) -> int | None:
        """Index of the function that contains an address."""
        index = bisect_right(self.starts, address) - 1
        return index if index >= 0 and address < self.ends[index] else None

    def function_starting(self, address: int) -> int | None:
        """Index of the function that starts at an address."""
        index = bisect_right(self.starts, address) - 1
        return index if index >= 0 and self.starts[index] == address else None

    def loops_to(self, index: int, address: int) -> bool:
        """True when code of function `index`, or of a part of it, jumps to an address."""
        if not self.barrier(address) & SOFT:
            return False
        for source in self.sources_of(address):
            function = self.function_at(source)
            if function is not None and self.owners[function] == self.owners[index]:
                return True
        return False

    def sources_of(self, target: int) -> list[int]:
        """Addresses of the direct jumps to an address."""
        wanted = np.uint32(target)  # an int would make a converted copy of the array
        first = int(self.branch_targets.searchsorted(wanted, "left"))
        last = int(self.branch_targets.searchsorted(wanted, "right"))
        return [int(source) for source in self.branch_sources[first:last]]

    def padding(self, address: int) -> int:
        """Bytes from `address` on that are padding no control reaches, given that none falls through into it."""
        offset = address - self.low
        limit = min(offset + MOST_PADDING, len(self.code))
        match = _PADDING.match(self.code, offset, limit)
        end = match.end() if match else offset
        if self.function_at(address) is None:
            # Zeros may be data of hand-written code, unless they fill all the space up to the next function.
            zeros = _ZEROS.match(self.code, end, limit)
            if zeros and self.function_starting(zeros.end() + self.low) is not None:
                end = zeros.end()
        barriers = self.barriers
        for position in range(offset, end):
            if barriers[position]:
                return position - offset
        return end - offset


class Taken:
    """Which code bytes a plan has used: displaced, overwritten, or promised."""

    def __init__(self, text: Text, start: int, end: int) -> None:
        self._start = start
        self._bytes = bytearray(end - start)

    def free(self, start: int, end: int) -> bool:
        """True when no byte from `start` up to `end` is taken (bytes outside the planner's range are)."""
        first, last = start - self._start, end - self._start
        return first >= 0 and last <= len(self._bytes) and self._bytes.find(1, first, last) < 0

    def take(self, start: int, end: int) -> None:
        """Take the bytes from `start` up to `end`."""
        first = start - self._start
        self._bytes[first : end - self._start] = b"\x01" * (end - start)

    def release(self, start: int, end: int) -> None:
        """Give back the bytes from `start` up to `end`."""
        first = start - self._start
        self._bytes[first : end - self._start] = bytes(end - start)

    def holds(self, address: int) -> bool:
        """True when the byte at an address is taken."""
        offset = address - self._start
        return not 0 <= offset < len(self._bytes) or self._bytes[offset] == 1


def islands_in(start: int, end: int) -> list[int]:
    """Places for islands in the free bytes from `start` up to `end`."""
    return list(range(start, end - JUMP_BYTES + 1, JUMP_BYTES))

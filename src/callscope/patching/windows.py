"""The first choice for every entry, ret and tail jump: five bytes of its own.

What finds no room here is left to rescue.py.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise

from iced_x86 import Instruction, Register

from callscope.binary import disassembly as dis
from callscope.patching.frames import Frames
from callscope.patching.runs import JUMP_BYTES, Layout, Redirect, Refusal, Run
from callscope.patching.text import HOOK, NOT_PART, SIGNAL_FRAME, Taken, Text

FALLS = dis.FALLS_THROUGH | {dis.BRANCH, dis.LOOP}
"""kinds that may stand inside a run"""
_LAST = dis.NEVER_RETURNS | {dis.CALL, dis.INDIRECT_CALL}
_SWITCH_WINDOW = 6


@dataclass(slots=True)
class Pending:
    """A place that found no room of its own. `first`: a function's first address a run may take."""

    kind: str
    function: int
    address: int
    end: int
    first: int
    instruction: Instruction | None = None


class Windows:
    """Chooses runs for a range of functions, in address order; what failed collects in `pending`."""

    def __init__(self, text: Text, frames: Frames, taken: Taken, layout: Layout) -> None:
        self.text = text
        self.frames = frames
        self.taken = taken
        self.layout = layout
        self.ending = dis.NEVER_RETURNS if text.calls_stay else _LAST
        """kinds that end a run"""
        self.pending: list[Pending] = []
        self.dead: list[int] = []
        """starts of padding inside functions"""

    def plan_function(self, index: int) -> None:
        """Choose the runs of one function."""
        text = self.text
        start, end = text.starts[index], text.ends[index]
        kind = text.kinds[index]
        if kind == HOOK:
            return
        if index in text.undecodable:
            self._refuse_all(index, "its bytes are not all instructions, or its exception table is damaged")
            return
        code = text.instructions(index)
        kinds = [dis.KINDS[instruction.code] for instruction in code]
        first = 1 if kinds[0] == dis.LANDING and len(code) > 1 else 0
        if kind == SIGNAL_FRAME:
            self._refuse_all(index, "signal return code, which unwinders recognise by its bytes")
            return
        if kind == NOT_PART:
            self._entry(index, code, kinds, first)
        self._landings(index, code, kinds)
        floor = code[first].ip if kind == NOT_PART else start
        for position, what in enumerate(kinds):
            if what == dis.PLAIN:
                continue
            if what == dis.RET:
                self._leave(index, code, kinds, position, floor, "exit")
            elif what == dis.JUMP or what == dis.BRANCH or what == dis.LOOP:
                target = code[position].near_branch_target
                if not start <= target < end and self.is_tail_target(index, target):
                    self._direct_tail(index, code, kinds, position, floor)
            elif what == dis.INDIRECT_JUMP:
                verdict = self._indirect_tail(index, code, kinds, position)
                if verdict:
                    self._leave(index, code, kinds, position, floor, "tail")
                elif verdict is None:
                    self.layout.tails_left.add(index)
            elif what == dis.NOP and position and kinds[position - 1] in dis.NEVER_RETURNS:
                self.dead.append(code[position].ip)
        self.dead += [last.next_ip for last, following in pairwise(code) if last.next_ip != following.ip]

    def is_tail_target(self, index: int, target: int) -> bool:
        """True when a jump from function `index` to `target` is a call of another function."""
        text = self.text
        if any(low <= target < high for low, high in text.plt):
            return True
        other = text.function_starting(target)
        if other is None or text.kinds[other] != NOT_PART:
            return False
        return int(text.owners[index]) != other

    def _refuse_all(self, index: int, reason: str) -> None:
        layout, text = self.layout, self.text
        layout.exits_left.add(index)
        layout.tails_left.add(index)
        if text.kinds[index] != NOT_PART and text.kinds[index] != SIGNAL_FRAME:
            return
        layout.counts["entry"] += 1
        layout.refusals.append(Refusal("entry", index, text.starts[index], reason))

    def _entry(self, index: int, code: list[Instruction], kinds: list[int], first: int) -> None:
        """Give the entry a run of whole instructions of at least five bytes, padding after a final jump included."""
        text, taken = self.text, self.taken
        self.layout.counts["entry"] += 1
        start = code[first].ip
        if kinds[first : first + 2] == [dis.NOP, dis.CALL] and code[first].len == 1:
            reason = "it is entered behind its first byte, as a return address: Go's runtime.goexit"
            self.layout.refusals.append(Refusal("entry", index, start, reason))
            return
        position, size, complete = first, 0, False
        while size < JUMP_BYTES and position < len(code):
            if position > first and text.barrier(code[position].ip):
                break
            what = kinds[position]
            if what not in FALLS and what not in self.ending:
                break
            size += code[position].len
            position += 1
            if what in self.ending:
                complete = what in dis.NEVER_RETURNS
                break
        room = size
        # Windows' unwinder looks at what is behind a call.
        if size < JUMP_BYTES and (complete or (position == len(code) and not text.exposed)):
            room = size + text.padding(start + size)
        if (
            room < JUMP_BYTES
            or text.lead(start)
            or text.loops_to(index, start)
            or not taken.free(start, start + max(size, JUMP_BYTES))
        ):
            self.pending.append(Pending("entry", index, start, text.ends[index], start))
            return
        # A ret close behind would find no room of its own: take the whole straight body.
        ending = position
        while not complete and ending < len(code) and kinds[ending] in FALLS and code[ending].ip < start + 12:
            if text.barrier(code[ending].ip):
                break
            ending += 1
        if (
            not complete
            and position <= ending < len(code)
            and kinds[position - 1] in FALLS
            and kinds[ending] == dis.RET
            and not text.barrier(code[ending].ip)
            and code[ending].next_ip - start < 2 * JUMP_BYTES + 6
        ):
            position, size = ending + 1, code[ending].next_ip - start
        taken.take(start, start + max(size, JUMP_BYTES))
        self.layout.runs.append(
            Run(start, start + size, index, entry=True, red_zone=text.starts[index] in text.conditional_entries)
        )
        self.layout.entered.add(index)

    def _landings(self, index: int, code: list[Instruction], kinds: list[int]) -> None:
        """Give every place of the function where an exception or longjmp resumes a run: the frames below are gone."""
        text, taken = self.text, self.taken
        pads = text.landings
        position = bisect_left(pads, text.starts[index])
        if position == len(pads) or pads[position] >= text.ends[index]:
            return
        places = {instruction.ip: number for number, instruction in enumerate(code)}
        while position < len(pads) and pads[position] < text.ends[index]:
            first = places.get(pads[position])
            position += 1
            if first is None:
                continue
            if kinds[first] == dis.LANDING and first + 1 < len(code):
                first += 1
            self.layout.counts["landing"] += 1
            start, end = code[first].ip, code[first].ip
            for instruction, what in zip(code[first:], kinds[first:], strict=True):
                barrier = end > start and text.barrier(instruction.ip)
                if (
                    end - start >= JUMP_BYTES + text.lead(start)
                    or barrier
                    or (what not in FALLS and what not in self.ending)
                ):
                    break
                end = instruction.next_ip
                if what in self.ending:
                    break
            if end - start < JUMP_BYTES + text.lead(start) or not taken.free(start, end):
                self.pending.append(Pending("landing", index, start, end, start))
                continue
            taken.take(start, end)
            self.layout.runs.append(Run(start, end, index, landing=True))

    def _leave(
        self, index: int, code: list[Instruction], kinds: list[int], position: int, floor: int, kind: str
    ) -> None:
        """Give a ret or an indirect tail jump a run that grows backwards over the instructions before it."""
        text, taken, layout = self.text, self.taken, self.layout
        layout.counts[kind] += 1
        last = code[position]
        if kind == "tail":
            layout.tails.add(last.ip)
        if taken.holds(last.ip):
            return
        first, end = position, last.next_ip
        while end - code[first].ip < JUMP_BYTES + text.lead(code[first].ip) and first > 0:
            before = code[first - 1]
            if (
                text.barrier(code[first].ip)
                or kinds[first - 1] not in FALLS
                or kinds[first - 1] == dis.LANDING
                or before.ip < floor
                or taken.holds(before.ip)
            ):
                break
            first -= 1
        start = code[first].ip
        room, needed = end - start, JUMP_BYTES + text.lead(start)
        if room < needed:
            padding = min(text.padding(end), needed - room)
            if not taken.free(end, end + padding):
                padding = 0
            room += padding
        if room < needed:
            self.pending.append(Pending(kind, index, last.ip, end, start, last))
            return
        taken.take(start, max(end, start + needed))
        layout.runs.append(Run(start, end, index))

    def _direct_tail(self, index: int, code: list[Instruction], kinds: list[int], position: int, floor: int) -> None:
        text, taken, layout = self.text, self.taken, self.layout
        jump = code[position]
        if self.frames.stack_offset(jump.ip) not in (8, None):
            return
        if kinds[position] == dis.LOOP:
            layout.tails_left.add(index)
            return
        target = jump.near_branch_target
        layout.tails.add(jump.ip)
        if taken.holds(jump.ip):
            layout.counts["tail"] += 1
            return
        displacement = long_displacement(text.bytes_at(jump.ip, jump.len))
        conditional = kinds[position] == dis.BRANCH
        if displacement:
            layout.counts["tail"] += 1
            taken.take(jump.ip, jump.next_ip)
            layout.redirects.append(Redirect(jump.ip, target, index, True, displacement, 4, conditional))
        elif conditional:
            layout.counts["tail"] += 1
            self.pending.append(Pending("tail", index, jump.ip, jump.next_ip, jump.ip, jump))
        else:
            self._leave(index, code, kinds, position, floor, "tail")

    def _indirect_tail(self, index: int, code: list[Instruction], kinds: list[int], position: int) -> bool | None:
        """True for a tail call, False for a jump within the function, None when it cannot be told."""
        jump = code[position]
        if self.frames.stack_offset(jump.ip) != 8:
            return False
        if jump.is_ip_rel_memory_operand:
            return True
        register = jump.op0_register if jump.memory_base == Register.NONE else jump.memory_base
        indexed = jump.memory_index != Register.NONE
        if not indexed and jump.op0_register == Register.NONE:
            return True
        if self._follows_epilogue(code, kinds, position):
            return True
        if index in self.text.interior_pointers:
            return None
        if index in self.text.switches:
            for before in code[max(0, position - _SWITCH_WINDOW) : position]:
                if before.op0_register == register and dis.KINDS[before.code] == dis.PLAIN and before.op_count == 2:
                    return False
            return None
        return True

    def _follows_epilogue(self, code: list[Instruction], kinds: list[int], position: int) -> bool:
        """Whether the frame was given up in the straight run before a jump: what follows is another function then."""
        for before in range(position - 1, max(-1, position - _SWITCH_WINDOW - 1), -1):
            if kinds[before] not in dis.FALLS_THROUGH:
                return False
            if self.frames.stack_offset(code[before].ip) not in (8, None):
                return True
        return False


def long_displacement(raw: bytes) -> int:
    """Offset of a direct jump's 32-bit displacement within its bytes, 0 when it is an 8-bit one."""
    if len(raw) >= 5 and raw[-5] in (0xE8, 0xE9):
        return len(raw) - 4
    if len(raw) >= 6 and raw[-6] == 0x0F and 0x80 <= raw[-5] <= 0x8F:
        return len(raw) - 4
    return 0

"""Room for what found none: short jumps to islands, and runs across jump targets whose jumps are redirected.

An island is padding, or is borrowed: a straight run of ten bytes or more nearby moves into a trampoline, its first five
bytes become the jump there and the next five the island.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from functools import lru_cache

from iced_x86 import Instruction

from callscope.binary import disassembly as dis
from callscope.format import PATCH_ALWAYS
from callscope.patching.runs import JUMP_BYTES, SHORT_JUMP_BYTES, Layout, Redirect, Refusal, Run
from callscope.patching.text import NOT_PART, SOFT, UNTOUCHED, Taken, Text, islands_in
from callscope.patching.windows import FALLS, Pending, Windows, long_displacement

REACH_BACK = 128
REACH_AHEAD = 127
_FORWARD = ("entry", "landing")
"""kinds of places whose run begins at the place"""
_BORROW_BYTES = 2 * JUMP_BYTES


class Rescue:
    """Tries every tactic for the places that `windows` left pending, in address order."""

    def __init__(self, windows: Windows, first: int, last: int) -> None:
        self.text: Text = windows.text
        self.taken: Taken = windows.taken
        self.layout: Layout = windows.layout
        self.pending = windows.pending
        self.ending = windows.ending
        self.first, self.last = first, last
        self.islands: list[int] = []
        self._borrowed: set[int] = set()
        for index in range(first, last):
            end = self.text.ends[index]
            self.islands += islands_in(end, end + self.text.padding(end))
        for start in windows.dead:
            self.islands += islands_in(start, start + self.text.padding(start))
        self.islands.sort()
        self.runs = sorted((run.start, run.end) for run in self.layout.runs)
        self.redirected = {redirect.address for redirect in self.layout.redirects}
        self._decode = lru_cache(32)(self._decode_function)

    def run(self) -> None:
        """Place what can be placed; refuse the rest with its reason."""
        waiting: list[tuple[Pending, int, int, tuple[int, ...]]] = []
        for place in self.pending:
            if self.taken.holds(place.address) and place.kind not in _FORWARD:
                continue  # a run made since holds it, and records it there
            waiting.append((place, *self._stretch(place)))
        for _, start, end, crossed in waiting:
            # Promised before any borrowing, so that no place is borrowed away.
            if not crossed and end - start >= SHORT_JUMP_BYTES + self.text.lead(start):
                self.taken.take(start, end)
        for place, start, end, crossed in waiting:
            if place.kind == "entry" or not self._displaced(place.address):
                self._place(place, max(start, self._run_end_before(place.address)), end, crossed)

    def _place(self, place: Pending, start: int, end: int, crossed: tuple[int, ...]) -> None:
        layout = self.layout
        if place.instruction is not None and dis.KINDS[place.instruction.code] == dis.BRANCH:
            reason = self._short_branch(place)
        else:
            reason = None
            promised = not crossed and end - start >= SHORT_JUMP_BYTES + self.text.lead(start)
            if not promised or not self._short_jump(place, start, end):
                if promised:
                    self.taken.release(start, end)
                reason = self._across(place)
        if reason is None:
            if place.kind == "entry":
                layout.entered.add(place.function)
            return
        layout.refusals.append(Refusal(place.kind, place.function, place.address, reason))
        if place.kind == "exit":
            layout.exits_left.add(place.function)
        elif place.kind == "tail":
            layout.tails_left.add(place.function)

    def _stretch(self, place: Pending, cross: bool = False) -> tuple[int, int, tuple[int, ...]]:
        """The run for a place: start, end, and the jump targets inside it (only when `cross`).

        It grows to the five bytes of a jump where it can.
        """
        code = self._decode(place.function)
        text, taken = self.text, self.taken
        position = bisect_left([instruction.ip for instruction in code], place.address)
        crossed: list[int] = []
        if place.kind in _FORWARD:
            last, size, closed = position, 0, False
            if place.kind == "entry" and text.loops_to(place.function, place.address):
                crossed.append(place.address)
            needed = JUMP_BYTES + text.lead(place.address)
            while size < needed and last < len(code) and not closed:
                instruction = code[last]
                what = dis.KINDS[instruction.code]
                barrier = text.barrier(instruction.ip) if last > position else 0
                if barrier and not (cross and not barrier & ~SOFT and size < needed):
                    break
                if (what not in FALLS and what not in self.ending) or not taken.free(
                    instruction.ip, instruction.next_ip
                ):
                    break
                if barrier:
                    crossed.append(instruction.ip)
                size += instruction.len
                last += 1
                closed = what in self.ending
            return place.address, place.address + size, tuple(crossed)
        first = position
        end = place.end
        floor = text.starts[place.function]
        while first > 0 and end - code[first].ip < JUMP_BYTES + text.lead(code[first].ip):
            before, barrier = code[first - 1], text.barrier(code[first].ip)
            if barrier and not (cross and not barrier & ~SOFT):
                break
            what = dis.KINDS[before.code]
            if (
                what not in FALLS
                or what == dis.LANDING
                or before.ip < floor
                or not taken.free(before.ip, before.next_ip)
            ):
                break
            if barrier:
                crossed.append(code[first].ip)
            first -= 1
        return code[first].ip, end, tuple(crossed)

    def _room(self, place: Pending, start: int, end: int) -> int:
        """Bytes a run may overwrite: its own and padding behind a final jump or ret."""
        closed = place.kind not in _FORWARD or end >= self.text.ends[place.function]
        padding = self.text.padding(end) if closed else 0
        while padding and not self.taken.free(end, end + padding):
            padding -= 1
        return end - start + padding

    def _short_jump(self, place: Pending, start: int, end: int) -> bool:
        """Put a two-byte jump to an island at the start of the run, if one is to be had."""
        if place.kind == "entry" and self.text.loops_to(place.function, place.address):
            return False
        island = self._island(start + self.text.lead(start) + SHORT_JUMP_BYTES, place.function)
        if island is None:
            return False
        self._commit(place, start, end, island)
        return True

    def _short_branch(self, place: Pending) -> str | None:
        """Let a short conditional tail jump go to an island."""
        jump = place.instruction
        assert jump is not None
        island = self._island(jump.next_ip, place.function)
        if island is None:
            return "no room for an island within reach of a short jump"
        self.taken.take(jump.ip, jump.next_ip)
        self._redirect(jump, jump.near_branch_target, place.function, True, island)
        return None

    def _across(self, place: Pending) -> str | None:
        """Make a run across jump targets, redirecting every jump to them into it."""
        start, end, crossed = self._stretch(place, cross=True)
        lead = self.text.lead(start)
        room = self._room(place, start, end) - lead
        detached = False
        if room < SHORT_JUMP_BYTES:
            if place.kind in _FORWARD or not self._reached_by_jumps_only(place.function, start):
                return "a single byte with no room around it"
            detached = True
            lead, room = 0, room + lead
            crossed = (start,)
        inside = range(start, end)
        redirects: list[tuple[Instruction, int]] = []
        for target in crossed:
            for source in self.text.sources_of(target):
                if source in inside or self._displaced(source):
                    continue
                jump = self._jump_at(source)
                if jump is None or source in self.redirected or self.taken.holds(source):
                    return "a jump into its bytes cannot be redirected"
                redirects.append((jump, target))
        self.taken.take(start, end if detached else max(end, start + lead + min(room, JUMP_BYTES)))
        for jump, _ in redirects:
            self.taken.take(jump.ip, jump.next_ip)
        chosen: list[int | None] = []
        for jump, _ in redirects:
            island = None
            if not long_displacement(self.text.bytes_at(jump.ip, jump.len)):
                island = self._island(jump.next_ip, place.function)
                if island is None:
                    break
            chosen.append(island)
        own = None
        short = room < JUMP_BYTES and not detached
        if len(chosen) == len(redirects) and short:
            own = self._island(start + lead + SHORT_JUMP_BYTES, place.function)
        if len(chosen) < len(redirects) or (short and own is None):
            # What was borrowed or taken stays so: it is valid without a user.
            return "no room for an island within reach of a short jump"
        self.layout.quiet.update(crossed)
        for (jump, target), island in zip(redirects, chosen, strict=True):
            self._redirect(jump, target, place.function, False, island)
        self._commit(place, start, end, own, detached)
        return None

    def _reached_by_jumps_only(self, function: int, address: int) -> bool:
        """True when only known jumps lead to an instruction: nothing runs into it from above."""
        if self.text.barrier(address) != SOFT:
            return False
        code = self._decode(function)
        position = bisect_left([instruction.ip for instruction in code], address)
        return position > 0 and dis.KINDS[code[position - 1].code] in dis.NEVER_RETURNS

    def _commit(self, place: Pending, start: int, end: int, island: int | None, detached: bool = False) -> None:
        if detached:
            self.layout.runs.append(Run(start, end, place.function, detached=True))
            insort(self.runs, (start, end))
            return
        size = self.text.lead(start) + (SHORT_JUMP_BYTES if island is not None else JUMP_BYTES)
        self.taken.take(start, max(end, start + size))
        red_zone = self.text.starts[place.function] in self.text.conditional_entries
        run = Run(start, end, place.function, place.kind == "entry", island, red_zone and place.kind == "entry")
        run.landing = place.kind == "landing"
        self.layout.runs.append(run)
        insort(self.runs, (start, end))

    def _redirect(self, jump: Instruction, target: int, function: int, tail: bool, island: int | None) -> None:
        raw = self.text.bytes_at(jump.ip, jump.len)
        displacement = long_displacement(raw)
        conditional = dis.KINDS[jump.code] != dis.JUMP
        redirect = Redirect(jump.ip, target, function, tail, displacement, 4, conditional)
        if not displacement:
            redirect = Redirect(jump.ip, target, function, tail, len(raw) - 1, 1, conditional, island)
        self.layout.redirects.append(redirect)
        self.redirected.add(jump.ip)

    def _displaced(self, address: int) -> bool:
        index = bisect_right(self.runs, (address, 1 << 62)) - 1
        return index >= 0 and self.runs[index][0] <= address < self.runs[index][1]

    def _run_end_before(self, address: int) -> int:
        index = bisect_right(self.runs, (address, 0)) - 1
        return self.runs[index][1] if index >= 0 else 0

    def _jump_at(self, address: int) -> Instruction | None:
        function = self.text.function_at(address)
        if function is None or not self.first <= function < self.last:
            return None
        code = self._decode(function)
        position = bisect_left([instruction.ip for instruction in code], address)
        if position == len(code) or code[position].ip != address:
            return None
        return code[position] if dis.KINDS[code[position].code] in (dis.JUMP, dis.BRANCH, dis.LOOP) else None

    def _decode_function(self, index: int) -> list[Instruction]:
        return self.text.instructions(index)

    def _island(self, after: int, function: int) -> int | None:
        """An island that a short jump ending at `after` reaches; taken when found."""
        low, high = after - REACH_BACK, after + REACH_AHEAD
        position = bisect_left(self.islands, low)
        while position < len(self.islands) and self.islands[position] <= high:
            island = self.islands.pop(position)
            if self.taken.free(island, island + JUMP_BYTES) or island in self._borrowed:
                self._borrowed.discard(island)
                self.taken.take(island, island + JUMP_BYTES)
                return island
        return self._borrow(low, high, function)

    def _borrow(self, low: int, high: int, function: int) -> int | None:
        """Move a straight run of ten bytes or more away and use its sixth to tenth byte."""
        text, taken = self.text, self.taken
        index = max(self.first, bisect_right(text.starts, low) - 1)
        while index < self.last and text.starts[index] < high:
            if text.kinds[index] in UNTOUCHED or index in text.undecodable:
                index += 1
                continue
            code = self._decode(index)
            for position, head in enumerate(code):
                if head.ip + JUMP_BYTES < low or (head.ip == text.starts[index] and text.kinds[index] == NOT_PART):
                    continue
                if head.ip + JUMP_BYTES > high:
                    break
                if text.lead(head.ip):
                    continue
                end = self._straight(code, position)
                if end - head.ip < _BORROW_BYTES:
                    continue
                taken.take(head.ip, end)
                spare = islands_in(head.ip + _BORROW_BYTES, end)
                self.layout.runs.append(Run(head.ip, end, PATCH_ALWAYS if spare else function, borrowed=True))
                insort(self.runs, (head.ip, end))
                for island in spare:
                    insort(self.islands, island)
                    self._borrowed.add(island)
                return head.ip + JUMP_BYTES
            index += 1
        return None

    def _straight(self, code: list[Instruction], position: int) -> int:
        """End of the straight, free run from an instruction on: just past ten bytes, or less when there is none."""
        start = code[position].ip
        end = start
        for instruction in code[position:]:
            what = dis.KINDS[instruction.code]
            if end > start and self.text.barrier(instruction.ip):
                break
            if what == dis.LANDING or not self.taken.free(instruction.ip, instruction.next_ip):
                break
            if what == dis.CALL and what in self.ending and instruction.next_ip - start >= _BORROW_BYTES:
                return instruction.next_ip
            if what not in FALLS:
                break
            end = instruction.next_ip
            if end - start >= _BORROW_BYTES:
                return end
        return end

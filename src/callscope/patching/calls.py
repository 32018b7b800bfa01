"""Chooses the patches of recorded call sites, from what room the functions' own patches have left.

A call of five bytes or more is changed in place, a shorter one takes instructions before it along into its thunk. Where
the call comes back to, a run records that.
"""

from __future__ import annotations

from iced_x86 import Instruction, OpKind, Register

from callscope.binary import disassembly as dis
from callscope.patching.runs import JUMP_BYTES, CallSite, Refusal, Run
from callscope.patching.scope import Scope
from callscope.patching.text import GUARDED, NOT_PART, UNTOUCHED
from callscope.patching.windows import FALLS, Windows, long_displacement

_ALONG = frozenset({dis.PLAIN, dis.LEA, dis.IMMEDIATE, dis.NOP})
"""kinds that may run behind the push of the return address"""
_LONGEST_LEAD = 8
_AT_ONCE = frozenset({dis.CALL, dis.INDIRECT_CALL, dis.RET, dis.INDIRECT_JUMP})


class CallSites:
    """Plans the call sites of a range of functions, function by function."""

    def __init__(self, windows: Windows, scope: Scope) -> None:
        self._text, self._taken, self._layout = windows.text, windows.taken, windows.layout
        self._scope = scope
        self._runs = {run.start: run for run in self._layout.runs if not run.detached and run.island is None}

    def plan_function(self, index: int) -> None:
        """Choose the sites of one function, then the places they return to."""
        text = self._text
        if index in text.undecodable or text.kinds[index] in UNTOUCHED:
            return
        code = text.instructions(index)
        kinds = [dis.KINDS[instruction.code] for instruction in code]
        found = [position for position, kind in enumerate(kinds) if self._is_site(kind, code[position])]
        for position in found:
            self._layout.counts["call"] += 1
            reason = self._place(index, code, kinds, position)
            if reason is None:
                self._layout.calls.add(code[position].ip)
            else:
                self._refuse("call", index, code[position].ip, reason)
        if self._scope.once:
            return
        for position in found:
            if code[position].ip in self._layout.calls and position + 1 < len(code):
                self._return(index, code, kinds, position)

    def _is_site(self, kind: int, call: Instruction) -> bool:
        if call.ip in self._text.hooks:
            return False
        if kind != dis.CALL:
            return kind == dis.INDIRECT_CALL
        text, target = self._text, call.near_branch_target
        if any(low <= target < high for low, high in text.plt):
            return True
        function = text.function_starting(target)
        return self._scope.calls == "all" and function is not None and text.kinds[function] == NOT_PART

    def _refuse(self, kind: str, index: int, address: int, reason: str) -> None:
        self._layout.refusals.append(Refusal(kind, index, address, reason))

    def _place(self, index: int, code: list[Instruction], kinds: list[int], position: int) -> str | None:
        """Give a call its site; the reason when there is no room."""
        call, taken = code[position], self._taken
        if taken.holds(call.ip):
            return None  # a run holds it, and records it there
        if kinds[position] == dis.CALL:
            if not long_displacement(self._text.bytes_at(call.ip, call.len)):
                return "its displacement is not at its end"
            return self._take(CallSite(call.ip, call.next_ip, index, direct=True))
        first = position
        while call.next_ip - code[first].ip < JUMP_BYTES:
            before = code[first - 1] if first else None
            if self._text.barrier(code[first].ip) & ~GUARDED:
                return "a jump leads to it, and it is too short for a call of a thunk"
            if before is None or before.next_ip != code[first].ip or kinds[first - 1] not in _ALONG:
                return "what is before it cannot run with it, and it is too short for a call of a thunk"
            if _minds_the_stack(before):
                return "what is before it uses the stack pointer, and it is too short for a call of a thunk"
            first -= 1
        if call.next_ip - code[first].ip > JUMP_BYTES + _LONGEST_LEAD:
            return "what is before it is too long"
        return self._take(CallSite(code[first].ip, call.next_ip, index))

    def _take(self, site: CallSite) -> str | None:
        if not self._taken.free(site.start, site.end):
            return "another patch is too close"
        self._taken.take(site.start, site.end)
        self._layout.sites.append(site)
        return None

    def _return(self, index: int, code: list[Instruction], kinds: list[int], position: int) -> None:
        """Give the place behind a call a run, unless something else that is recorded follows at once."""
        text, taken = self._text, self._taken
        start = code[position].next_ip
        if code[position + 1].ip != start or kinds[position + 1] == dis.STOP:
            return  # it never comes back
        run = self._runs.get(start)
        if run is not None and run.function == index and not run.entry:
            self._layout.counts["return"] += 1
            run.returned = True
            return
        end, needed = start, JUMP_BYTES + text.lead(start)
        for instruction, kind in zip(code[position + 1 :], kinds[position + 1 :], strict=True):
            if end - start >= needed:
                break
            if kind in _AT_ONCE or instruction.ip in self._layout.tails:
                return
            if kind not in FALLS or (end > start and text.barrier(instruction.ip)) or taken.holds(instruction.ip):
                break
            end = instruction.next_ip
        self._layout.counts["return"] += 1
        if end - start < needed or not taken.free(start, end):
            self._refuse("return", index, start, "another patch or a jump's target is too close")
            return
        taken.take(start, end)
        run = self._runs[start] = Run(start, end, index, returned=True)
        self._layout.runs.append(run)


def _minds_the_stack(instruction: Instruction) -> bool:
    """Whether an instruction would do something else with the stack pointer eight bytes lower, other than by a memory
    operand, which can be adjusted.
    """
    if instruction.is_stack_instruction or instruction.memory_base == Register.ESP:
        return True
    return any(
        instruction.op_kind(number) == OpKind.REGISTER
        and instruction.op_register(number) in (Register.RSP, Register.ESP, Register.SP, Register.SPL)
        for number in range(instruction.op_count)
    )

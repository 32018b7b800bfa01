"""Machine code of trampolines: what a run becomes."""

from __future__ import annotations

import struct

from iced_x86 import Decoder, Instruction

from callscope.binary import disassembly as dis
from callscope.format import (
    NO_FUNCTION,
    STUB_ENTRY,
    STUB_ENTRY_CAPTURE,
    STUB_ENTRY_CAPTURE_RED_ZONE,
    STUB_ENTRY_RED_ZONE,
    STUB_ENTRY_WORDS,
    STUB_ENTRY_WORDS_RED_ZONE,
    STUB_EXIT,
    STUB_EXIT_CAPTURE,
    STUB_EXIT_WORD,
    STUB_LANDING,
    STUB_RETURNED,
    STUB_TAIL,
    STUB_TAIL_RED_ZONE,
)
from callscope.patching.capture import Capture
from callscope.patching.code import JMP, CannotMoveError, Piece, Writer
from callscope.patching.emit_calls import call_site, moved_call
from callscope.patching.runs import CallSite, Layout, Redirect, Run
from callscope.patching.text import Text
from callscope.patching.windows import long_displacement

_PUSH_RCX = b"\x51"
_POP_RCX = b"\x59"
_MOV_ECX = b"\xb9"
_RCX = 1
_PUSH_SAVED_RCX = bytes.fromhex("ff3424")  # push qword ptr [rsp]
_POP_TO_RCX = bytes.fromhex("8f41")  # pop qword ptr [rcx+...]
_LEA_RCX = bytes.fromhex("488d0d")  # lea rcx,[rip+...]
_BELOW_RED_ZONE = bytes.fromhex("488d6424 80")  # lea rsp,[rsp-128]
_ABOVE_RED_ZONE = bytes.fromhex("488da424 80000000")  # lea rsp,[rsp+128]


_AROUND = 16
"""bytes of a trampoline beside its gate and the instructions it took over, at most, as a rule"""
_LAST = ((2, b"\xf3\xc3"), (1, b"\xc3"), (5, b"\xe9"), (2, b"\xeb"))
"""what runs end with as a rule: bytes, and how they begin"""


class Emitter(Writer):
    """Turns runs and redirects of a range of functions into trampolines."""

    def __init__(self, text: Text, layout: Layout) -> None:
        super().__init__()
        self._text = text
        self._tails = layout.tails
        self._quiet = layout.quiet
        self._calls = layout.calls
        self._once = layout.once
        self._late: list[tuple[int, int, int]] = []

    def run(self, run: Run) -> Piece:
        """Emit the trampoline of a run. Raises CannotMoveError, leaving nothing behind."""
        mark = self.out.mark()
        try:
            return self._run(run)
        except CannotMoveError:
            self.out.cut(mark)
            raise

    def call_site(self, site: CallSite) -> Piece:
        """Emit the thunk of a call site. Raises CannotMoveError, leaving nothing behind."""
        return call_site(self, self._text, site, self._once)

    def redirect(self, redirect: Redirect) -> Piece | None:
        """Emit the trampoline of a redirected tail jump; None for one that goes to a moved instruction."""
        if not redirect.tail:
            return None
        start = self.begin()
        self._tail_stub(redirect.address, redirect.conditional)
        self.jump(redirect.target)
        return Piece(start, len(self.out.code), [(redirect.address, start)], self.pushed)

    def _run(self, run: Run) -> Piece:
        out, code = self.out, self.out.code
        raw = self._text.bytes_at(run.start, run.end - run.start)
        gate = self._gate(run, raw)
        start = self.begin(gate, gate + len(raw) + _AROUND)
        self._late = []
        if run.entry:
            if run.red_zone:
                code += _BELOW_RED_ZONE
                self.push(128)
            code += _PUSH_RCX
            self.push(8)
            capture = self._text.captures.get(run.function)
            if capture is not None and capture.entry:
                self._captured_entry(run, capture)
            else:
                code += _MOV_ECX + struct.pack("<I", run.function)
                self.stub(STUB_ENTRY_RED_ZONE if run.red_zone else STUB_ENTRY, run.function)
            code += _POP_RCX
            self.push(-8)
            if run.red_zone:
                code += _ABOVE_RED_ZONE
                self.push(-128)
        if run.landing:
            self.stub(STUB_LANDING)
        if run.returned:  # behind a call of setjmp, that may not be what has come back
            self.stub(STUB_RETURNED)
        moved: list[tuple[int, int]] = []
        closed = False
        decoder = Decoder(64, raw, ip=run.start)
        for instruction in decoder:
            offset = instruction.ip - run.start
            moved.append((instruction.ip, len(code)))
            if instruction.ip in self._quiet:
                out.labels[instruction.ip] = len(code)
            closed = self._move(instruction, raw[offset : offset + instruction.len], decoder)
        if not closed:
            self.jump(run.end)
        for position, target, address in self._late:
            struct.pack_into("<i", code, position, len(code) - (position + 4))
            self._tail_stub(address, True)
            self.jump(target)
        return Piece(start, len(code), moved, self.pushed)

    def _gate(self, run: Run, raw: bytes) -> int:
        """Where a run's first call of the stub page will be; a guess where that depends on its instructions."""
        if run.entry:
            capture = self._text.captures.get(run.function)
            load = len(_LEA_RCX) + 4 if capture is not None and capture.entry else len(_MOV_ECX) + 4
            return len(_PUSH_RCX) + load + (len(_BELOW_RED_ZONE) if run.red_zone else 0)
        if run.landing or run.returned:
            return 0
        return next((len(raw) - size for size, last in _LAST if raw[-size:].startswith(last)), 0)

    def _move(self, instruction: Instruction, raw: bytes, decoder: Decoder) -> bool:
        """Emit one instruction; True when nothing follows it."""
        code = self.out.code
        kind = dis.KINDS[instruction.code]
        if kind in dis.FALLS_THROUGH or kind == dis.STOP:
            if instruction.is_ip_rel_memory_operand:
                self.copy_relative(instruction, raw, decoder)
            else:
                code += raw
            return kind == dis.STOP
        if kind == dis.RET:
            self._exit(instruction.ip)
            code += raw
            return True
        if kind == dis.INDIRECT_JUMP:
            if instruction.ip in self._tails:
                self._tail_stub(instruction.ip, False)
            if instruction.is_ip_rel_memory_operand:
                self.copy_relative(instruction, raw, decoder)
            else:
                code += raw
            return True
        target = instruction.near_branch_target
        if kind == dis.JUMP:
            tail = instruction.ip in self._tails
            if tail:
                self._tail_stub(instruction.ip, False)
            self.jump(target, not tail and target in self._quiet)
            return True
        if kind == dis.BRANCH:
            code += b"\x0f" + bytes([0x80 | _condition(raw)])
            if instruction.ip in self._tails:
                self._late.append((len(code), target, instruction.ip))
                code += bytes(4)
            else:
                self.displacement(target, target in self._quiet)
            return False
        if kind == dis.LOOP:
            # Over a short jump to the next instruction, or on to the long one.
            code += raw[:-1] + b"\x02\xeb\x05" + JMP
            self.displacement(target, target in self._quiet)
            return False
        if kind in (dis.CALL, dis.INDIRECT_CALL):
            moved_call(self, self._text, instruction, instruction.ip in self._calls)
            return True
        raise CannotMoveError(f"holds {raw.hex()}, which cannot be moved")

    def _captured_entry(self, run: Run, capture: Capture) -> None:
        code = self.out.code
        code += _LEA_RCX
        self.capture(run.function)
        words = capture.entry_words
        if not words:
            self.stub(STUB_ENTRY_CAPTURE_RED_ZONE if run.red_zone else STUB_ENTRY_CAPTURE, run.function)
            return
        self.stub(STUB_ENTRY_WORDS_RED_ZONE if run.red_zone else STUB_ENTRY_WORDS, run.function)
        for number, register in enumerate(words):
            if register == _RCX:
                code += _PUSH_SAVED_RCX
                self.push(8)
                code += _POP_TO_RCX + bytes([8 * number])
                self.push(-8)
            else:
                code += bytes([0x48 | (register >> 3) << 2, 0x89, 0x41 | (register & 7) << 3, 8 * number])

    def _exit(self, address: int) -> None:
        owner = self._owner(address)
        capture = self._text.captures.get(owner)
        if capture is None or not capture.exit:
            self.stub(STUB_EXIT, owner)
            return
        if capture.has_exit_word:
            self.stub(STUB_EXIT_WORD, owner)
            return
        code = self.out.code
        code += _PUSH_RCX
        self.push(8)
        code += _LEA_RCX
        self.capture(owner)
        self.stub(STUB_EXIT_CAPTURE, owner)
        code += _POP_RCX
        self.push(-8)

    def _owner(self, address: int) -> int:
        """Index of the function whose code lies at an address, of the whole one for a part of it."""
        function = self._text.function_at(address)
        return int(self._text.owners[function]) if function is not None else NO_FUNCTION

    def _tail_stub(self, address: int, conditional: bool) -> None:
        code, owner = self.out.code, self._owner(address)
        if conditional and self._text.red_zone:
            # It may lead to a part of the same function that still uses the bytes below the stack pointer.
            code += _BELOW_RED_ZONE
            self.push(128)
            self.stub(STUB_TAIL_RED_ZONE, owner)
            code += _ABOVE_RED_ZONE
            self.push(-128)
        else:
            self.stub(STUB_TAIL, owner)


def _condition(raw: bytes) -> int:
    """Condition code of a conditional jump, from its bytes."""
    if long_displacement(raw):
        return raw[-5] & 15
    return raw[-2] & 15

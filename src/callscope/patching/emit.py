"""Machine code of trampolines: what a run becomes.

Encodings are those of the Intel SDM, volume 2. Displacements are written relative to the code's own start, as if the
image began there; `place` moves them when the region's layout is known.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
from iced_x86 import Code, Decoder, Encoder, Instruction, Register
from numpy.typing import NDArray

from callscope.binary import disassembly as dis
from callscope.binary.image import LARGEST_SPAN
from callscope.errors import PlanError
from callscope.format import (
    STUB_BYTES,
    STUB_ENTRY,
    STUB_ENTRY_RED_ZONE,
    STUB_EXIT,
    STUB_LANDING,
    STUB_TAIL,
    STUB_TAIL_RED_ZONE,
)
from callscope.patching.runs import Redirect, Run
from callscope.patching.text import Text
from callscope.patching.windows import long_displacement

_PUSH_RCX = b"\x51"
_POP_RCX = b"\x59"
_MOV_ECX = b"\xb9"
_CALL = b"\xe8"
_JMP = b"\xe9"
_NOP = b"\x90"
_BELOW_RED_ZONE = bytes.fromhex("488d6424 80")  # lea rsp,[rsp-128]
_ABOVE_RED_ZONE = bytes.fromhex("488da424 80000000")  # lea rsp,[rsp+128]
# To push an address without touching flags or registers.
_ROOM_FOR_ADDRESS = bytes.fromhex("488d6424f8")  # lea rsp,[rsp-8]
_PUSH_RAX = b"\x50"
_LEA_RAX = bytes.fromhex("488d05")  # lea rax,[rip+...]
_STORE_ADDRESS = bytes.fromhex("4889442408")  # mov [rsp+8],rax
_POP_RAX = b"\x58"
_ALIGNMENT = 8
_CACHE_LINE = 64


class CannotMoveError(Exception):
    """An instruction that has no equivalent elsewhere; the text is the reason."""


@dataclass(slots=True)
class Piece:
    """A trampoline: where it starts in the code, and old address -> offset of each instruction it took over.

    `pushed`: (offset, bytes) where the trampoline itself moves the stack pointer, for its unwind information.
    """

    start: int
    end: int
    moved: list[tuple[int, int]]
    pushed: list[tuple[int, int]]


@dataclass
class CodeBuffer:
    """Growing machine code with the places of displacements that depend on where it will lie (byte offsets)."""

    code: bytearray = field(default_factory=bytearray)
    to_image: list[int] = field(default_factory=list)
    to_stub: list[int] = field(default_factory=list)
    to_label: list[tuple[int, int]] = field(default_factory=list)
    labels: dict[int, int] = field(default_factory=dict)


class Emitter:
    """Turns runs and redirects of a range of functions into trampolines."""

    def __init__(self, text: Text, tails: set[int], quiet: set[int]) -> None:
        self._text = text
        self._tails = tails
        self._quiet = quiet
        self._pushed: list[tuple[int, int]] = []
        self._late: list[tuple[int, int]] = []
        self.out = CodeBuffer()

    def run(self, run: Run) -> Piece:
        """Emit the trampoline of a run. Raises CannotMoveError, leaving nothing behind."""
        out = self.out
        mark = (len(out.code), len(out.to_image), len(out.to_stub), len(out.to_label))
        try:
            return self._run(run)
        except CannotMoveError:
            del out.code[mark[0] :], out.to_image[mark[1] :], out.to_stub[mark[2] :], out.to_label[mark[3] :]
            raise

    def redirect(self, redirect: Redirect) -> Piece | None:
        """Emit the trampoline of a redirected tail jump; None for one that goes to a moved instruction."""
        if not redirect.tail:
            return None
        start = self._begin()
        self._tail_stub(redirect.conditional)
        self._jump(redirect.target)
        return Piece(start, len(self.out.code), [(redirect.address, start)], self._pushed)

    def _begin(self) -> int:
        code = self.out.code
        code += _NOP * (-len(code) % _ALIGNMENT)
        self._pushed, self._late = [], []
        return len(code)

    def _run(self, run: Run) -> Piece:
        out, code = self.out, self.out.code
        start = self._begin()
        if run.entry:
            if run.red_zone:
                code += _BELOW_RED_ZONE
                self._push(128)
            code += _PUSH_RCX
            self._push(8)
            code += _MOV_ECX + struct.pack("<I", run.function)
            self._stub(STUB_ENTRY_RED_ZONE if run.red_zone else STUB_ENTRY)
            code += _POP_RCX
            self._push(-8)
            if run.red_zone:
                code += _ABOVE_RED_ZONE
                self._push(-128)
        if run.landing:
            self._stub(STUB_LANDING)
        moved: list[tuple[int, int]] = []
        closed = False
        raw = self._text.bytes_at(run.start, run.end - run.start)
        decoder = Decoder(64, raw, ip=run.start)
        for instruction in decoder:
            offset = instruction.ip - run.start
            moved.append((instruction.ip, len(code)))
            if instruction.ip in self._quiet:
                out.labels[instruction.ip] = len(code)
            closed = self._move(instruction, raw[offset : offset + instruction.len], decoder)
        if not closed:
            self._jump(run.end)
        for position, target in self._late:
            struct.pack_into("<i", code, position, len(code) - (position + 4))
            self._tail_stub(True)
            self._jump(target)
        return Piece(start, len(code), moved, self._pushed)

    def _move(self, instruction: Instruction, raw: bytes, decoder: Decoder) -> bool:
        """Emit one instruction; True when nothing follows it."""
        code = self.out.code
        kind = dis.KINDS[instruction.code]
        if kind in dis.FALLS_THROUGH or kind == dis.STOP:
            if instruction.is_ip_rel_memory_operand:
                self._copy_relative(instruction, raw, decoder)
            else:
                code += raw
            return kind == dis.STOP
        if kind == dis.RET:
            self._stub(STUB_EXIT)
            code += raw
            return True
        if kind == dis.INDIRECT_JUMP:
            if instruction.ip in self._tails:
                self._tail_stub(False)
            if instruction.is_ip_rel_memory_operand:
                self._copy_relative(instruction, raw, decoder)
            else:
                code += raw
            return True
        target = instruction.near_branch_target
        if kind == dis.JUMP:
            tail = instruction.ip in self._tails
            if tail:
                self._tail_stub(False)
            self._jump(target, not tail and target in self._quiet)
            return True
        if kind == dis.BRANCH:
            code += b"\x0f" + bytes([0x80 | _condition(raw)])
            if instruction.ip in self._tails:
                self._late.append((len(code), target))
                code += bytes(4)
            else:
                self._displacement(target, target in self._quiet)
            return False
        if kind == dis.LOOP:
            # Over a short jump to the next instruction, or on to the long one.
            code += raw[:-1] + b"\x02\xeb\x05" + _JMP
            self._displacement(target, target in self._quiet)
            return False
        if kind == dis.CALL:
            self._push_address(instruction.next_ip)
            self._jump(target)
            self._push(-8)
            return True
        if kind == dis.INDIRECT_CALL:
            self._indirect_call(instruction, raw)
            self._push(-8)
            return True
        raise CannotMoveError(f"holds {raw.hex()}, which cannot be moved")

    def _indirect_call(self, instruction: Instruction, raw: bytes) -> None:
        out, code = self.out, self.out.code
        on_stack = Register.RSP in (instruction.memory_base, instruction.op0_register)
        if instruction.op0_register != Register.NONE and on_stack:
            raise CannotMoveError("calls through the stack pointer")
        jump = instruction.copy()
        jump.code = Code.JMP_RM64
        if on_stack:
            jump.memory_displacement = (jump.memory_displacement + 8) % (1 << 64)
            jump.memory_displ_size = 8
        relative = instruction.is_ip_rel_memory_operand
        self._push_address(instruction.next_ip)
        if relative:
            code += b"\xff\x25"
            out.to_image.append(len(code))
            code += _relative(instruction.ip_rel_memory_address, len(code) + 4)
            return
        encoder = Encoder(64)
        try:
            encoder.encode(jump, 0)
        except ValueError as error:
            raise CannotMoveError(f"holds {raw.hex()}, which cannot be moved") from error
        code += encoder.take_buffer()

    def _copy_relative(self, instruction: Instruction, raw: bytes, decoder: Decoder) -> None:
        out, code = self.out, self.out.code
        offset = decoder.get_constant_offsets(instruction).displacement_offset
        place = len(code)
        code += raw
        out.to_image.append(place + offset)
        code[place + offset : place + offset + 4] = _relative(
            instruction.ip_rel_memory_address, place + instruction.len
        )

    def _push_address(self, address: int) -> None:
        code = self.out.code
        code += _ROOM_FOR_ADDRESS
        self._push(8)
        code += _PUSH_RAX
        self._push(8)
        code += _LEA_RAX
        self._displacement(address, False)
        code += _STORE_ADDRESS + _POP_RAX
        self._push(-8)

    def _push(self, amount: int) -> None:
        """Note that the trampoline has moved the stack pointer down by `amount` bytes here."""
        self._pushed.append((len(self.out.code), amount))

    def _jump(self, target: int, label: bool = False) -> None:
        self.out.code += _JMP
        self._displacement(target, label)

    def _displacement(self, target: int, label: bool) -> None:
        """A 32-bit displacement to an address of the image, or to the moved instruction that was there."""
        out = self.out
        position = len(out.code)
        if label:
            out.to_label.append((position, target))
            out.code += bytes(4)
            return
        out.to_image.append(position)
        out.code += _relative(target, position + 4)

    def _tail_stub(self, conditional: bool) -> None:
        code = self.out.code
        if conditional and self._text.red_zone:
            # It may lead to a part of the same function that still uses the bytes below the stack pointer.
            code += _BELOW_RED_ZONE
            self._push(128)
            self._stub(STUB_TAIL_RED_ZONE)
            code += _ABOVE_RED_ZONE
            self._push(-128)
        else:
            self._stub(STUB_TAIL)

    def _stub(self, stub: int) -> None:
        """Call a slot of the stub page. Its first two bytes lie in one cache line, so that they can be rewritten at
        once.
        """
        out = self.out
        if len(out.code) % _CACHE_LINE == _CACHE_LINE - 1:
            out.code += _NOP
        out.code += _CALL
        out.to_stub.append(len(out.code))
        out.code += struct.pack("<i", stub * STUB_BYTES - (len(out.code) + 4))

    def resolve_labels(self) -> None:
        """Fill in the displacements to moved instructions, once every run is emitted."""
        out = self.out
        for position, target in out.to_label:
            place = out.labels.get(target)
            if place is None:  # its run was given up: the instruction is where it was
                out.to_image.append(position)
                place = target
            struct.pack_into("<i", out.code, position, place - (position + 4))


def _relative(target: int, end: int) -> bytes:
    """The displacement to an address of the image from an instruction that ends at `end`; CannotMoveError when there is
    none.
    """
    if not 0 <= target < LARGEST_SPAN:
        raise CannotMoveError(f"refers to {target:#x}, outside of the image")
    return struct.pack("<i", target - end)


def _condition(raw: bytes) -> int:
    """Condition code of a conditional jump, from its bytes."""
    if long_displacement(raw):
        return raw[-5] & 15
    return raw[-2] & 15


def shift_displacements(code: NDArray[np.uint8], positions: NDArray[np.int64], amount: int) -> None:
    """Add `amount` to the 32-bit displacements at `positions` (byte offsets) of `code`, in place.

    Raises PlanError when one does not fit any more.
    """
    if not len(positions):
        return
    bytes_at = positions[:, None] + np.arange(4)
    values = np.ascontiguousarray(code[bytes_at]).view("<i4")[:, 0].astype(np.int64) + amount
    if len(values) and (values.max() > 0x7FFFFFFF or values.min() < -0x80000000):
        raise PlanError("the image is too large: its trampolines do not reach all of it")
    code[bytes_at] = values.astype("<i4").view("u1").reshape(-1, 4)

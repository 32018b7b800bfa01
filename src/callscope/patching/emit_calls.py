"""Machine code for calls: those that moved into a trampoline, and those whose call site is recorded.

A recorded call stays a call, at its place and of its length, but of a thunk: the return address on the stack is the
true one, and the processor predicts the return. The thunk records and jumps to the target. Only a call that has moved
for another reason pushes its return address by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from iced_x86 import Code, Decoder, Encoder, Instruction, MemoryOperand, Register, RegisterExt

from callscope.binary import disassembly as dis
from callscope.format import STUB_CALL
from callscope.patching.code import CannotMoveError, Piece, Writer
from callscope.patching.runs import CallSite
from callscope.patching.text import Text

_PUSH_RCX = b"\x51"
_POP_RCX = b"\x59"
_MOV_ECX_RELATIVE = b"\x8b\x0d"  # mov ecx,[rip+...]
_LEA_ECX_RELATIVE = b"\x8d\x0d"
_JMP_RELATIVE = b"\xff\x25"  # jmp [rip+...]
_PLT_BYTES = 16
# A site that is recorded once has a byte that is 0 until then: movzx ecx,[rip+...]; jrcxz to what records; pop rcx.
_MOVZX_ECX_RELATIVE = b"\x0f\xb6\x0d"
_JRCXZ = 0xE3
_MOV_ECX_1 = bytes.fromhex("b901000000")
_STORE_CL_RELATIVE = b"\x88\x0d"
_RELOAD_RCX = bytes.fromhex("488b0c24")  # mov rcx,[rsp]


@dataclass(frozen=True, slots=True)
class _Target:
    """What a call calls: an address of the image, and the word that a linkage stub there jumps through; or an
    operand.
    """

    call: Instruction
    address: int | None
    slot: int | None

    @classmethod
    def of(cls, text: Text, call: Instruction) -> _Target:
        if dis.KINDS[call.code] != dis.CALL:
            if Register.RSP in (call.memory_index, call.op0_register) or Register.ESP in (
                call.memory_base,
                call.op0_register,
            ):
                raise CannotMoveError("calls through the stack pointer")
            return cls(call, None, call.ip_rel_memory_address if call.is_ip_rel_memory_operand else None)
        target = call.near_branch_target
        return cls(call, target, linkage_slot(text, target))

    def load(self, writer: Writer, down: int) -> None:
        """Put the low half of the target's address into ecx; rcx is the program's, the stack pointer `down` bytes lower
        than at the call.
        """
        code = writer.out.code
        if self.slot is not None:
            code += _MOV_ECX_RELATIVE
            writer.displacement(self.slot)
        elif self.address is not None:
            code += _LEA_ECX_RELATIVE
            writer.displacement(self.address)
        elif self.call.op0_register != Register.NONE:
            low = RegisterExt.full_register32(self.call.op0_register)
            code += _encode(Instruction.create_reg_reg(Code.MOV_R32_RM32, Register.ECX, low), self.call)
        else:
            operand = self._operand(down)
            code += _encode(Instruction.create_reg_mem(Code.MOV_R32_RM32, Register.ECX, operand), self.call)

    def jump(self, writer: Writer, down: int) -> None:
        """Go there; the stack pointer is `down` bytes lower than at the call."""
        code = writer.out.code
        if self.address is not None:
            writer.jump(self.address)
        elif self.slot is not None:
            code += _JMP_RELATIVE
            writer.displacement(self.slot)
        elif self.call.op0_register != Register.NONE:
            code += _encode(Instruction.create_reg(Code.JMP_RM64, self.call.op0_register), self.call)
        else:
            code += _encode(Instruction.create_mem(Code.JMP_RM64, self._operand(down)), self.call)

    def _operand(self, down: int) -> MemoryOperand:
        return _lower_operand(self.call, down)


def linkage_slot(text: Text, target: int) -> int | None:
    """The word through which the linkage stub at an address jumps; None when there is no such stub."""
    if not any(low <= target < high for low, high in text.plt):
        return None
    for instruction in Decoder(64, text.bytes_at(target, _PLT_BYTES), ip=target):
        kind = dis.KINDS[instruction.code]
        if kind == dis.INDIRECT_JUMP and instruction.is_ip_rel_memory_operand:
            return int(instruction.ip_rel_memory_address)
        if kind != dis.LANDING:
            break
    return None


def moved_call(writer: Writer, text: Text, call: Instruction, recorded: bool) -> None:
    """A call that has moved into a trampoline. Raises CannotMoveError."""
    target = _Target.of(text, call)
    writer.push_address(call.next_ip)
    if recorded:
        _record(writer, target, 16)
        writer.out.code += _POP_RCX
        writer.push(-8)
    target.jump(writer, 8)
    writer.push(-8)


def call_site(writer: Writer, text: Text, site: CallSite, once: bool) -> Piece:
    """The thunk of a call site. Raises CannotMoveError, leaving nothing behind."""
    mark = writer.out.mark()
    try:
        return _call_site(writer, text, site, once)
    except CannotMoveError:
        writer.out.cut(mark)
        raise


def _call_site(writer: Writer, text: Text, site: CallSite, once: bool) -> Piece:
    start = writer.begin()
    decoder = Decoder(64, text.bytes_at(site.start, site.end - site.start), ip=site.start)
    for instruction in decoder:
        if instruction.next_ip < site.end:
            raw = text.bytes_at(instruction.ip, instruction.len)
            _displaced(writer, instruction, raw, decoder)
            continue
        target = _Target.of(text, instruction)
        if once:
            _record_once(writer, target)
        else:
            _record(writer, target, 16)
            writer.out.code += _POP_RCX
            writer.push(-8)
            target.jump(writer, 8)
    return Piece(start, len(writer.out.code), [], writer.pushed)


def _record(writer: Writer, target: _Target, down: int) -> None:
    """Record a call whose return address is on the stack; rcx stays pushed. `down`: of the stack pointer afterwards."""
    writer.out.code += _PUSH_RCX
    writer.push(8)
    target.load(writer, down)
    writer.stub(STUB_CALL)


def _record_once(writer: Writer, target: _Target) -> None:
    out = writer.out
    number = out.flags
    out.code += _PUSH_RCX
    writer.push(8)
    out.code += _MOVZX_ECX_RELATIVE
    writer.flag(number)
    out.code += bytes([_JRCXZ, 0])
    skip = len(out.code)
    out.code += _POP_RCX
    writer.push(-8)
    target.jump(writer, 8)
    out.code[skip - 1] = len(out.code) - skip
    writer.push(8)
    out.code += _MOV_ECX_1 + _STORE_CL_RELATIVE
    writer.flag(number)
    out.code += _RELOAD_RCX
    target.load(writer, 16)
    writer.stub(STUB_CALL)
    back = skip - (len(out.code) + 2)
    out.code += bytes([0xEB, back & 255])
    out.flags += 1


def _displaced(writer: Writer, instruction: Instruction, raw: bytes, decoder: Decoder) -> None:
    """An instruction from before the call, which now runs when the return address is on the stack already."""
    if instruction.is_ip_rel_memory_operand:
        writer.copy_relative(instruction, raw, decoder)
    elif instruction.memory_base == Register.RSP:
        lowered = instruction.copy()
        lowered.memory_displacement = (instruction.memory_displacement + 8) % (1 << 64)
        lowered.memory_displ_size = 1
        writer.out.code += _encode(lowered, instruction)
    else:
        writer.out.code += raw


def _lower_operand(call: Instruction, down: int) -> MemoryOperand:
    """A call's memory operand where the stack pointer is `down` bytes lower."""
    displacement = int(call.memory_displacement)
    displacement -= (displacement >> 63) << 64
    if call.memory_base == Register.RSP:
        displacement += down
    scale = call.memory_index_scale
    return MemoryOperand(call.memory_base, call.memory_index, scale, displacement, 1, seg=call.segment_prefix)


def _encode(instruction: Instruction, original: Instruction) -> bytes:
    encoder = Encoder(64)
    try:
        encoder.encode(instruction, 0)
    except ValueError as error:
        raise CannotMoveError(f"holds {original}, which cannot be moved") from error
    return encoder.take_buffer()

"""Decoding of machine code for planning: one byte says what kind of instruction an opcode is.

iced-x86 decodes; asking an instruction for its flow control and operands costs more than decoding it, so the kind is
looked up from the opcode's number in a table made once.
"""

from __future__ import annotations

from collections.abc import Iterator

from iced_x86 import Code, Decoder, FlowControl, Instruction, Mnemonic

PLAIN = 0
RET = 1
JUMP = 2
BRANCH = 3
CALL = 4
INDIRECT_JUMP = 5
INDIRECT_CALL = 6
STOP = 7
"""ud2, hlt and int3: nothing follows"""
LEA = 8
IMMEDIATE = 9
"""may hold an absolute address where code is not position-independent"""
LANDING = 10
"""endbr64: an indirect branch may land here"""
NOP = 11
LOOP = 12
"""loop, jrcxz: a branch with an 8-bit displacement only"""
TRANSACTION = 13
INVALID = 14

_FLOW = {
    FlowControl.RETURN: RET,
    FlowControl.UNCONDITIONAL_BRANCH: JUMP,
    FlowControl.CONDITIONAL_BRANCH: BRANCH,
    FlowControl.CALL: CALL,
    FlowControl.INDIRECT_BRANCH: INDIRECT_JUMP,
    FlowControl.INDIRECT_CALL: INDIRECT_CALL,
    FlowControl.EXCEPTION: STOP,
    FlowControl.XBEGIN_XABORT_XEND: TRANSACTION,
}
_LOOPS = {Mnemonic.LOOP, Mnemonic.LOOPE, Mnemonic.LOOPNE, Mnemonic.JRCXZ, Mnemonic.JECXZ, Mnemonic.JCXZ}
_IMMEDIATES = {
    Code.MOV_R32_IMM32,
    Code.MOV_R64_IMM64,
    Code.MOV_RM64_IMM32,
    Code.MOV_RM32_IMM32,
    Code.PUSHQ_IMM32,
    Code.PUSHD_IMM32,
}


def _kind_table() -> bytes:
    codes = [value for name, value in vars(Code).items() if name.isupper() and isinstance(value, int)]
    table = bytearray(max(codes) + 1)
    probe = Instruction()
    for code in codes:
        probe.code = code  # type: ignore[assignment]  # the stubs give codes a type of their own: they are integers
        mnemonic = probe.mnemonic
        kind = _FLOW.get(probe.flow_control, PLAIN)
        if code == Code.INVALID:
            kind = INVALID
        elif mnemonic in _LOOPS:
            kind = LOOP
        elif mnemonic in (Mnemonic.INT3, Mnemonic.HLT):
            kind = STOP
        elif mnemonic == Mnemonic.LEA:
            kind = LEA
        elif mnemonic == Mnemonic.ENDBR64:
            kind = LANDING
        elif mnemonic == Mnemonic.NOP:
            kind = NOP
        elif kind == CALL and mnemonic != Mnemonic.CALL:
            kind = PLAIN  # syscall and its like, which iced-x86 counts among the calls
        elif code in _IMMEDIATES:
            kind = IMMEDIATE
        table[code] = kind
    return bytes(table)


KINDS = _kind_table()
"""kind of an instruction by its iced-x86 code"""

FALLS_THROUGH = frozenset({PLAIN, LEA, IMMEDIATE, NOP, LANDING})
"""kinds after which the next instruction always runs"""
NEVER_RETURNS = frozenset({RET, JUMP, INDIRECT_JUMP, STOP})
"""kinds after which the next instruction is reached by a branch only"""


def decode(code: bytes | memoryview, address: int) -> Iterator[Instruction]:
    """Every instruction of `code`, which lies at `address` (bytes)."""
    return iter(Decoder(64, bytes(code), ip=address))

"""Memory and registers as a crash left them: what the raw record holds, in the words of the processor."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from callscope import format as records
from callscope.trace.journal import Crash

GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
"""In the order of the record, which is that of their encodings (SDM volume 2, 3.1.1.1)."""
DWARF = ("rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
"""In DWARF's numbering (System V ABI for x86-64, figure 3.36)."""
CALLEE_SAVED = ("rbx", "rbp", "r12", "r13", "r14", "r15")

Registers = dict[str, int | None]
"""GENERAL, rip and rflags; None where a value is not known any more."""

# The kernel's signal frame behind its return address (struct rt_sigframe, arch/x86/include/asm/sigframe.h).
_FRAME_BYTES = 304 + 128
_FRAME_REGISTERS = ("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rdi", "rsi", "rbp", "rbx", "rdx", "rax",
                    "rcx", "rsp", "rip", "rflags")  # fmt: skip
_USER_CODE = 0x33
_MOST_SIGNAL = 64
_XSAVE_HEADER = 512
_XMM, _YMM, _MASKS, _ZMM, _HIGH_ZMM = 1, 2, 5, 6, 7
"""Parts of the vector state (SDM volume 1, 13.1)."""


@dataclass(frozen=True)
class Memory:
    """Pieces of memory that were copied: (address, bytes). Of two that overlap the first counts."""

    pieces: Sequence[tuple[int, bytes]]

    def read(self, address: int, size: int) -> bytes | None:
        """The bytes there, or None when not all of them were copied."""
        for start, data in self.pieces:
            if start <= address and address + size <= start + len(data):
                return data[address - start : address - start + size]
        return None

    def word(self, address: int) -> int | None:
        """The 64-bit number there, or None."""
        data = self.read(address, 8)
        return None if data is None else int.from_bytes(data, "little")


@dataclass(frozen=True)
class SignalFrame:
    """What the kernel pushed when it called a handler. signal: 0 when unknown. fault_address: 0 for signals that were
    sent.
    """

    signal: int
    detail: int
    fault_address: int
    registers: Registers


def registers_of(crash: Crash) -> Registers:
    """The registers of a record."""
    fields = crash.fields
    return {
        **dict(zip(GENERAL, fields["registers"], strict=True)),
        "rip": fields["rip"],
        "rflags": fields["rflags"],
    }


def signal_frame(memory: Memory, address: int) -> SignalFrame | None:
    """The signal frame whose ucontext lies at `address`; None when what lies there is none."""
    data = memory.read(address, _FRAME_BYTES)
    if data is None:
        return None
    flags, link = struct.unpack_from("<QQ", data)
    values = struct.unpack_from("<18Q", data, 40)
    code_segment = struct.unpack_from("<H", data, 40 + 18 * 8)[0]
    number, _, detail = struct.unpack_from("<iii", data, 304)
    if flags > 15 or link or code_segment != _USER_CODE:
        return None
    if not 0 < number <= _MOST_SIGNAL or not -64 <= detail <= 0x80:
        number = detail = 0  # the kernel fills that part only for handlers that ask for it
    fault = struct.unpack_from("<Q", data, 304 + 16)[0] if detail > 0 else 0
    return SignalFrame(number, detail, fault, dict(zip(_FRAME_REGISTERS, values, strict=True)))


def vector_registers(fields: Mapping[str, Any], state: bytes) -> dict[str, int]:
    """The vector registers, as wide as they were stored, and mxcsr; {} when there are none.

    Layouts: SDM volume 1, table 10-2 (FXSAVE), 13.4 (XSAVE); parts that XSTATE_BV does not name are zero.
    """
    if len(state) < _XSAVE_HEADER or fields["vector_layout"] not in (records.VECTOR_FXSAVE, records.VECTOR_XSAVE):
        return {}
    present = 0b11
    if fields["vector_layout"] == records.VECTOR_XSAVE and len(state) >= _XSAVE_HEADER + 8:
        present = struct.unpack_from("<Q", state, _XSAVE_HEADER)[0]
    ymm, masks, zmm, high_zmm = fields["vector_offsets"]

    def part(component: int, offset: int, index: int, size: int) -> int:
        data = state[offset + index * size : offset + (index + 1) * size] if present >> component & 1 else b""
        return int.from_bytes(data, "little")

    width = "zmm" if zmm else "ymm" if ymm else "xmm"
    out = {"mxcsr": struct.unpack_from("<I", state, 24)[0]}
    for index in range(16):
        value = part(_XMM, 160, index, 16)
        value |= part(_YMM, ymm, index, 16) << 128 if ymm else 0
        value |= part(_ZMM, zmm, index, 32) << 256 if zmm else 0
        out[f"{width}{index}"] = value
    if high_zmm:
        out |= {f"zmm{16 + index}": part(_HIGH_ZMM, high_zmm, index, 64) for index in range(16)}
    if masks:
        out |= {f"k{index}": part(_MASKS, masks, index, 8) for index in range(8)}
    return out

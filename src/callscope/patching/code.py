"""Machine code in the making: bytes, the displacements that depend on where they will lie, and the stack pointer's way.

Encodings are those of the Intel SDM, volume 2. Displacements are written relative to the code's own start, as if the
image began there; planfile.py moves them when the region's layout is known.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
from iced_x86 import Decoder, Instruction
from numpy.typing import NDArray

from callscope.binary.image import LARGEST_SPAN
from callscope.errors import PlanError
from callscope.format import NO_FUNCTION, STUB_BYTES

_CALL = b"\xe8"
JMP = b"\xe9"
NOP = b"\x90"
# To push an address without touching flags or registers.
_ROOM_FOR_ADDRESS = bytes.fromhex("488d6424f8")  # lea rsp,[rsp-8]
_PUSH_RAX = b"\x50"
_LEA_RAX = bytes.fromhex("488d05")  # lea rax,[rip+...]
_STORE_ADDRESS = bytes.fromhex("4889442408")  # mov [rsp+8],rax
_POP_RAX = b"\x58"
_CACHE_LINE = 64
_WORD = 8
_CALL_BYTES = 5
_PADS = (b"", NOP, bytes.fromhex("6690"), bytes.fromhex("0f1f00"), bytes.fromhex("0f1f4000"))
"""no-operations of 0 to 4 bytes, an instruction each"""


class CannotMoveError(Exception):
    """An instruction that has no equivalent elsewhere; the text is the reason."""


@dataclass(slots=True)
class Piece:
    """A trampoline: where it starts in the code, and old address -> offset of each instruction it took over.

    `pushed`: (offset, bytes) where the trampoline itself moves the stack pointer, for its unwind information. Without
    `moved` it runs as a function of its own does: with its return address on the stack.
    """

    start: int
    end: int
    moved: list[tuple[int, int]]
    pushed: list[tuple[int, int]]


@dataclass
class CodeBuffer:
    """Growing machine code with the places of displacements that depend on where it will lie (byte offsets).

    `gates`: calls of the stub page, and whose event each records. `to_flag`: those to the byte of a call site, with its
    number. `to_capture`: those to a capture record, with its
    function's index.
    """

    code: bytearray = field(default_factory=bytearray)
    to_image: list[int] = field(default_factory=list)
    to_stub: list[int] = field(default_factory=list)
    gates: list[tuple[int, int]] = field(default_factory=list)
    to_flag: list[tuple[int, int]] = field(default_factory=list)
    to_capture: list[tuple[int, int]] = field(default_factory=list)
    to_label: list[tuple[int, int]] = field(default_factory=list)
    labels: dict[int, int] = field(default_factory=dict)
    flags: int = 0

    def mark(self) -> tuple[int, ...]:
        """Where it stands, for `cut`."""
        return (
            len(self.code),
            len(self.to_image),
            len(self.to_stub),
            len(self.gates),
            len(self.to_flag),
            len(self.to_capture),
            len(self.to_label),
        )

    def cut(self, mark: tuple[int, ...]) -> None:
        """Forget everything since `mark`."""
        code, to_image, to_stub, gates, to_flag, to_capture, to_label = mark
        del self.code[code:], self.to_image[to_image:], self.to_stub[to_stub:]
        del self.gates[gates:], self.to_flag[to_flag:], self.to_capture[to_capture:], self.to_label[to_label:]


class Writer:
    """Writes one piece after the other into a code buffer."""

    def __init__(self) -> None:
        self.out = CodeBuffer()
        self.pushed: list[tuple[int, int]] = []

    def begin(self, gate: int = 0, size: int = 0) -> int:
        """Begin a piece; its offset. `gate`: where in it the first call of the stub page will be, as far as one knows:
        the piece begins so that nothing has to stand before that call. `size`: its bytes, about: what is short lies in
        one cache line, which is worth a third of what a closed gate costs.
        """
        code = self.out.code
        if len(code) % _CACHE_LINE + size > _CACHE_LINE >= 2 * size:
            code += NOP * (-len(code) % _CACHE_LINE)
        inside = (len(code) + gate) % _WORD
        if inside > _WORD - _CALL_BYTES:
            code += NOP * (_WORD - inside)
        self.pushed = []
        return len(code)

    def push(self, amount: int) -> None:
        """Note that the trampoline has moved the stack pointer down by `amount` bytes here."""
        self.pushed.append((len(self.out.code), amount))

    def push_address(self, address: int) -> None:
        """Code that pushes an address of the image."""
        code = self.out.code
        code += _ROOM_FOR_ADDRESS
        self.push(8)
        code += _PUSH_RAX
        self.push(8)
        code += _LEA_RAX
        self.displacement(address)
        code += _STORE_ADDRESS + _POP_RAX
        self.push(-8)

    def jump(self, target: int, label: bool = False) -> None:
        """A jump to an address of the image, or to the moved instruction that was there."""
        self.out.code += JMP
        self.displacement(target, label)

    def displacement(self, target: int, label: bool = False) -> None:
        """A 32-bit displacement to an address of the image, or to the moved instruction that was there."""
        out = self.out
        position = len(out.code)
        if label:
            out.to_label.append((position, target))
            out.code += bytes(4)
            return
        out.to_image.append(position)
        out.code += _relative(target, position + 4)

    def flag(self, number: int) -> None:
        """A 32-bit displacement, the last bytes of its instruction, to the byte of call site `number`."""
        out = self.out
        out.to_flag.append((len(out.code), number))
        out.code += struct.pack("<i", number - (len(out.code) + 4))

    def capture(self, function: int) -> None:
        """A 32-bit displacement, the last bytes of its instruction, to the capture record of a function."""
        out = self.out
        out.to_capture.append((len(out.code), function))
        out.code += struct.pack("<i", -(len(out.code) + 4))

    def copy_relative(self, instruction: Instruction, raw: bytes, decoder: Decoder) -> None:
        """An instruction with an operand relative to itself, `raw` as it stands and just decoded."""
        out, code = self.out, self.out.code
        offset = decoder.get_constant_offsets(instruction).displacement_offset
        place = len(code)
        code += raw
        out.to_image.append(place + offset)
        code[place + offset : place + offset + 4] = _relative(
            instruction.ip_rel_memory_address, place + instruction.len
        )

    def stub(self, stub: int, function: int = NO_FUNCTION) -> None:
        """Call a slot of the stub page, for an event of `function`. The instruction lies within eight aligned bytes, so
        that it can be rewritten at once.
        """
        out = self.out
        inside = len(out.code) % _WORD
        if inside > _WORD - _CALL_BYTES:
            out.code += _PADS[_WORD - inside]
        out.gates.append((len(out.code), function))
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


def shift_displacements(code: NDArray[np.uint8], positions: NDArray[np.int64], amount: int | NDArray[np.int64]) -> None:
    """Add `amount`, one or one for each, to the 32-bit displacements at `positions` (byte offsets) of `code`, in place.

    Raises PlanError when one does not fit any more.
    """
    if not len(positions):
        return
    bytes_at = positions[:, None] + np.arange(4)
    values = np.ascontiguousarray(code[bytes_at]).view("<i4")[:, 0].astype(np.int64) + amount
    if len(values) and (values.max() > 0x7FFFFFFF or values.min() < -0x80000000):
        raise PlanError("the image is too large: its trampolines do not reach all of it")
    code[bytes_at] = values.astype("<i4").view("u1").reshape(-1, 4)

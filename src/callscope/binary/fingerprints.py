"""What stays of a function when it is linked anew: its instructions without addresses and displacements."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from iced_x86 import Decoder, OpKind, Register

from callscope.binary import disassembly as dis
from callscope.binary.image import Image

DIGEST_BYTES = 16


def fingerprint(image: Image, start: int, size: int) -> bytes:
    """A hash, 16 bytes, of the function's instructions.

    In it are the opcodes and registers; immediates and displacements too where they cannot be addresses: not where they
    are relative to the instruction, nor branches' targets, nor from the size of an address of the image on. Padding at
    the end does not count.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    pending: list[bytes] = []
    for instruction in Decoder(64, image.read(start, size), ip=start):
        kind = dis.KINDS[instruction.code]
        word = [int(instruction.code)]
        for operand in range(instruction.op_count):
            what = instruction.op_kind(operand)
            if what == OpKind.REGISTER:
                word.append(int(instruction.op_register(operand)))
            elif what == OpKind.MEMORY:
                word += [int(instruction.memory_base), int(instruction.memory_index), instruction.memory_index_scale]
                is_near = instruction.memory_base not in (Register.RIP, Register.NONE)
                word.append(instruction.memory_displacement & 0xFFFFFFFF if is_near else 0)
            elif OpKind.IMMEDIATE8 <= what <= OpKind.IMMEDIATE32TO64:
                value = instruction.immediate(operand)
                word.append(value & 0xFFFFFFFFFFFFFFFF if value < 0x1000 or value >> 63 else 0)
        text = repr(word).encode()
        if kind in (dis.NOP, dis.STOP):
            pending.append(text)
            continue
        digest.update(b"".join([*pending, text]))
        pending.clear()
    return digest.digest()


def fingerprints(image: Image, starts: Iterable[int], sizes: Iterable[int]) -> list[bytes]:
    """The fingerprints of functions, by relative address and size in bytes."""
    return [fingerprint(image, start, size) for start, size in zip(starts, sizes, strict=True)]

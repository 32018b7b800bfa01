"""What short straight code does to the stack pointer: instructions that push, pop and move it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from iced_x86 import Code, Decoder, Instruction, Mnemonic, OpKind, Register

_NAMES: Final = {
    getattr(Register, name): name.lower()
    for name in ("RAX", "RCX", "RDX", "RBX", "RBP", "RSI", "RDI", *(f"R{n}" for n in range(8, 16)))
}
_ADDRESSES = 1 << 64


def stack_effects(code: bytes) -> Iterator[tuple[int, str | None]]:
    """For each instruction: by how many bytes it moves the stack pointer down, and the register that it pushes.

    Calls are taken to have returned.
    """
    for instruction in Decoder(64, code):
        yield _effect(instruction)


def _effect(instruction: Instruction) -> tuple[int, str | None]:
    if instruction.mnemonic == Mnemonic.PUSH and instruction.op0_kind == OpKind.REGISTER:
        return 8, _NAMES.get(instruction.op0_register)
    if instruction.mnemonic == Mnemonic.POP:
        return -8, None
    if instruction.code == Code.LEA_R64_M and instruction.op0_register == Register.RSP:
        displacement = instruction.memory_displacement
        return _ADDRESSES - displacement if displacement >> 63 else -displacement, None
    return 0, None


def pushed_first(code: bytes) -> list[str]:
    """The registers that the code pushes before it does anything else, in order."""
    names: list[str] = []
    for _, name in stack_effects(code):
        if name is None:
            break
        names.append(name)
    return names

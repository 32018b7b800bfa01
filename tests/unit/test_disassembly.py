"""Kinds of instructions."""

import pytest

from callscope.binary import disassembly as dis


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("e800000000", dis.CALL),
        ("ffd0", dis.INDIRECT_CALL),
        ("ffe0", dis.INDIRECT_JUMP),
        ("eb00", dis.JUMP),
        ("7400", dis.BRANCH),
        ("c3", dis.RET),
        ("0f05", dis.PLAIN),  # syscall: returns to the next instruction, wherever that is
        ("0f34", dis.PLAIN),  # sysenter
        ("cd80", dis.PLAIN),  # int 0x80
        ("0f0b", dis.STOP),
        ("f4", dis.STOP),
        ("cc", dis.STOP),
        ("f30f1efa", dis.LANDING),
        ("0f1f00", dis.NOP),
        ("488d0500000000", dis.LEA),
        ("e200", dis.LOOP),
        ("e300", dis.LOOP),
        ("c7f800000000", dis.TRANSACTION),
        ("06", dis.INVALID),
    ],
)
def test_kinds(code: str, kind: int) -> None:
    (instruction,) = dis.decode(bytes.fromhex(code), 0x1000)
    assert dis.KINDS[instruction.code] == kind

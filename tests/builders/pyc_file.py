"""Small .pyc files, made by hand: the header (PEP 552 and before), and marshal data (Python/marshal.c)."""

from __future__ import annotations

import struct

MAGIC = {
    (2, 6): 62161, (2, 7): 62211, (3, 5): 3351, (3, 6): 3379, (3, 7): 3394, (3, 8): 3413, (3, 9): 3425, (3, 10): 3439,
    (3, 11): 3495, (3, 12): 3531, (3, 13): 3571, (3, 14): 3627, (3, 15): 3655,
}  # fmt: skip
"""The numbers of released versions; that of 3.15 is of its alphas."""


def header(version: tuple[int, int]) -> bytes:
    rest = 4 if version < (3, 3) else 8 if version < (3, 7) else 12
    return struct.pack("<H", MAGIC[version]) + b"\r\n" + bytes(rest)


def text(value: str) -> bytes:
    """TYPE_STRING: str of CPython 2, bytes of CPython 3."""
    return b"s" + struct.pack("<I", len(value)) + value.encode()


def small_tuple(*items: bytes) -> bytes:
    return b"(" + struct.pack("<I", len(items)) + b"".join(items)


def code_27(bytecode: bytes, *constants: bytes, filename: str = "made.py", stack: int = 4) -> bytes:
    """A code object of CPython 2.7, as marshal writes it."""
    empty = small_tuple()
    return (
        b"c" + struct.pack("<IIII", 0, 0, stack, 64) + b"s" + struct.pack("<I", len(bytecode)) + bytecode
        + small_tuple(*constants) + empty + empty + empty + empty
        + text(filename) + text("<module>") + struct.pack("<I", 1) + text("")
    )  # fmt: skip


def pyc_27(bytecode: bytes, *constants: bytes) -> bytes:
    return header((2, 7)) + code_27(bytecode, *constants)

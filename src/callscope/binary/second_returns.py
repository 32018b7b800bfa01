"""Functions that return twice: where setjmp and its like are called, longjmp may resume.

The names are those of GCC's `special_function_p` (attribute returns_twice), with the names libraries export them under.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from callscope.binary.dynamic import Relocations
from callscope.binary.symbol_tables import SymbolTable

NAMES: Final = (
    b"setjmp",
    b"_setjmp",
    b"__setjmp",
    b"sigsetjmp",
    b"__sigsetjmp",
    b"savectx",
    b"vfork",
    b"__vfork",
    b"getcontext",
)
_JUMP: Final = b"\xff\x25"
_STUB: Final = 16
_BRANCH_TARGET: Final = 4  # bytes of endbr64


@dataclass(frozen=True)
class TwiceCallees:
    """What a call that can return twice goes to: addresses: rvas of functions and of linkage stubs. slots: rvas of the
    words that `call [slot]` loads.
    """

    addresses: frozenset[int]
    slots: frozenset[int]


NONE: Final = TwiceCallees(frozenset(), frozenset())


def find_twice_callees(
    tables: Iterable[SymbolTable],
    dynamic: SymbolTable,
    relocations: Relocations,
    stubs: Iterable[tuple[memoryview, int]],
    base: int,
) -> TwiceCallees:
    """The functions that return twice, as an image's code can call them.

    `tables`: all its symbol tables, whose values are relative to 0 where the image's rvas are to `base`. `dynamic`: the
    table its relocations number their symbols in. `stubs`: (bytes, rva) of its procedure linkage tables.
    """
    addresses: set[int] = set()
    for table in tables:
        functions = table.functions()
        addresses.update((functions["value"][_is_named(table, functions["name"])].astype(np.int64) - base).tolist())
    wanted = np.flatnonzero(_is_named(dynamic, dynamic.records["name"]))
    slots = frozenset(relocations.slots[np.isin(relocations.slot_symbols, wanted)].tolist())
    if slots:
        for code, rva in stubs:
            addresses.update(place for place, slot in linkage_stubs(bytes(code), rva) if slot in slots)
    return TwiceCallees(frozenset(addresses), slots)


def _is_named(table: SymbolTable, offsets: NDArray[np.void]) -> NDArray[np.bool_]:
    """Which name offsets lead to one of NAMES. Linkers let short names lie in the ends of longer ones."""
    text = bytes(table.strings)
    found = []
    for name in NAMES:
        at = text.find(name + b"\0")
        while at >= 0:
            found.append(at)
            at = text.find(name + b"\0", at + 1)
    return np.isin(offsets, np.array(found, np.uint32))


def linkage_stubs(code: bytes, rva: int) -> Iterator[tuple[int, int]]:
    """(where a stub may begin, the word it jumps through) for each `jmp [word]` of a procedure linkage table at `rva`.

    A stub may begin at the jump, at an endbr64 before it, or at its block.
    """
    at = code.find(_JUMP)
    while 0 <= at <= len(code) - 6:
        slot = rva + at + 6 + int.from_bytes(code[at + 2 : at + 6], "little", signed=True)
        for place in {rva + at, rva + at - _BRANCH_TARGET, (rva + at) // _STUB * _STUB}:
            yield place, slot
        at = code.find(_JUMP, at + 1)

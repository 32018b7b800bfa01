"""Call frame rules as planning needs them: at an address, between two addresses, and compact for the readers."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from callscope import format as fmt
from callscope.binary.cfi import CFA_RBP, CFA_REGISTER, CFA_RSP, ROW, SAVED_SAME, SAVED_UNKNOWN, FrameTable

RSP = 7
RBP = 6
SAVED_REGISTERS = (3, 6, 12, 13, 14, 15)
"""rbx, rbp, r12 to r15 in DWARF's numbering (System V ABI for x86-64, figure 3.36)"""


@dataclass(frozen=True, slots=True)
class FrameState:
    """Where the frame is at one instruction.

    The canonical frame address is `register` (DWARF number) + `offset`. `saved`: offset from it at which the caller's
    value of each of SAVED_REGISTERS lies, None where the register still holds it.
    """

    register: int
    offset: int
    saved: tuple[int | None, ...]

    def moved(self, amount: int) -> FrameState:
        """The state after the stack pointer went down by `amount` bytes."""
        if self.register != RSP or not amount:
            return self
        return FrameState(RSP, self.offset + amount, self.saved)


AT_ENTRY = FrameState(RSP, 8, (None,) * len(SAVED_REGISTERS))


class Frames:
    """Look-ups in an image's frame table."""

    def __init__(self, table: FrameTable) -> None:
        self._starts: list[int] = table.fdes["start"].tolist()
        self._ends: list[int] = (table.fdes["start"].astype(np.int64) + table.fdes["size"]).tolist()
        self._first: list[int] = table.fdes["first_row"].tolist()
        self._count: list[int] = table.fdes["row_count"].tolist()
        self._rows = table.rows
        self._row_rvas: list[int] = table.rows["rva"].tolist()
        self._raw = table.rows.tobytes()
        self._known: dict[bytes, FrameState | None] = {}

    def stack_offset(self, rva: int) -> int | None:
        """Distance from the stack pointer to the canonical frame address; 0 when another register counts; None:
        unknown.
        """
        row = self._row_at(rva)
        if row is None:
            return None
        data = self._rows[row]
        return int(data["cfa_offset"]) if data["cfa_kind"] == CFA_RSP else 0

    def state_at(self, rva: int) -> FrameState | None:
        """The frame at an address. Code without call frame information is taken to be at its entry; None: not
        expressible.
        """
        row = self._row_at(rva)
        return AT_ENTRY if row is None else self._state(row)

    def states_between(self, first: int, last: int) -> list[tuple[int, FrameState | None]]:
        """(address, state) of every change after `first` up to `last`."""
        entry = self._entry_at(first)
        if entry is None:
            return []
        low, high = self._first[entry], self._first[entry] + self._count[entry]
        start = bisect_right(self._row_rvas, first, low, high)
        end = bisect_right(self._row_rvas, last, start, high)
        return [(self._row_rvas[row], self._state(row)) for row in range(start, end)]

    def _entry_at(self, rva: int) -> int | None:
        entry = bisect_right(self._starts, rva) - 1
        return entry if entry >= 0 and rva < self._ends[entry] else None

    def _row_at(self, rva: int) -> int | None:
        entry = self._entry_at(rva)
        if entry is None:
            return None
        low = self._first[entry]
        row = bisect_right(self._row_rvas, rva, low, low + self._count[entry]) - 1
        return row if row >= low else None

    def _state(self, row: int) -> FrameState | None:
        # Few different states make up most rows: what follows the address is the key.
        key = self._raw[row * ROW.itemsize + 4 : (row + 1) * ROW.itemsize]
        if key not in self._known:
            self._known[key] = self._read(row)
        return self._known[key]

    def _read(self, row: int) -> FrameState | None:
        data = self._rows[row]
        kind = data["cfa_kind"]
        if kind == CFA_RSP:
            register = RSP
        elif kind == CFA_RBP:
            register = RBP
        elif kind == CFA_REGISTER:
            register = int(data["cfa_register"])
        else:
            return None
        if data["from_rbp"]:
            return None
        saved: list[int | None] = []
        for value in data["saved"][: len(SAVED_REGISTERS)].tolist():
            if value == SAVED_UNKNOWN:
                return None
            saved.append(None if value == SAVED_SAME else value)
        return FrameState(register, int(data["cfa_offset"]), tuple(saved))


def compact_rules(table: FrameTable) -> NDArray[np.void]:
    """The CFA_ROW records of a functions file: every change of the rule, and CFA_UNKNOWN where an entry ends."""
    rows = table.rows
    rules = np.zeros(len(rows), np.uint32)
    offsets = np.maximum(rows["cfa_offset"], 0).astype(np.uint32) << 2
    for kind, rule in ((CFA_RSP, fmt.CFA_RSP), (CFA_RBP, fmt.CFA_RBP)):
        chosen = rows["cfa_kind"] == kind
        rules[chosen] = offsets[chosen] | rule
    ends = table.fdes["start"].astype(np.int64) + table.fdes["size"]
    places = np.concatenate([rows["rva"].astype(np.int64), ends])
    values = np.concatenate([rules, np.zeros(len(ends), np.uint32)])
    order = np.lexsort((values != 0, places))  # where one entry ends and the next begins, the beginning counts
    places, values = places[order], values[order]
    last = np.append(places[1:] != places[:-1], True)[: len(places)]
    places, values = places[last], values[last]
    changed = np.append(True, values[1:] != values[:-1])[: len(values)]
    out = np.zeros(int(changed.sum()), fmt.CFA_ROW)
    out["rva"] = places[changed]
    out["rule"] = values[changed]
    return out

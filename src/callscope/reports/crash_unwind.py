"""Back-traces from a crash record: call frame information over the copy of the stack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from callscope.binary.cfi import (
    CFA_EXPRESSION,
    CFA_MEMORY,
    CFA_RBP,
    CFA_REGISTER,
    CFA_RSP,
    FRAME_SIGNAL,
    RETURN_ADDRESS,
    SAVED_SAME,
    SAVED_UNKNOWN,
)
from callscope.reports.crash_memory import CALLEE_SAVED, DWARF, Memory, Registers, SignalFrame, signal_frame
from callscope.reports.frames import Frame, Image, Resolver
from callscope.trace.processes import Module

MOST_FRAMES = 4096
_ADDRESSES = 1 << 64
_LARGEST_SPAN = 1 << 32
"""of an image: what is said to be larger is damage"""


class Unwinder:
    """Walks stacks of one process at one moment.

    modules: those that were loaded then. `problem` says why the last walk ended early, None when it reached the
    outermost function.
    """

    def __init__(self, modules: Sequence[Module], memory: Memory, warnings: list[str]) -> None:
        self._modules = modules
        self._memory = memory
        self._resolver = Resolver(warnings)
        self.problem: str | None = None

    def walk(self, registers: Registers, exact: bool = True) -> Iterator[Frame]:
        """The frames from these registers outwards. exact: rip is that of an instruction, not of the one behind."""
        self.problem = None
        signal: SignalFrame | None = None
        for _ in range(MOST_FRAMES):
            frame = self.frame(registers, exact, signal)
            if frame is None:
                self.problem = "an address is not known"
                return
            yield frame
            found = self._step(registers, exact)
            if found is None:
                return
            registers, exact, signal = found
        self.problem = f"only the first {MOST_FRAMES} frames are shown"

    def image(self, module: Module) -> Image:
        """The file of a module, opened once."""
        return self._resolver.image(module)

    def module_at(self, address: int) -> Module | None:
        """The module that lay there."""
        return next((m for m in self._modules if 0 <= address - m.base < min(m.span, _LARGEST_SPAN)), None)

    def word(self, address: int) -> int | None:
        """The 64-bit number there, or None when it was not copied."""
        return self._memory.word(address)

    def caller(self, registers: Registers, exact: bool) -> Registers | None:
        """The caller's registers. exact: the address is that of an instruction, not where a call returns to."""
        found = self._step(registers, exact)
        return None if found is None else found[0]

    def frame(self, registers: Registers, exact: bool, signal: SignalFrame | None = None) -> Frame | None:
        """The frame with these registers."""
        address = registers["rip"]
        if address is None:
            return None
        module = self.module_at(address if exact else address - 1)
        return self._resolver.frame(module, address, exact, registers["rsp"], signal)

    def _step(self, registers: Registers, exact: bool) -> tuple[Registers, bool, SignalFrame | None] | None:
        """The caller's registers, whether their address is exact, and the signal that lies between; None at the end."""
        address, sp = registers["rip"], registers["rsp"]
        if address is None or sp is None:
            return None
        place = address if exact else address - 1
        module = self.module_at(place)
        image = self.image(module) if module is not None else None
        table = image.frames if image is not None else None
        rva = np.array([place - module.base], np.int64) if module is not None else np.zeros(1, np.int64)
        entry = int(table.entries_at(rva)[0]) if table is not None else -1
        if image is None or table is None or entry < 0:
            return self._without_information(registers, exact, module)
        if table.fdes["flags"][entry] & FRAME_SIGNAL:
            return self._through_signal(sp)
        row = int(table.rows_at(rva)[0])
        if row < 0:
            return None
        saved = table.rows["saved"][row].tolist()
        if image.is_pe:
            saved[RETURN_ADDRESS] = -8  # those tables do not say: it is where it always is
        return self._apply(table.rows[row], saved, registers, exact)

    def _through_signal(self, sp: int) -> tuple[Registers, bool, SignalFrame | None] | None:
        frame = signal_frame(self._memory, sp)
        if frame is None:
            self.problem = "the rest of the stack was not copied"
            return None
        return frame.registers, True, frame

    def _without_information(
        self, registers: Registers, exact: bool, module: Module | None
    ) -> tuple[Registers, bool, SignalFrame | None] | None:
        """Behind a signal handler, or in code that has nothing on the stack but its return address, like the place that
        a call through a bad pointer leads to.
        """
        sp = registers["rsp"]
        assert sp is not None
        if not exact and (frame := signal_frame(self._memory, sp)) is not None:
            return frame.registers, True, frame
        caller = self._memory.word(sp)
        if exact and caller is not None and self.module_at(caller - 1) is not None:
            return {**registers, "rip": caller, "rsp": sp + 8}, False, None
        where = f" in {Path(module.path).name or module.path}" if module is not None else ""
        self.problem = f"no call frame information{where}"
        return None

    def _apply(
        self, row: np.void, offsets: Sequence[int], registers: Registers, exact: bool
    ) -> tuple[Registers, bool, SignalFrame | None] | None:
        frame = frame_address(row, registers, exact, self._memory)
        if frame is None:
            self.problem = "a frame's place is not known"
            return None
        saved = dict(zip((*CALLEE_SAVED, "rip"), offsets, strict=True))
        if saved["rip"] in (SAVED_UNKNOWN, SAVED_SAME):
            return None  # the outermost function
        out: Registers = dict.fromkeys(DWARF)
        rbp = registers["rbp"]
        for bit, (name, offset) in enumerate(saved.items()):
            if int(row["from_rbp"]) >> bit & 1:
                out[name] = None if rbp is None else self._memory.word((rbp + offset) % _ADDRESSES)
            elif offset == SAVED_SAME:
                out[name] = registers[name]
            else:
                out[name] = None if offset == SAVED_UNKNOWN else self._memory.word((frame + offset) % _ADDRESSES)
        out["rsp"], out["rflags"] = frame, None
        if out["rip"] is None:
            self.problem = "the rest of the stack was not copied"
            return None
        if not out["rip"] or frame <= (registers["rsp"] or 0):
            return None
        return out, False, None


def frame_address(row: np.void, registers: Registers, exact: bool, memory: Memory) -> int | None:
    """The canonical frame address; None when it is not known."""
    kind, offset = int(row["cfa_kind"]), int(row["cfa_offset"])
    has_register = kind in (CFA_REGISTER, CFA_MEMORY)
    number = {CFA_RSP: 7, CFA_RBP: 6}.get(kind, int(row["cfa_register"]) if has_register else -1)
    if 0 <= number < len(DWARF):
        base = registers[DWARF[number]]
        place = None if base is None else (base + offset) % _ADDRESSES
        if kind == CFA_MEMORY and place is not None:
            word = memory.word(place)
            return None if word is None else (word + int(row["cfa_add"])) % _ADDRESSES
        return place
    rip, sp = registers["rip"], registers["rsp"]
    if kind == CFA_EXPRESSION and exact and rip is not None and sp is not None:
        # The expression that linkers give a procedure linkage table: each entry pushes once, before its byte 11.
        return sp + (16 if rip & 15 >= 11 else 8)
    return None


assert len(CALLEE_SAVED) == RETURN_ADDRESS

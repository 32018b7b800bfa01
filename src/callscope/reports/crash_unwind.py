"""Back-traces from a crash record: call frame information over the copy of the stack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from callscope.binary.cfi import (
    CFA_EXPRESSION,
    CFA_RBP,
    CFA_REGISTER,
    CFA_RSP,
    FRAME_SIGNAL,
    RETURN_ADDRESS,
    SAVED_SAME,
    SAVED_UNKNOWN,
    FrameTable,
)
from callscope.binary.open import open_image, read_build_id, unwinding
from callscope.binary.symbols import Symbols, open_symbols
from callscope.errors import CallscopeError
from callscope.reports.crash_memory import CALLEE_SAVED, DWARF, Memory, Registers, SignalFrame, signal_frame
from callscope.trace.processes import Module

MOST_FRAMES = 4096
_ADDRESSES = 1 << 64
_LARGEST_SPAN = 1 << 32
"""of an image: what is said to be larger is damage"""


class Image:
    """A module's file: its frames and its names, as far as it is still the file that was loaded."""

    def __init__(self, path: str, build_id: bytes, warnings: list[str]) -> None:
        self.name = Path(path).name or path
        self.frames: FrameTable | None = None
        self.is_pe = False
        self.symbols: Symbols | None = None
        if not path.startswith("/"):
            return
        try:
            if read_build_id(path) != build_id:
                warnings.append(f"{path} is not the file that was loaded: its frames and names are not known")
                return
            image = open_image(path)
            self.frames, self.is_pe = unwinding(image).frames, image.is_pe
            self.symbols = open_symbols(path)
        except CallscopeError as error:
            warnings.append(f"frames and names of {path} are not known: {error}")


@dataclass(frozen=True)
class Frame:
    """One frame, the innermost first. address: of the instruction, or where the call returns to.

    start: address of the function; None when unknown. inlines: (name, file, line) of calls inlined there, the innermost
    first. signal: what the frame was interrupted by, if it was.
    """

    address: int
    sp: int | None
    function: str | None
    module: str | None
    start: int | None
    rva: int | None
    file: str | None
    line: int | None
    inlines: tuple[tuple[str, str, int], ...]
    signal: SignalFrame | None = None


class Unwinder:
    """Walks stacks of one process at one moment.

    modules: those that were loaded then. `problem` says why the last walk ended early, None when it reached the
    outermost function.
    """

    def __init__(self, modules: Sequence[Module], memory: Memory, warnings: list[str]) -> None:
        self._modules = modules
        self._memory = memory
        self._warnings = warnings
        self._images: dict[tuple[str, bytes], Image] = {}
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
        key = (module.path, module.build_id)
        if key not in self._images:
            self._images[key] = Image(*key, self._warnings)
        return self._images[key]

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
        place = address if exact else address - 1
        module = self.module_at(place)
        if module is None:
            return Frame(address, registers["rsp"], None, None, None, None, None, None, (), signal)
        rva = place - module.base
        return self._named(module, rva, address, registers["rsp"], signal)

    def _named(self, module: Module, rva: int, address: int, sp: int | None, signal: SignalFrame | None) -> Frame:
        image = self.image(module)
        start = None
        if image.frames is not None:
            entry = int(image.frames.entries_at(np.array([rva], np.int64))[0])
            start = None if entry < 0 else int(image.frames.fdes["start"][entry])
        name, file, line = None, None, None
        inlines: list[tuple[str, str, int]] = []
        if image.symbols is not None:
            name = image.symbols.name(rva)
            place = image.symbols.location(rva)
            file, line = place if place is not None else (None, None)
            inlines = [(call.name, call.file, call.line) for call in image.symbols.inlines(rva)]
        name = name or f"{image.name}+{rva if start is None else start:#x}"
        absolute = None if start is None else module.base + start
        return Frame(address, sp, name, image.name, absolute, rva, file, line, tuple(inlines), signal)

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
        frame = frame_address(row, registers, exact)
        if frame is None:
            self.problem = "a frame's place is not known"
            return None
        saved = dict(zip((*CALLEE_SAVED, "rip"), offsets, strict=True))
        if saved["rip"] in (SAVED_UNKNOWN, SAVED_SAME):
            return None  # the outermost function
        out: Registers = dict.fromkeys(DWARF)
        for name, offset in saved.items():
            if offset == SAVED_SAME:
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


def frame_address(row: np.void, registers: Registers, exact: bool) -> int | None:
    """The canonical frame address; None when it is not known."""
    kind, offset = int(row["cfa_kind"]), int(row["cfa_offset"])
    number = {CFA_RSP: 7, CFA_RBP: 6}.get(kind, int(row["cfa_register"]) if kind == CFA_REGISTER else -1)
    if 0 <= number < len(DWARF):
        base = registers[DWARF[number]]
        return None if base is None else (base + offset) % _ADDRESSES
    rip, sp = registers["rip"], registers["rsp"]
    if kind == CFA_EXPRESSION and exact and rip is not None and sp is not None:
        # The expression that linkers give a procedure linkage table: each entry pushes once, before its byte 11.
        return sp + (16 if rip & 15 >= 11 else 8)
    return None


assert len(CALLEE_SAVED) == RETURN_ADDRESS

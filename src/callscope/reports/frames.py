"""Addresses to frames: the function, file, line and inlined calls of a place in a module, for every report that shows
stacks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from callscope.binary.cfi import FrameTable
from callscope.binary.demangle import demangle
from callscope.binary.imports import unbound_stubs
from callscope.binary.open import open_image, read_build_id, unwinding
from callscope.binary.symbols import Symbols, open_symbols
from callscope.errors import CallscopeError
from callscope.reports.crash_memory import SignalFrame
from callscope.trace.processes import Module

BINARIES = "binaries"
"""Where a trace that is self-contained keeps its modules' files and their debug files."""
_STUB_BYTES = 16


class Image:
    """A module's file: its frames and its names, as far as a file with its build-id is found.

    directories: where else to look for it and its debug file.
    """

    def __init__(self, path: str, build_id: bytes, warnings: list[str], directories: Sequence[Path] = ()) -> None:
        self.name = Path(path).name or path
        self.is_pe = False
        self.symbols: Symbols | None = None
        self._frames: FrameTable | None = None
        self._source: str | None = None
        self._warnings = warnings
        if not path.startswith("/"):
            return
        found = find_binary(path, build_id, directories)
        if found is None:
            here = "is not the file that was loaded" if Path(path).is_file() else "is not here"
            warnings.append(f"{path} {here}: its frames and names are not known")
        try:
            if found is not None:
                self.is_pe = open_image(found).is_pe
                self._source = str(found)
            self.symbols = open_symbols(found or path, directories, build_id or None)
        except CallscopeError as error:
            warnings.append(f"frames and names of {path} are not known: {error}")

    @property
    def frames(self) -> FrameTable | None:
        """Its call frame information, read when first asked for; None when there is no file."""
        if self._frames is None and self._source is not None:
            try:
                self._frames = unwinding(open_image(self._source)).frames
            except CallscopeError as error:
                self._warnings.append(f"frames of {self._source} are not known: {error}")
                self._source = None
        return self._frames

    def function(self, rva: int) -> str | None:
        """The name of the function at `rva`, `memcpy@plt` for the stub that leads to one; None when it is not known."""
        stubs = self._stubs
        if stubs.inside(rva):
            return stubs.name(rva)
        return self.symbols.name(rva) if self.symbols is not None else None

    @cached_property
    def _stubs(self) -> _Stubs:
        try:
            image = open_image(self._source) if self._source is not None and not self.is_pe else None
            return _Stubs(unbound_stubs(image), image.plt_ranges) if image is not None else _Stubs({}, ())
        except CallscopeError:
            return _Stubs({}, ())


class _Stubs:
    """What the stubs of a procedure linkage table lead to. ranges: where they lie, (first rva, rva after the last)."""

    def __init__(self, names: dict[int, str], ranges: Sequence[tuple[int, int]]) -> None:
        self._ranges = ranges
        self._names = {place: name for place, name in names.items() if self.inside(place)}
        self._starts = sorted(self._names)

    def inside(self, rva: int) -> bool:
        """Whether a stub, or what precedes all, lies there."""
        return any(low <= rva < high for low, high in self._ranges)

    def name(self, rva: int) -> str | None:
        """The function's name, with @plt."""
        index = bisect_right(self._starts, rva) - 1
        if index < 0 or rva - self._starts[index] >= _STUB_BYTES:
            return None
        return demangle([self._names[self._starts[index]]])[0] + "@plt"


def find_binary(path: str, build_id: bytes, directories: Sequence[Path]) -> Path | None:
    """The file of a module with that build-id: where it was, or in one of `directories`, by its build-id, its path or
    its name.
    """
    own = Path(path)
    candidates = [own]
    for directory in directories:
        if len(build_id) > 1:
            candidates.append(directory / ".build-id" / build_id.hex()[:2] / build_id.hex()[2:])
        candidates += [directory / own.relative_to(own.anchor), directory / own.name]
    for candidate in candidates:
        try:
            if candidate.is_file() and read_build_id(candidate) == build_id:
                return candidate
        except (CallscopeError, OSError, ValueError):
            continue
    return None


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


class Resolver:
    """Names the places of modules; each file is opened once."""

    def __init__(self, warnings: list[str], directories: Sequence[Path] = ()) -> None:
        self._warnings = warnings
        self._directories = directories
        self._images: dict[tuple[str, bytes], Image] = {}

    def image(self, module: Module) -> Image:
        """The file of a module."""
        key = (module.path, module.build_id)
        if key not in self._images:
            self._images[key] = Image(*key, self._warnings, self._directories)
        return self._images[key]

    def frame(
        self, module: Module | None, address: int, exact: bool, sp: int | None = None, signal: SignalFrame | None = None
    ) -> Frame:
        """The frame at an address in `module`. exact: it is that of an instruction, not where a call returns to."""
        if module is None:
            return Frame(address, sp, None, None, None, None, None, None, (), signal)
        return self.named(module, (address if exact else address - 1) - module.base, address, sp, signal)

    def named(
        self, module: Module, rva: int, address: int, sp: int | None = None, signal: SignalFrame | None = None
    ) -> Frame:
        """The frame of an instruction at `rva` of a module; `address`: as it was captured."""
        image = self.image(module)
        start = None
        if image.frames is not None:
            entry = int(image.frames.entries_at(np.array([rva], np.int64))[0])
            start = None if entry < 0 else int(image.frames.fdes["start"][entry])
        name, file, line = None, None, None
        inlines: list[tuple[str, str, int]] = []
        if image.symbols is not None:
            name = image.function(rva)
            place = image.symbols.location(rva)
            file, line = place if place is not None else (None, None)
            inlines = [(call.name, call.file, call.line) for call in image.symbols.inlines(rva)]
        name = name or f"{image.name}+{rva if start is None else start:#x}"
        absolute = None if start is None else module.base + start
        return Frame(address, sp, name, image.name, absolute, rva, file, line, tuple(inlines), signal)

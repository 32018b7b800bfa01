"""What an image is, whatever its format: the part that finding functions and planning need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from callscope.binary.second_returns import TwiceCallees

PAGE = 4096
LARGEST_SPAN = 1 << 31


@dataclass(frozen=True, slots=True)
class Segment:
    """What is mapped in one piece: `size` bytes of the file from `offset` on lie at `rva`; `memory_size` counts zeros
    too. A PT_LOAD segment of an ELF file, a section of a PE file.
    """

    rva: int
    size: int
    memory_size: int
    offset: int
    executable: bool
    writable: bool


@dataclass(frozen=True, slots=True)
class Section:
    """One section, or a segment standing in for one; `kind` is an ELF section's sh_type, 1 in PE files.

    `rva` is 0 when it is not `alloc` (not in memory). `file_size` is less than `size` when the file
    holds only a part of it.
    """

    name: str
    kind: int
    rva: int
    size: int
    offset: int
    file_size: int
    executable: bool
    writable: bool
    alloc: bool


@dataclass(frozen=True)
class FunctionSymbols:
    """Symbols of functions as a file lists them, in no order: rva, size (0: unknown), i8; is_cold: its name says that
    it is a part split off a function.
    """

    rva: NDArray[np.int64]
    size: NDArray[np.int64]
    is_cold: NDArray[np.bool_]


class Image(Protocol):
    """A program or library of either format. Nothing here raises for damage: it answers less."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def build_id(self) -> bytes:
        """What tells its builds apart, at most 32 bytes; b"" when it has nothing of the kind."""

    @property
    def base(self) -> int:
        """The address that it was linked for, and that stored addresses count from."""

    @property
    def span(self) -> int:
        """Bytes of address space it takes, whole pages."""

    @property
    def entry(self) -> int:
        """Where it starts, 0 when nowhere in it."""

    @property
    def is_fixed(self) -> bool:
        """Whether it loads at `base` only: addresses may be stored that no relocation tells of."""

    @property
    def is_pe(self) -> bool:
        """Whether it is a Windows image.

        There, jump tables may lie in the code and hold rvas, functions without a frame have no unwind information,
        unwinders look at the code they walk through, and nothing is kept below the stack pointer.
        """

    @property
    def has_shadow_stack(self) -> bool:
        """Whether the processor may check that each ret goes where its call came from: no call can be imitated."""

    @property
    def segments(self) -> tuple[Segment, ...]:
        """What is mapped, in order of address."""

    @property
    def sections(self) -> tuple[Section, ...]:
        """All sections."""

    @property
    def code_sections(self) -> tuple[Section, ...]:
        """The executable sections, sorted, without those of linkage stubs."""

    @property
    def plt_ranges(self) -> tuple[tuple[int, int], ...]:
        """(first rva, rva after the last) of runs of linkage stubs, which are no functions, sorted."""

    @property
    def twice_callees(self) -> TwiceCallees:
        """What setjmp and its like are reached by."""

    def section_data(self, section: Section) -> memoryview:
        """The section's bytes in the file."""

    def read(self, rva: int, size: int) -> bytes:
        """Up to `size` bytes of the file as mapped from `rva` on."""

    def view(self, rva: int, size: int) -> memoryview:
        """As `read`, without a copy."""

    def in_code(self, rvas: NDArray[Any]) -> NDArray[np.bool_]:
        """Which of `rvas` lie in `code_sections`: a bool for each."""

    def relocated_code_pointers(self) -> NDArray[np.uint32]:
        """Sorted rvas in code that relocations store."""

    def function_symbols(self) -> FunctionSymbols:
        """The functions that symbol tables and exports name."""


def joined_ranges(ranges: list[tuple[int, int]]) -> NDArray[np.uint64]:
    """[start, end) ranges, sorted and with those that overlap or touch made one, as start, end, start, end ... (u8)."""
    joined: list[int] = []
    for start, end in sorted(ranges):
        if joined and start <= joined[-1]:
            joined[-1] = max(joined[-1], end)
        else:
            joined += [start, end]
    return np.array(joined, np.uint64)


def in_sections(sections: tuple[Section, ...], rvas: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of `rvas` lie in the file's bytes of `sections`: a bool for each."""
    # An address is inside when an odd number of bounds of the joined ranges are at or below it.
    bounds = joined_ranges([(section.rva, section.rva + section.file_size) for section in sections])
    inside: NDArray[np.bool_] = np.searchsorted(bounds, rvas, side="right") % 2 == 1
    return inside

"""Call frame information: where the caller's frame and its registers are, for every address of an image.

The work is done by native/kernel/cfi.c; the record types here are its structures.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callscope.binary.elf import Image as ElfImage
from callscope.binary.image import Image
from callscope.errors import ImageError
from callscope.native import kernel

CFA_UNKNOWN, CFA_RSP, CFA_RBP, CFA_REGISTER, CFA_EXPRESSION, CFA_MEMORY = range(6)
SAVED_SAME = -(1 << 31)
SAVED_UNKNOWN = SAVED_SAME + 1
RBX, RBP, R12, R13, R14, R15, RETURN_ADDRESS = range(7)

FRAME_SIGNAL = 1
FRAME_COLD = 2
FRAME_DAMAGED = 4

ROW = np.dtype(
    [
        ("rva", "<u4"),
        ("cfa_kind", "u1"),
        ("cfa_register", "u1"),
        ("cfa_add", "u1"),
        ("from_rbp", "u1"),
        ("cfa_offset", "<i4"),
        ("saved", "<i4", 7),
    ]
)
"""cfa_kind: CFA_*; cfa_register: DWARF number, 255 for none; saved: offset from the CFA or SAVED_*, by RBX ..
from_rbp: a bit for each of `saved`, which then counts from rbp. Of CFA_MEMORY the frame address is what lies at the
register + cfa_offset, + cfa_add."""

FDE = np.dtype(
    [
        ("start", "<u4"),
        ("size", "<u4"),
        ("lsda", "<u4"),
        ("flags", "<u4"),
        ("first_row", "<u4"),
        ("row_count", "<u4"),
        ("cie", "<u4"),
        ("reserved", "<u4"),
        ("instructions", "<u8"),
        ("instructions_end", "<u8"),
    ]
)
"""lsda: rva or 0; flags: FRAME_*; instructions: offsets in the section, of use to the kernel only."""

_CIE = np.dtype(
    [
        ("offset", "<u8"),
        ("code_align", "<u8"),
        ("data_align", "<i8"),
        ("return_register", "<u8"),
        ("flags", "u1", 8),
        ("initial", ROW),
    ],
    align=True,
)
_STATUS = {
    1: "an entry's length runs past the section",
    2: "a common information entry cannot be read",
    3: "a frame description entry cannot be read",
    4: "an entry's instructions cannot be read",
    5: "an array is too small",
}
_TRUNCATED, _NO_ROOM = 1, 5
_MOST_FRAME_BYTES = 1 << 30


class _Section(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
        ("rva", ctypes.c_uint64),
        ("base", ctypes.c_uint64),
        ("data_base", ctypes.c_uint64),
        ("stop_at_zero", ctypes.c_uint64),
    )


class _Result(ctypes.Structure):
    _fields_ = (
        ("cie_count", ctypes.c_uint64),
        ("fde_count", ctypes.c_uint64),
        ("row_count", ctypes.c_uint64),
        ("status", ctypes.c_uint64),
        ("error_offset", ctypes.c_uint64),
        ("damaged", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class FrameTable:
    """The frame description entries of an image and their rows.

    fdes: FDE[n] sorted by start, no two with the same start. rows: ROW[m]; those of entry i are
    rows[first_row : first_row + row_count], sorted, the first at its start; a row holds up to the next one of its entry
    or the entry's end. problems: what could not be read, one line each, for people.
    """

    fdes: NDArray[np.void]
    rows: NDArray[np.void]
    problems: tuple[str, ...] = ()

    def entries_at(self, rvas: NDArray[Any]) -> NDArray[np.int64]:
        """For each rva the index of the entry that contains it, or -1. Of overlapping entries the one starting last."""
        starts, sizes = self.fdes["start"], self.fdes["size"]
        found = np.searchsorted(starts, rvas, side="right") - 1
        if len(starts) == 0:
            return found
        offset = np.asarray(rvas).astype(np.int64) - starts[found]
        return np.where((found >= 0) & (offset < sizes[found]), found, -1)

    def rows_at(self, rvas: NDArray[Any]) -> NDArray[np.int64]:
        """For each rva the index of the row that holds there, or -1 outside all entries."""
        entries = self.entries_at(rvas)
        # Rows ascend within their entry, so (entry, rva) ascends over all rows.
        keys = np.repeat(np.arange(len(self.fdes), dtype=np.int64), self.fdes["row_count"]) << 32
        keys |= self.rows["rva"].astype(np.int64)
        wanted = (entries << 32) | np.asarray(rvas).astype(np.int64)
        return np.where(entries >= 0, np.searchsorted(keys, wanted, side="right") - 1, -1)


@dataclass(frozen=True)
class LandingPads:
    """pads: sorted unique u4 rvas where exceptions may resume. unreadable: indices of entries with damaged tables.

    guarded: [start, end) ranges whose instructions may fault as part of the program's plan, i8, shape (n, 2).
    """

    pads: NDArray[np.uint32]
    unreadable: NDArray[np.int64]
    guarded: NDArray[np.int64]


def frame_table(image: ElfImage) -> FrameTable:
    """Compile the image's .eh_frame; an empty table when it has none.

    What is damaged costs only itself, or what follows it when a length is wrong, and is named in `problems`.
    """
    frames = image.frames
    if frames is None:
        return FrameTable(np.empty(0, FDE), np.empty(0, ROW))
    data = image.section_data(frames)
    got = next((s for name in (".got.plt", ".got") if (s := image.section(name)) is not None), None)
    return compile_frames(
        data,
        frames.rva,
        base=image.base,
        data_base=got.rva if got else 0,
        stop_at_zero=image.section(".eh_frame") is None,
        name=str(image.path),
    )


def compile_frames(
    data: memoryview | bytes,
    rva: int,
    base: int = 0,
    data_base: int = 0,
    stop_at_zero: bool = False,
    name: str = "this file",
) -> FrameTable:
    """Compile the bytes of an .eh_frame section that lies at `rva`.

    base: subtracted from absolute pointers; data_base: rva that data-relative ones count from; stop_at_zero: a zero
    length ends the section. Raises ImageError when the section is too large to be one.
    """
    raw = np.frombuffer(data, np.uint8)
    if len(raw) > _MOST_FRAME_BYTES:
        raise ImageError(f"{name} is damaged: its .eh_frame has {len(raw) >> 20} MiB; get a complete copy")
    library = kernel()
    section = _Section(raw.ctypes.data, len(raw), rva, base, data_base, stop_at_zero)
    result = _Result()
    library.cs_cfi_count(ctypes.byref(section), ctypes.byref(result))
    cies = np.empty(result.cie_count, _CIE)
    fdes = np.empty(result.fde_count, FDE)
    library.cs_cfi_scan(
        ctypes.byref(section), _pointer(cies), _u64(len(cies)), _pointer(fdes), _u64(len(fdes)), ctypes.byref(result)
    )
    problems = _problems(result, name)
    fdes = fdes[: result.fde_count]
    # A stable sort, then the first of equal starts: the same answer whatever the linker's order.
    fdes = fdes[np.unique(fdes["start"], return_index=True)[1]]
    bytes_of_instructions = int((fdes["instructions_end"] - fdes["instructions"]).sum())
    rows = np.empty(len(fdes) + bytes_of_instructions // 2, ROW)
    library.cs_cfi_rows(
        ctypes.byref(section),
        _pointer(cies),
        _u64(len(cies)),
        _pointer(fdes),
        _u64(len(fdes)),
        _pointer(rows),
        _u64(len(rows)),
        ctypes.byref(result),
    )
    return FrameTable(fdes, rows[: result.row_count].copy(), problems + _problems(result, name))


def landing_pads(image: Image, table: FrameTable) -> LandingPads:
    """The landing pads of all exception tables (LSDA) that the entries of `table` name."""
    wanted = table.fdes["lsda"] != 0
    covered = ~wanted
    pads = [np.empty(0, np.uint32)]
    damaged = np.zeros(len(table.fdes), np.uint8)
    for segment in image.segments:
        inside = wanted & (table.fdes["lsda"] >= segment.rva) & (table.fdes["lsda"] < segment.rva + segment.size)
        if not inside.any():
            continue
        covered |= inside
        first = int(table.fdes["lsda"][inside].min())
        pads.append(pads_of_tables(image.view(first, segment.size), first, table.fdes, damaged, image.base))
    unreadable = np.flatnonzero((damaged != 0) | ~covered)
    return LandingPads(np.unique(np.concatenate(pads)), unreadable, np.empty((0, 2), np.int64))


def pads_of_tables(
    tables: memoryview | bytes, rva: int, fdes: NDArray[np.void], damaged: NDArray[np.uint8], base: int = 0
) -> NDArray[np.uint32]:
    """The landing pads in the exception tables that lie in the bytes `tables`, mapped at `rva`, in no order.

    damaged: u1 for each of `fdes`, set to 1 where a table cannot be read to its end.
    """
    raw = np.frombuffer(tables, np.uint8)
    fdes = np.ascontiguousarray(fdes)
    function = kernel().cs_lsda_pads
    function.restype = ctypes.c_uint64
    capacity = 1 << 16
    while True:
        pads = np.empty(capacity, np.uint32)
        count = function(
            _pointer(raw),
            _u64(len(raw)),
            _u64(rva),
            _u64(base),
            _pointer(fdes),
            _u64(len(fdes)),
            _pointer(pads),
            _u64(capacity),
            _pointer(damaged),
        )
        if count <= capacity:
            return pads[:count].copy()
        capacity = count


def _pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _u64(value: int) -> ctypes.c_uint64:
    return ctypes.c_uint64(value)


def _problems(result: _Result, name: str) -> tuple[str, ...]:
    """One line for people when the kernel met trouble."""
    if result.status == 0:
        return ()
    what = _STATUS.get(result.status, f"error {result.status}")
    if result.status == _NO_ROOM:
        raise ImageError(f"cannot read .eh_frame of {name}: {what} at byte {result.error_offset}; report this")
    lost = "the rest of it is not used" if result.status == _TRUNCATED else f"{result.damaged} entries are not used"
    return (f"{name}: .eh_frame is damaged at byte {result.error_offset}: {what}; {lost}",)

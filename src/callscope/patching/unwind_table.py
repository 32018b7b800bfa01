"""Unwind tables: what the agent needs to walk stacks, in one small sorted file an image.

Format: format/schema.toml, records unwind_*. A table is made of call frame information, whose rows hold few different
rules: each is kept once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from callscope import format as records
from callscope.binary.cfi import (
    CFA_EXPRESSION,
    CFA_MEMORY,
    CFA_RBP,
    CFA_REGISTER,
    CFA_RSP,
    FRAME_SIGNAL,
    RETURN_ADDRESS,
    SAVED_SAME,
    FrameTable,
    compile_frames,
)
from callscope.binary.image import Image
from callscope.binary.open import unwinding
from callscope.binary.pe import PeImage
from callscope.binary.pe_unwind import Beside, UnwindTable
from callscope.errors import PlanError

_RSP, _RBP = 7, 6
_NOTHING = np.zeros((), records.UNWIND_RULE)
_MOST_BYTES = 1 << 30


def unwind_bytes(image: Image, plan: Path | None = None) -> bytes:
    """The unwind table of an image and of the trampolines of its plan.

    Raises ImageError when the image's unwind information cannot be read, PlanError for a damaged plan.
    """
    tables = [_rows(unwinding(image).frames, image.is_pe)]
    region_bytes = 0
    if plan is not None:
        region = _read_region(plan)
        region_bytes = len(region.data)
        tables.append(_region_rows(image, region, str(plan)))
    rules, index = np.unique(np.concatenate([table[1] for table in tables]), return_inverse=True)
    counts = [len(places) for places, _ in tables]
    rows = np.zeros(sum(counts), records.UNWIND_ROW)
    rows["rva"] = np.concatenate([places for places, _ in tables])
    rows["rule"] = index.reshape(-1)
    header = np.zeros((), records.UNWIND_HEADER)
    for name, value in {
        "magic": records.UNWIND_MAGIC,
        "version": records.UNWIND_VERSION,
        "header_size": records.UNWIND_HEADER.itemsize,
        "build_id_bytes": min(len(image.build_id), 32),
        "rule_count": len(rules),
        "image_span": image.span,
        "region_bytes": region_bytes,
        "row_count": counts[0],
        "region_row_count": sum(counts[1:]),
        "rule_offset": records.UNWIND_HEADER.itemsize,
        "row_offset": records.UNWIND_HEADER.itemsize + rules.nbytes,
    }.items():
        header[name] = value
    header["build_id"] = np.frombuffer(image.build_id[:32].ljust(32, b"\0"), "u1")
    return header.tobytes() + rules.tobytes() + rows.tobytes()


def _region_rows(image: Image, region: _Region, name: str) -> tuple[NDArray[np.int64], NDArray[np.void]]:
    """As `_rows`, of a plan's trampolines, from the region's start."""
    if not isinstance(image, PeImage):
        data = region.data[region.frames : region.frames + region.frames_bytes]
        return _rows(compile_frames(data, region.frames, stop_at_zero=True, name=name), False)
    beside = Beside(image, region.delta, region.data, region.frames, region.frames_bytes)
    places, rules = _rows(UnwindTable(image, beside).frames, True)
    bare = _NOTHING.copy()
    bare["kind"], bare["base"], bare["offset"], bare["saved"] = records.UNWIND_OFFSET, _RSP, 8, SAVED_SAME
    rules[rules == _NOTHING] = bare  # code without an entry has nothing but a return address on the stack
    places[1:] -= region.delta
    changed = np.append(True, rules[1:] != rules[:-1])
    return places[changed], rules[changed]


def _rows(frames: FrameTable, is_pe: bool) -> tuple[NDArray[np.int64], NDArray[np.void]]:
    """Where a rule begins to hold, ascending from 0, and the UNWIND_RULE that does."""
    rules = _rules(frames, is_pe)
    ends = frames.fdes["start"].astype(np.int64) + frames.fdes["size"]
    places = np.concatenate([[0], frames.rows["rva"].astype(np.int64), ends])
    rank = np.concatenate([[0], np.full(len(rules), 2), np.ones(len(ends), np.int64)])
    values = np.concatenate([_NOTHING[None], rules, np.repeat(_NOTHING[None], len(ends))])
    order = np.lexsort((rank, places))  # where one entry ends and the next begins, the beginning counts
    places, values = places[order], values[order]
    last = np.append(places[1:] != places[:-1], True)
    places, values = places[last], values[last]
    changed = np.append(True, values[1:] != values[:-1])
    return places[changed], values[changed]


def _rules(frames: FrameTable, is_pe: bool) -> NDArray[np.void]:
    """The UNWIND_RULE of every row."""
    rows = frames.rows
    out = np.zeros(len(rows), records.UNWIND_RULE)
    kind = rows["cfa_kind"]
    for cfa, rule in (
        (CFA_RSP, records.UNWIND_OFFSET),
        (CFA_RBP, records.UNWIND_OFFSET),
        (CFA_REGISTER, records.UNWIND_OFFSET),
        (CFA_MEMORY, records.UNWIND_MEMORY),
        (CFA_EXPRESSION, records.UNWIND_PLT),
    ):
        out["kind"][kind == cfa] = rule
    out["base"] = rows["cfa_register"]
    out["base"][kind == CFA_RSP] = _RSP
    out["base"][kind == CFA_RBP] = _RBP
    out["kind"][(out["kind"] != records.UNWIND_PLT) & (out["base"] > 15)] = records.UNWIND_NONE
    out["add"], out["from_rbp"], out["offset"] = rows["cfa_add"], rows["from_rbp"], rows["cfa_offset"]
    saved = rows["saved"][:, :RETURN_ADDRESS]
    out["saved"] = saved
    if not is_pe:
        back = rows["saved"][:, RETURN_ADDRESS]
        out["kind"][(back != -8) & (back != SAVED_SAME)] = records.UNWIND_END
    # What says nothing says it in one way, so that it is kept once.
    out[out["kind"] == records.UNWIND_NONE] = _NOTHING
    end = _NOTHING.copy()
    end["kind"] = records.UNWIND_END
    out[out["kind"] == records.UNWIND_END] = end
    signal = _NOTHING.copy()
    signal["kind"] = records.UNWIND_SIGNAL
    of_signals = (frames.fdes["flags"] & FRAME_SIGNAL) != 0
    for fde in frames.fdes[of_signals]:
        out[fde["first_row"] : int(fde["first_row"]) + int(fde["row_count"])] = signal
    return out


@dataclass(frozen=True)
class _Region:
    """The trampolines of a plan: where they lie from the image's base; where in them their frame information does."""

    delta: int
    data: bytes
    frames: int
    frames_bytes: int


def _read_region(plan: Path) -> _Region:
    """Raises PlanError for a damaged plan."""
    try:
        with plan.open("rb") as file:
            header = np.frombuffer(file.read(records.PLAN_HEADER.itemsize), records.PLAN_HEADER, 1)[0]
            size, frames, frames_bytes = (int(header[name]) for name in ("region_bytes", "frames", "frames_bytes"))
            if int(header["magic"]) != records.PLAN_MAGIC or size > _MOST_BYTES or frames + frames_bytes > size:
                raise ValueError("it is no plan")
            file.seek(int(header["region_offset"]))
            data = file.read(size)
    except (OSError, ValueError) as error:
        raise PlanError(f"{plan} is damaged ({error}): delete it and record again") from None
    if len(data) < size:
        raise PlanError(f"{plan} is damaged (it is cut short): delete it and record again")
    return _Region(int(header["delta"]), data, frames, frames_bytes)

"""A thread that stopped in a trampoline, or in the agent: the registers that the program would have had there."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from callscope import format as records
from callscope.binary.stack_effects import stack_effects
from callscope.reports.crash_memory import GENERAL, Memory, Registers

_MOST_BYTES = 1 << 30
_LONGEST = 256
"""bytes of a trampoline before the instruction it stands for"""
_ADDRESSES = 1 << 64


@dataclass(frozen=True)
class Region:
    """The trampolines of one image, from its plan.

    code: bytes from the region's start. places, rvas: offsets in the region, ascending, where what stands for the
    instruction at that address of the image begins.
    """

    code: bytes
    places: NDArray[np.int64]
    rvas: NDArray[np.int64]


def read_region(path: Path) -> Region | None:
    """The region of a plan file; None when it cannot be read."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return None
        data = path.read_bytes()
        header = np.frombuffer(data, records.PLAN_HEADER, 1)[0]
        known = range(records.PLAN_VERSION_OLDEST, records.PLAN_VERSION + 1)
        if int(header["magic"]) != records.PLAN_MAGIC or int(header["version"]) not in known:
            return None
        patches = np.frombuffer(data, records.PATCH, int(header["patch_count"]), int(header["patch_offset"]))
        moved = np.frombuffer(data, records.MOVED, int(header["moved_count"]), int(header["moved_offset"]))
    except (OSError, ValueError):
        return None
    start = int(header["region_offset"])
    code = data[start : start + int(header["code_bytes"])]
    jumps = patches[(patches["rel_offset"] != records.PATCH_NO_REL) & (patches["rel_offset"] <= 4)]
    at = jumps["rel_offset"].astype(np.int64)
    bytes_at = np.take_along_axis(jumps["new"], at[:, None] + np.arange(4), axis=1)
    displacement = np.ascontiguousarray(bytes_at).view("<i4")[:, 0].astype(np.int64)
    heads = jumps["rva"].astype(np.int64) + at + 4 + displacement - int(header["delta"])
    places = np.concatenate([moved["place"].astype(np.int64), heads])
    rvas = np.concatenate([moved["rva"].astype(np.int64), jumps["rva"].astype(np.int64)])
    order = np.argsort(places, kind="stable")
    return Region(code, places[order], rvas[order])


def undo(region: Region, offset: int, registers: Registers, memory: Memory) -> tuple[int, Registers] | None:
    """The address (rva) in the image that `offset` in the region stands for, and the registers there.

    What the trampoline did before that instruction's own work is taken back. None when the place is not known.
    """
    index = bisect_right(region.places, offset) - 1
    if index < 0:
        return None
    start = int(region.places[index])
    if not 0 <= offset - start <= _LONGEST:
        return None
    rva, out = int(region.rvas[index]), dict(registers)
    depth = 0
    pushes: list[tuple[int, str]] = []
    for moved, name in stack_effects(region.code[start:offset]):
        depth += moved
        if name is not None:
            pushes.append((depth, name))
        pushes = [(place, pushed) for place, pushed in pushes if place <= depth]
    sp = registers["rsp"]
    if sp is not None:
        for place, name in pushes:
            out[name] = memory.word(sp + depth - place)
        out["rsp"] = (sp + depth) % _ADDRESSES
    return rva, out


def without_volatile(registers: Registers) -> Registers:
    """The registers of which calls of C functions leave their callers nothing but these."""
    kept = ("rbx", "rbp", "rsp", "r12", "r13", "r14", "r15", "rip")
    return {name: registers.get(name) if name in kept else None for name in (*GENERAL, "rip", "rflags")}

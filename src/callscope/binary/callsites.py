"""The places from which functions call others: by address, through a word in memory or a register, or by a jump."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from iced_x86 import Decoder
from numpy.typing import NDArray

from callscope.binary import disassembly as dis
from callscope.binary.functions import FunctionTable
from callscope.binary.image import Image

CALL, TAIL, INDIRECT_CALL, INDIRECT_JUMP = range(4)
KINDS: Final = ("call", "tail", "indirect call", "indirect jump")
"""What a site's `kind` means. An indirect jump is a tail call or a jump table's: the code alone does not say."""

SITES: Final = np.dtype([("rva", "<u4"), ("next", "<u4"), ("function", "<i4"), ("kind", "u1"), ("target", "<i8"),
                         ("slot", "<i8")])  # fmt: skip
"""A call site. rva of the instruction, and of the one behind it, where the call returns to. function: index of the
one it is in. target: rva it goes to, -1 when that is not in the code. slot: rva of the word that holds it, or -1."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CallSites:
    """Call sites of an image in order of address (SITES), and the functions whose address is taken by code: u4 rvas."""

    sites: NDArray[np.void]
    taken: NDArray[np.uint32]


def find_call_sites(image: Image, functions: FunctionTable, progress: Progress | None = None) -> CallSites:
    """All call sites of the functions. `progress` is told of functions done and in all."""
    starts = functions.rva.tolist()
    known = set(starts)
    stubs = image.plt_ranges
    rows: list[tuple[int, int, int, int, int, int]] = []
    references: set[int] = set()
    for index, (start, size) in enumerate(zip(starts, functions.size.tolist(), strict=True)):
        if progress is not None and index % 1024 == 0:
            progress(index, len(starts))
        end = start + size
        for instruction in Decoder(64, image.read(start, size), ip=start):
            kind = dis.KINDS[instruction.code]
            place = (instruction.ip, instruction.next_ip, index)
            if kind == dis.INVALID:
                break
            if kind == dis.CALL:
                rows.append((*place, CALL, instruction.near_branch_target, -1))
            elif kind in (dis.JUMP, dis.BRANCH):
                target = instruction.near_branch_target
                if not start <= target < end and (
                    target in known or any(first <= target < last for first, last in stubs)
                ):
                    rows.append((*place, TAIL, target, -1))
            elif kind in (dis.INDIRECT_CALL, dis.INDIRECT_JUMP):
                what = INDIRECT_CALL if kind == dis.INDIRECT_CALL else INDIRECT_JUMP
                slot = instruction.ip_rel_memory_address if instruction.is_ip_rel_memory_operand else -1
                rows.append((*place, what, -1, slot if slot < 1 << 32 else -1))
            elif kind == dis.LEA and instruction.is_ip_rel_memory_operand:
                references.add(instruction.ip_rel_memory_address)
    if progress is not None:
        progress(len(starts), len(starts))
    rows = [row for row in rows if row[4] < 1 << 32]
    return CallSites(np.array(rows, SITES), np.array(sorted(references & known), np.uint32))

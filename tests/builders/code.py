"""Small pieces of machine code as the planner sees an image: functions by hand, without a file."""

from __future__ import annotations

import numpy as np
from iced_x86 import Decoder

from callscope.binary import disassembly as dis
from callscope.binary.cfi import FDE, ROW, FrameTable
from callscope.patching.text import HARD, SOFT, Text
from callscope.patching.unwind import EhFrames

LOW = 0x1000
NO_FRAMES = EhFrames(FrameTable(np.empty(0, FDE), np.empty(0, ROW)))
"""code without call frame information"""


def text_of(
    functions: list[bytes], pointers: tuple[int, ...] = (), gap: bytes = b"", landing_pads: tuple[int, ...] = ()
) -> Text:
    """Functions one behind the other from LOW on, `gap` after each; `pointers`: addresses that anything may jump to."""
    code = bytearray()
    starts, ends = [], []
    for function in functions:
        starts.append(LOW + len(code))
        code += function
        ends.append(LOW + len(code))
        code += gap
    high = LOW + len(code)
    barriers = bytearray(len(code))
    jumps: list[tuple[int, int]] = []
    for start, end in zip(starts, ends, strict=True):
        barriers[start - LOW] |= HARD
        for instruction in Decoder(64, bytes(code[start - LOW : end - LOW]), ip=start):
            if dis.KINDS[instruction.code] in (dis.JUMP, dis.BRANCH, dis.LOOP):
                jumps.append((instruction.near_branch_target, instruction.ip))
                if LOW <= instruction.near_branch_target < high:
                    barriers[instruction.near_branch_target - LOW] |= SOFT
    for pointer in (*pointers, *landing_pads):
        barriers[pointer - LOW] |= HARD
    jumps.sort()
    return Text(
        low=LOW,
        high=high,
        code=bytes(code),
        barriers=barriers,
        starts=starts,
        ends=ends,
        kinds=bytearray(len(starts)),
        owners=np.arange(len(starts), dtype=np.uint32),
        branch_targets=np.array([target for target, _ in jumps], np.uint32),
        branch_sources=np.array([source for _, source in jumps], np.uint32),
        plt=(),
        undecodable=frozenset(),
        conditional_entries=frozenset(),
        switches=frozenset(),
        interior_pointers=frozenset(),
        landings=list(landing_pads),
        exposed=frozenset(),
        red_zone=True,
        mixed=False,
        calls_stay=False,
    )

"""Simulates a thread of a traced program: the events it would record, and the truth about its calls.

Functions are numbered from 1; function f's code lies at CODE + 0x100 * f, and its frame, once set up, ends frame_of(f)
bytes below the address of its return address, as call frame information says.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callscope import format as records
from callscope.calls.kernel import PassInput, PassResult, function_table, image_tables, module_spans, rebuild_pass
from callscope.reports.database import ENDINGS

CODE = 0x5555_0000
STACK = 0x7FFE_F000
FUNCTIONS = 20
CLOCK_STEP = 10


def frame_of(function: int) -> int:
    """Bytes from a function's return address down to the next one's."""
    return 0x20 + 0x10 * (function % 5)


@dataclass
class Truth:
    """One call: its function, its parent's number or -1, how it ended, and whether something untraced lay between."""

    function: int
    parent: int
    ended_by: str = "running"


@dataclass
class _Frame:
    call: int
    function: int
    sp: int
    returns_to: int


@dataclass
class Thread:
    """Records what the methods say the thread does."""

    truth: list[Truth] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)
    stacks: list[list[_Frame]] = field(default_factory=lambda: [[]])
    tops: list[int] = field(default_factory=lambda: [STACK])
    time: int = 1000

    @property
    def frames(self) -> list[_Frame]:
        """The frames of the stack in use, innermost last."""
        return self.stacks[-1]

    def enter(self, function: int, site: int = 0x40, returns_to: int | None = None) -> int:
        """The function at work calls another, from offset `site` of its code; the new call's number."""
        if self.frames:
            caller = self.frames[-1]
            sp, target, parent = (
                caller.sp - frame_of(caller.function),
                CODE + 0x100 * caller.function + site,
                caller.call,
            )
        else:
            outer = next((frames[-1].call for frames in reversed(self.stacks[:-1]) if frames), -1)
            sp, target, parent = self.tops[-1], 0x10, outer
        return self._push(function, sp, target if returns_to is None else returns_to, parent)

    def _push(self, function: int, sp: int, returns_to: int, parent: int) -> int:
        call = len(self.truth)
        self.truth.append(Truth(function, parent))
        self.frames.append(_Frame(call, function, sp, returns_to))
        self._event(records.EVENT_ENTRY, sp, function, returns_to)
        return call

    def call_out(self, address: int, site: int = 0x40) -> None:
        """The function at work calls what lies at an address; the call site is recorded."""
        caller = self.frames[-1]
        sp = caller.sp - frame_of(caller.function)
        self._event(records.EVENT_CALL, sp, address, CODE + 0x100 * caller.function + site)

    def came_back(self) -> None:
        """A recorded call has returned to the function at work."""
        caller = self.frames[-1]
        self._event(records.EVENT_EXIT, caller.sp - frame_of(caller.function))

    def exit(self) -> None:
        """The function at work returns, and with it all that ended in tail jumps to it."""
        sp = self.frames[-1].sp
        self._event(records.EVENT_EXIT, sp)
        while self.frames and self.frames[-1].sp == sp:
            self._end(self.frames.pop(), "return")

    def tail(self, function: int) -> int:
        """The function at work ends in a jump to another, which returns to its caller; the new call's number."""
        old = self.frames[-1]
        self._event(records.EVENT_TAIL, old.sp)
        self.truth[old.call].ended_by = "tail_call"
        return self._push(function, old.sp, old.returns_to, old.call)

    def unwind(self, count: int, landing: bool = True) -> None:
        """Drop the innermost frames, as an exception or longjmp does; where it lands is recorded if `landing`."""
        for _ in range(count):
            sp = self.frames[-1].sp
            while self.frames and self.frames[-1].sp == sp:
                self._end(self.frames.pop(), "unwound")
        if landing and self.frames:
            top = self.frames[-1]
            self._event(records.EVENT_LANDING, top.sp + 8 - frame_of(top.function))

    def switch(self, top: int) -> None:
        """Go on with a new stack, as a signal handler or coroutine does."""
        self.stacks.append([])
        self.tops.append(top)

    def back(self) -> None:
        """Leave a stack that has run to its end."""
        assert not self.stacks.pop()
        self.tops.pop()

    def script(self, sp: int, function: int, how: int = 0) -> None:
        """An interpreter's recorder tells of a function, with its own stack pointer; `how`: 0 or SCRIPT_*."""
        self.time += CLOCK_STEP
        self.data += struct.pack("<4I", function | how, 2 << 3 | records.EVENT_EXTENDED, self.time, sp)

    def control(self, what: int, value: int) -> None:
        """A CONTROL event."""
        self.data += struct.pack("<2I", value, what << 3 | records.EVENT_CONTROL)

    def _end(self, frame: _Frame, how: str) -> None:
        if self.truth[frame.call].ended_by == "running":
            self.truth[frame.call].ended_by = how

    def _event(self, kind: int, sp: int, *more: int) -> None:
        self.time += CLOCK_STEP
        words = [self.time & 0xFFFFFFFF, sp & 0xFFFFFFFF | kind, *(word & 0xFFFFFFFF for word in more)]
        self.data += struct.pack(f"<{len(words)}I", *words)


@dataclass
class _Chunks:
    """Stands in for the reader of an events file."""

    pieces: list[bytes]

    def table(self, tsc: int) -> NDArray[np.void]:
        table = np.zeros(len(self.pieces), [("bytes", "<u8"), ("tsc", "<u8"), ("number", "<u8")])
        table["bytes"] = [len(piece) for piece in self.pieces]
        table["number"] = np.arange(len(self.pieces))
        table["tsc"] = tsc
        return table

    def read(self, chunk: np.void, buffer: NDArray[np.uint8]) -> int:
        """The bytes of a chunk."""
        piece = self.pieces[int(chunk["number"])]
        buffer[: len(piece)] = np.frombuffer(piece, np.uint8)
        return len(piece)


@dataclass
class Rebuilt:
    """Calls as the kernel sees them: in Truth's terms, their rows by column, and the last pass's counts."""

    calls: list[Truth]
    rows: dict[str, NDArray[Any]]
    counts: dict[str, int]


def given(flags: dict[int, int] | None = None, cfa: int = records.CFA_RSP) -> PassInput:
    """What the kernel is told of the program. flags: FUNCTION_* by function where not all is patched."""
    functions = np.zeros(FUNCTIONS, records.FUNCTION)
    functions["rva"] = 0x100 * np.arange(1, FUNCTIONS + 1)
    functions["bytes"] = 0x100
    functions["owner"] = np.arange(FUNCTIONS)
    functions["flags"] = records.FUNCTION_ENTRY | records.FUNCTION_EXITS | records.FUNCTION_TAILS
    for function, value in (flags or {}).items():
        functions["flags"][function - 1] = value
    rules = np.zeros(FUNCTIONS, records.CFA_ROW)
    rules["rva"] = functions["rva"]
    rules["rule"] = [frame_of(f) << 2 | cfa if cfa == records.CFA_RSP else cfa for f in range(1, FUNCTIONS + 1)]
    images, kept = image_tables([(functions, rules, 1)])
    spans = module_spans([(CODE, 0x100 * (FUNCTIONS + 2), 0, 0, 0, (1 << 64) - 1)])
    return PassInput(
        functions=function_table([(functions, rules, 1)]),
        images=images,
        modules=spans,
        origin_tsc=0,
        tick_limit=1 << 62,
        tick_scale=1 << 40,
        end_tsc=1 << 40,
        no_clock=False,
        resumed=np.empty(0, np.uint64),
        kept=kept,
        scripts=np.empty(0, np.uint32),
    )


def rebuild(data: bytes, told: PassInput | None = None, cuts: tuple[int, ...] = ()) -> Rebuilt:
    """All three passes over events, split into chunks at the offsets `cuts`."""
    told = told or given()
    bounds = [0, *sorted(cut for cut in cuts if 0 < cut < len(data)), len(data)]
    chunks = _Chunks([data[low:high] for low, high in pairwise(bounds) if high > low])
    table = chunks.table(0)

    def go_over() -> tuple[PassResult, list[dict[str, NDArray[Any]]]]:
        results: list[PassResult] = []
        batches = [
            {name: column.copy() for name, column in step.items()}
            for step in rebuild_pass(chunks, table, told, results)  # type: ignore[arg-type]
            if isinstance(step, dict)
        ]
        return results[0], batches

    told.learning = True
    learned, _ = go_over()
    out = told.functions.out
    out[learned.out[learned.out < len(out)]] = 1
    told.learning, told.resumed = False, np.sort(learned.resumed)
    counted, _ = go_over()
    told.late = counted.late
    told.node_names = np.arange(len(counted.nodes), dtype=np.int32)
    told.site_names = np.arange(len(counted.sites), dtype=np.int32)
    final, batches = go_over()
    names = batches[0] if batches else {}
    rows = {name: np.concatenate([batch[name] for batch in batches]) for name in names}
    calls = []
    if rows:
        for index, (up, function, ended) in enumerate(
            zip(rows["up"].tolist(), rows["function"].tolist(), rows["ended_by"].tolist(), strict=True)
        ):
            calls.append(Truth(function, index - up if up else -1, ENDINGS[min(ended, 3)]))
    return Rebuilt(calls, rows, final.counts)

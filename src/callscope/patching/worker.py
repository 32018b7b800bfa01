"""Plans a range of functions from first choice to bytes. Ranges are planned side by side, in processes of their own."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from callscope.binary import disassembly as dis
from callscope.errors import PlanError
from callscope.format import PATCH_NO_REL
from callscope.patching.calls import CallSites
from callscope.patching.code import CannotMoveError, Piece
from callscope.patching.emit import Emitter
from callscope.patching.hooks import NOPS
from callscope.patching.rescue import Rescue
from callscope.patching.runs import JUMP_BYTES, SHORT_JUMP_BYTES, Layout, Refusal, Run
from callscope.patching.scope import Scope
from callscope.patching.seh import SehFrames
from callscope.patching.text import MOST_PADDING, Taken, Text
from callscope.patching.unwind import EhFrames
from callscope.patching.verify import check_pieces, check_runs
from callscope.patching.windows import Windows

_NOP = 0x90
_JMP = 0xE9
_JMP_SHORT = 0xEB
_CALL = 0xE8
_ADDRESS_SIZE = b"\x67"  # without effect on a call
_MOST_PREFIXES = 3

PATCH_ROW = np.dtype(
    [
        ("rva", "<u4"),
        ("function", "<u4"),
        ("length", "u1"),
        ("rel_offset", "u1"),
        ("new", "u1", (8,)),
        ("target", "<i8"),
    ]
)
"""A patch; `target` is the offset in the part's code that the displacement at `rel_offset` goes to, or -1"""


@dataclass
class Part:
    """The plan of a range of functions. Offsets are in bytes from the start of `code`.

    `patches`: PATCH_ROW, shape (n,). `to_image`, `to_stub`: offsets of displacements, int64. `records`: unwind records,
    and `record_starts` the offsets of their trampolines, int64.
    """

    code: bytes
    patches: NDArray[np.void]
    to_image: NDArray[np.int64]
    to_stub: NDArray[np.int64]
    gates: NDArray[np.int64]
    """(offset, function index) of calls of the stub page, int64, shape (n, 2)"""
    to_flag: NDArray[np.int64]
    """(offset, call site) of displacements to the bytes of call sites, int64, shape (n, 2)"""
    flags: int
    """call sites that have such a byte"""
    to_capture: NDArray[np.int64]
    """(offset, function index) of displacements to capture records, int64, shape (n, 2)"""
    records: list[bytes]
    record_starts: NDArray[np.int64]
    refusals: list[Refusal]
    counts: dict[str, int]
    entered: list[int]
    exits_left: list[int]
    tails_left: list[int]
    moved: NDArray[np.int64]
    """(relative address, place in `code`) of each instruction that moved, int64, shape (n, 2)"""
    runs: NDArray[np.int64]
    """(start, end) of what each run overwrites, int64, shape (n, 2)"""


def plan_range(text: Text, frames: EhFrames | SehFrames, scope: Scope, first: int, last: int) -> Part:
    """Plan the functions with indices from `first` up to `last`. Raises PlanError when the plan fails its checks."""
    layout = Layout(once=scope.once)
    start = text.starts[first]
    end = min(text.high, text.ends[last - 1] + MOST_PADDING)
    if last < len(text.starts):
        end = min(end, text.starts[last])
    taken = Taken(text, start, max(end, text.ends[last - 1]))
    windows = Windows(text, frames, taken, layout)
    if not scope.once:
        for index in range(first, last):
            windows.plan_function(index)
        Rescue(windows, first, last).run()
    if scope.calls:
        sites = CallSites(windows, scope)
        for index in range(first, last):
            sites.plan_function(index)
    return _emit(
        text, frames, layout, (text.starts[first], text.starts[last] if last < len(text.starts) else text.high)
    )


class _Patches:
    """Collects PATCH_ROW tuples."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int, int, bytes, int]] = []

    def jump(self, address: int, function: int, target: int, lead: int = 0) -> None:
        """Five bytes: a jump to an offset in the code, behind `lead` bytes of no-operation."""
        new = bytes([_NOP] * lead + [_JMP])
        self.rows.append((address, function, lead + JUMP_BYTES, lead + 1, new, target))

    def short_jump(self, address: int, function: int, target: int, lead: int) -> None:
        """Two bytes: a jump to another address of the image, behind `lead` bytes of no-operation."""
        size = lead + SHORT_JUMP_BYTES
        new = bytes([_NOP] * lead + [_JMP_SHORT, (target - address - size) & 255])
        self.rows.append((address, function, size, PATCH_NO_REL, new, -1))

    def displacement(self, address: int, function: int, width: int, end: int, target: int) -> None:
        """A jump's displacement: 4 bytes to an offset in the code, or 1 byte to another address of the image."""
        if width == 1:
            self.rows.append((address, function, 1, PATCH_NO_REL, bytes([(target - end) & 255]), -1))
        else:
            self.rows.append((address, function, 4, 0, b"", target))

    def call(self, address: int, function: int, size: int, target: int) -> None:
        """`size` bytes (5 to 13): a call of an offset in the code at their end, behind no-operations."""
        lead = size - JUMP_BYTES
        if lead > _MOST_PREFIXES:
            self.rows.append((address, function, lead, PATCH_NO_REL, NOPS[lead], -1))
            address, lead = address + lead, 0
        new = _ADDRESS_SIZE * lead + bytes([_CALL])
        self.rows.append((address, function, lead + JUMP_BYTES, lead + 1, new, target))

    def array(self) -> NDArray[np.void]:
        """As PATCH_ROW."""
        out = np.zeros(len(self.rows), PATCH_ROW)
        if self.rows:
            columns = list(zip(*self.rows, strict=True))
            for name, column in zip(("rva", "function", "length", "rel_offset"), columns, strict=False):
                out[name] = column
            joined = b"".join(new.ljust(8, b"\0") for new in columns[4])
            out["new"] = np.frombuffer(joined, "u1").reshape(-1, 8)
            out["target"] = columns[5]
        return out


def _emit(text: Text, frames: EhFrames | SehFrames, layout: Layout, bounds: tuple[int, int]) -> Part:
    emitter = Emitter(text, layout)
    patches = _Patches()
    pieces: list[tuple[Run | None, Piece]] = []
    overwritten: list[tuple[int, int]] = []
    for run in sorted(layout.runs, key=lambda run: run.start):
        try:
            piece = emitter.run(run)
        except CannotMoveError as error:
            _withdraw(text, layout, run, str(error))
            continue
        pieces.append((run, piece))
        if run.detached:
            continue
        lead = text.lead(run.start)
        if run.island is None:
            patches.jump(run.start, run.function, piece.start, lead)
            # What a borrowed run leaves behind its jump is there for islands.
            end = run.start if run.borrowed else run.end
            overwritten.append((run.start, max(end, run.start + lead + JUMP_BYTES)))
        else:
            patches.short_jump(run.start, run.function, run.island, lead)
            patches.jump(run.island, run.function, piece.start)
            overwritten += [
                (run.start, max(run.end, run.start + lead + SHORT_JUMP_BYTES)),
                (run.island, run.island + JUMP_BYTES),
            ]
    for redirect in sorted(layout.redirects, key=lambda redirect: redirect.address):
        tail_piece = emitter.redirect(redirect)
        if tail_piece is not None:
            pieces.append((None, tail_piece))
            offset = tail_piece.start
        elif redirect.target in emitter.out.labels:
            offset = emitter.out.labels[redirect.target]
        else:
            continue  # the run it led into was withdrawn
        place = redirect.address + redirect.displacement
        end = place + redirect.width
        if redirect.island is None:
            patches.displacement(place, redirect.function, 4, end, offset)
        else:
            patches.displacement(place, redirect.function, 1, end, redirect.island)
            patches.jump(redirect.island, redirect.function, offset)
            overwritten.append((redirect.island, redirect.island + JUMP_BYTES))
    for site in layout.sites:
        try:
            piece = emitter.call_site(site)
        except CannotMoveError as error:
            layout.refusals.append(Refusal("call", site.function, site.start, str(error)))
            continue
        pieces.append((None, piece))
        if site.direct:
            patches.displacement(site.end - 4, site.function, 4, site.end, piece.start)
        else:
            patches.call(site.start, site.function, site.end - site.start, piece.start)
        overwritten.append((site.start, site.end))
    _silence(text, patches, overwritten, bounds)
    emitter.resolve_labels()
    code = bytes(emitter.out.code)
    check_pieces(text, code, pieces, layout)
    check_runs(text, layout, overwritten)
    records: list[bytes] = []
    record_starts: list[int] = []
    for _, piece in pieces:
        for start, record in frames.records(piece):
            records.append(record)
            record_starts.append(start)
    return Part(
        code=code,
        patches=patches.array(),
        to_image=np.array(emitter.out.to_image, np.int64),
        to_stub=np.array(emitter.out.to_stub, np.int64),
        gates=np.array(emitter.out.gates, np.int64).reshape(-1, 2),
        to_flag=np.array(emitter.out.to_flag, np.int64).reshape(-1, 2),
        flags=emitter.out.flags,
        to_capture=np.array(emitter.out.to_capture, np.int64).reshape(-1, 2),
        records=records,
        record_starts=np.array(record_starts, np.int64),
        refusals=layout.refusals,
        counts=layout.counts,
        entered=sorted(layout.entered),
        exits_left=sorted(layout.exits_left),
        tails_left=sorted(layout.tails_left),
        moved=np.array([place for run, piece in pieces if run is not None for place in piece.moved], np.int64).reshape(
            -1, 2
        ),
        runs=np.array(overwritten, np.int64).reshape(-1, 2),
    )


def _silence(text: Text, patches: _Patches, overwritten: list[tuple[int, int]], bounds: tuple[int, int]) -> None:
    """Write what stands for the calls of hooks that were taken out, where no other patch does."""
    taken = sorted(overwritten)
    for address, (size, function) in text.silenced.items():
        if not bounds[0] <= address < bounds[1]:
            continue
        at = bisect_right(taken, (address, text.high))
        if at and taken[at - 1][1] > address:
            continue
        end = min(address + size, taken[at][0] if at < len(taken) else text.high)
        patches.rows.append((address, function, end - address, PATCH_NO_REL, text.bytes_at(address, end - address), -1))


def _withdraw(text: Text, layout: Layout, run: Run, reason: str) -> None:
    """Give up a run whose instructions cannot move, and all that it would have recorded."""
    function = text.function_at(run.start)
    if run.borrowed or function is None:
        raise PlanError(f"planning error at {run.start:#x}: a borrowed run cannot move")
    if run.entry:
        layout.entered.discard(function)
        layout.refusals.append(Refusal("entry", function, run.start, reason))
    for kind, here in (("landing", run.landing), ("return", run.returned)):
        if here:
            layout.refusals.append(Refusal(kind, function, run.start, reason))
    for instruction in text.decode(run.start, run.end):
        if instruction.ip in layout.calls:
            layout.refusals.append(Refusal("call", function, instruction.ip, reason))
        if instruction.ip in layout.tails:
            layout.tails_left.add(function)
            layout.refusals.append(Refusal("tail", function, instruction.ip, reason))
        elif dis.KINDS[instruction.code] == dis.RET:
            layout.exits_left.add(function)
            layout.refusals.append(Refusal("exit", function, instruction.ip, reason))

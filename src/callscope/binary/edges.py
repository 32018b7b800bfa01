"""Where control can go: the direct branches, address computations and jump tables of a run of functions.

One linear decode of each function. Addresses are relative to the image's base throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from iced_x86 import Code, Decoder, Instruction, OpKind, Register
from numpy.typing import NDArray

from callscope.binary import disassembly as dis

if TYPE_CHECKING:
    from callscope.binary.image import Image

TABLE_ENTRIES = 4096
"""a jump table is not followed further than this"""
_RUNS_ON = dis.FALLS_THROUGH - {dis.NOP} | {dis.BRANCH, dis.LOOP}
_STACK_MOVES = frozenset({Code.ADD_RM64_IMM8, Code.ADD_RM64_IMM32, Code.LEA_R64_M})
_BRANCHES = frozenset({dis.JUMP, dis.BRANCH, dis.LOOP, dis.TRANSACTION})
_NO_BASE = frozenset({Register.NONE, Register.RIP, Register.EIP, Register.RSP})
_IMMEDIATE_KINDS = frozenset({OpKind.IMMEDIATE32, OpKind.IMMEDIATE64, OpKind.IMMEDIATE32TO64})


@dataclass(frozen=True)
class Edges:
    """What a scan of functions found. All arrays are of relative addresses, uint32, unless said otherwise.

    `branch_sources`, `branch_targets`, `branch_conditional` (bool): every direct jump, in parallel; sources are the
    addresses of the instructions. `call_targets`: of direct calls, unique. `second_returns`: addresses behind
    calls of functions that return twice, unique. `code_references`: code addresses computed
    or loaded by instructions, unique. `tables`: (function index, address, origin), shape (n, 3), int64: data addresses
    computed in each function, among them jump tables, and what such a table's entries are relative to. `data`:
    [start, end) ranges inside functions that are no instructions, shape (n, 2), int64, and `exposed`: addresses behind
    calls, and those up to which an unwinder takes the code behind a call for an epilogue; both in PE images only.
    `starts`: targets of calls that are surely executed, unique: functions without unwind information begin there.
    `indirect`: indices of functions with an indirect jump.
    `undecodable`: indices of functions holding bytes that are no instructions. `open_ended`: indices of functions
    whose last instruction lets control run on behind them.
    """

    branch_sources: NDArray[np.uint32]
    branch_targets: NDArray[np.uint32]
    branch_conditional: NDArray[np.bool_]
    call_targets: NDArray[np.uint32]
    second_returns: NDArray[np.uint32]
    code_references: NDArray[np.uint32]
    tables: NDArray[np.int64]
    data: NDArray[np.int64]
    exposed: NDArray[np.uint32]
    starts: NDArray[np.uint32]
    indirect: NDArray[np.int64]
    undecodable: NDArray[np.int64]
    open_ended: NDArray[np.int64]


def scan(image: Image, first: int, starts: Sequence[int], sizes: Sequence[int], low: int, high: int) -> Edges:
    """Scan functions; `first` is the index of the first, `low` and `high` bound the image's code."""
    sources: list[int] = []
    targets: list[int] = []
    conditional: list[bool] = []
    calls: set[int] = set()
    references: set[int] = set()
    tables: list[tuple[int, int, int]] = []
    data: list[tuple[int, int]] = []
    entered: set[int] = set()
    exposed: list[int] = []
    indirect: list[int] = []
    undecodable: list[int] = []
    open_ended: list[int] = []
    absolute = image.is_fixed
    is_pe = image.is_pe
    base = image.base
    twice = image.twice_callees
    returns: set[int] = set()
    kinds = dis.KINDS
    for index, (start, size) in enumerate(zip(starts, sizes, strict=True), first):
        computed: set[int] = set()
        jumps_indirectly = False
        kind = dis.STOP
        after_call = False
        own_calls: list[tuple[int, int]] = []
        mixed = _Mixed(image, start, start + size) if is_pe else None
        decoder = Decoder(64, image.read(start, size), ip=start)
        for instruction in decoder:
            kind = kinds[instruction.code]
            if mixed is not None:
                if not mixed.advance(instruction, kind, decoder):
                    if mixed.ended:
                        break
                    continue
                if after_call:
                    exposed.append(instruction.ip)
                    after_call = _releases_frame(instruction)
            if kind == dis.PLAIN or kind == dis.RET:
                continue
            if kind == dis.LEA:
                if instruction.is_ip_rel_memory_operand:
                    address = instruction.ip_rel_memory_address
                    if low <= address < high:
                        references.add(address)
                    else:
                        computed.add(address)
            elif kind == dis.CALL:
                after_call = True
                own_calls.append((instruction.ip, instruction.near_branch_target))
                if instruction.near_branch_target in twice.addresses:
                    returns.add(instruction.next_ip)
            elif kind == dis.INDIRECT_CALL:
                after_call = True
                if instruction.is_ip_rel_memory_operand and instruction.ip_rel_memory_address in twice.slots:
                    returns.add(instruction.next_ip)
            elif kind in _BRANCHES:
                sources.append(instruction.ip)
                targets.append(instruction.near_branch_target)
                conditional.append(kind != dis.JUMP)
            elif kind == dis.INDIRECT_JUMP:
                jumps_indirectly = True
            elif kind == dis.IMMEDIATE:
                if absolute:
                    for operand in range(instruction.op_count):
                        if instruction.op_kind(operand) in _IMMEDIATE_KINDS:
                            address = instruction.immediate(operand) - base
                            if low <= address < high:
                                references.add(address)
            elif kind == dis.INVALID:
                if mixed is None or not mixed.sure_end:
                    undecodable.append(index)
                else:
                    mixed.data.append((mixed.sure_end, start + size))
                break
        calls.update(target for _, target in own_calls)
        if mixed is None:
            entered.update(target for _, target in own_calls)
        else:
            entered.update(target for place, target in own_calls if place < (mixed.sure_end or start + size))
            data += mixed.data
            tables += [(index, address, 0) for address in mixed.tables]
        if kind in _RUNS_ON:
            open_ended.append(index)
        if jumps_indirectly:
            indirect.append(index)
        tables.extend((index, address, address) for address in computed if address < 1 << 31)
    count = len(targets)
    valid = np.fromiter((0 <= target < 1 << 31 for target in targets), np.bool_, count)
    return Edges(
        np.array(sources, np.uint64)[valid].astype(np.uint32),
        np.array(targets, np.uint64)[valid].astype(np.uint32),
        np.array(conditional, np.bool_)[valid],
        np.array(sorted(target for target in calls if low <= target < high), np.uint32),
        np.array(sorted(returns), np.uint32),
        np.array(sorted(references), np.uint32),
        np.array(tables, np.int64).reshape(-1, 3),
        np.array(data, np.int64).reshape(-1, 2),
        np.array(exposed, np.uint32),
        np.array(sorted(target for target in entered if low <= target < high), np.uint32),
        np.array(indirect, np.int64),
        np.array(undecodable, np.int64),
        np.array(open_ended, np.int64),
    )


class _Mixed:
    """A PE function while it is decoded: where data lie in its code. Microsoft's compiler puts jump tables there, V8
    what describes the code.

    tables: rvas of what is read as a jump table. sure_end: where code that nothing before it leads to begins, as far as
    branches and tables tell; 0 until that is reached. ended: nothing but data follows.
    """

    def __init__(self, image: Image, start: int, end: int) -> None:
        self._image = image
        self._bounds = (start, end)
        self._entries: set[int] = set()
        self._furthest = start
        self._limit = end
        self.tables: list[int] = []
        self.data: list[tuple[int, int]] = []
        self.sure_end = 0
        self.ended = False

    def advance(self, instruction: Instruction, kind: int, decoder: Decoder) -> bool:
        """Take note of the next instruction; False when it is data: the decoder then goes on behind them."""
        if instruction.ip >= self._limit:
            self._skip(decoder)
            return False
        address = _indexed_rva(instruction)
        if address and address < self._image.span:
            self._table(address, instruction.ip)
        if kind in _BRANCHES and self._bounds[0] <= instruction.near_branch_target < self._bounds[1]:
            self._furthest = max(self._furthest, instruction.near_branch_target)
        if kind in dis.NEVER_RETURNS and not self.sure_end and instruction.next_ip > self._furthest:
            self.sure_end = instruction.next_ip
        return True

    def _table(self, address: int, place: int) -> None:
        self.tables.append(address)
        entries = table_targets(self._image, np.array([[address, 0]]), *self._bounds).tolist()
        self._entries.update(entries)
        self._furthest = max(self._furthest, *entries, 0)
        if place < address < self._limit:
            self._limit = address

    def _skip(self, decoder: Decoder) -> None:
        start, end = self._bounds
        resume = min((entry for entry in self._entries if entry > self._limit), default=end)
        self.data.append((self._limit, resume))
        self._limit = min((table for table in self.tables if table > resume), default=end)
        self.ended = resume == end
        decoder.position, decoder.ip = resume - start, resume


def flow_end(image: Image, start: int, limit: int) -> int:
    """Where the code that begins at `start` ends: at the first return or jump that nothing before it leads behind.

    `start` itself when bytes that are no instructions come first; `limit` when none does. For PE images.
    """
    mixed = _Mixed(image, start, limit)
    decoder = Decoder(64, image.read(start, limit - start), ip=start)
    for instruction in decoder:
        kind = dis.KINDS[instruction.code]
        if kind == dis.INVALID:
            return start
        mixed.advance(instruction, kind, decoder)
        if mixed.ended or mixed.sure_end:
            return mixed.sure_end or mixed.data[0][0]
    return limit


def _releases_frame(instruction: Instruction) -> bool:
    """Whether an epilogue may go on behind it: it pops a register or moves the stack pointer up."""
    code = instruction.code
    if code == Code.POP_R64:
        return True
    return code in _STACK_MOVES and instruction.op0_register == Register.RSP


def _indexed_rva(instruction: Instruction) -> int:
    """The constant part of a load from image base + index * size + constant, as Microsoft's compiler reads jump tables;
    0 for others.
    """
    if instruction.memory_displ_size < 4 or instruction.memory_base in _NO_BASE:
        return 0
    return instruction.memory_displacement if instruction.memory_index != Register.NONE else 0


def merge(parts: Sequence[Edges]) -> Edges:
    """Join the scans of consecutive runs of functions."""
    return Edges(
        np.concatenate([part.branch_sources for part in parts]),
        np.concatenate([part.branch_targets for part in parts]),
        np.concatenate([part.branch_conditional for part in parts]),
        np.unique(np.concatenate([part.call_targets for part in parts])),
        np.unique(np.concatenate([part.second_returns for part in parts])),
        np.unique(np.concatenate([part.code_references for part in parts])),
        np.concatenate([part.tables for part in parts]),
        np.concatenate([part.data for part in parts]),
        np.concatenate([part.exposed for part in parts]),
        np.unique(np.concatenate([part.starts for part in parts])),
        np.concatenate([part.indirect for part in parts]),
        np.concatenate([part.undecodable for part in parts]),
        np.concatenate([part.open_ended for part in parts]),
    )


def table_targets(image: Image, tables: NDArray[np.int64], low: int, high: int) -> NDArray[np.uint32]:
    """Code addresses held by jump tables: 32-bit offsets relative to the table's start or to the image.

    `tables`: (address, origin), shape (n, 2), int64, in any order. A table's end is not marked anywhere: entries are
    taken until one does not point into the code or another table begins, so this may name too many addresses, never too
    few. Returns unique addresses.
    """
    found: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    tables = np.unique(tables, axis=0)
    following = np.append(tables[1:, 0], 1 << 40)[np.searchsorted(tables[:, 0], tables[:, 0], "right") - 1]
    room = (following - tables[:, 0]) // 4
    for (address, origin), entries_at_most in zip(tables.tolist(), room.tolist(), strict=True):
        data = image.read(address, 4 * min(TABLE_ENTRIES, entries_at_most))
        offsets = np.frombuffer(data[: len(data) // 4 * 4], "<i4").astype(np.int64) + origin
        outside = np.flatnonzero((offsets < low) | (offsets >= high))
        found.append(offsets[: outside[0]] if len(outside) else offsets)
    return np.unique(np.concatenate(found)).astype(np.uint32)


def data_targets(image: Image, low: int, high: int) -> NDArray[np.uint32]:
    """Aligned 64-bit words of data that are code addresses, in images that load at a fixed address. Unique."""
    found = [np.empty(0, np.int64)]
    for section in image.sections:
        if section.executable or not section.alloc:
            continue
        start = -section.rva % 8
        data = np.frombuffer(image.section_data(section), "u1")[start:]
        words = data[: len(data) // 8 * 8].view("<u8").astype(np.int64) - image.base
        found.append(words[(words >= low) & (words < high)])
    return np.unique(np.concatenate(found)).astype(np.uint32)

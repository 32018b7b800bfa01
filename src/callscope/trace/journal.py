"""The `journal` file: timed records of processes, threads, modules and notes."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from callscope import format as records
from callscope.errors import TraceError
from callscope.trace.session import check_version

JOURNAL_NAME = "journal"

_MOST_BYTES = 1 << 30
_MOST_RECORD = 1 << 20
_RECORD = struct.Struct("<IHHQIIII")
_PROCESS_START = struct.Struct("<IIIIIIQQ")
_MODULE_LOAD = struct.Struct("<QQIIIIII32sQQII")
_MODULE_UNLOAD = struct.Struct("<QQ")
_TEXT = struct.Struct("<II")
_PAIR = struct.Struct("<II")
_THREAD_CREATED = struct.Struct("<IIQQQ")
_PIECE = struct.Struct("<QQ")
_SCRIPT_FUNCTION = struct.Struct("<IIIIIIQ")
assert _RECORD.size == records.JOURNAL_RECORD.itemsize
assert _PROCESS_START.size == records.PROCESS_START.itemsize
assert _MODULE_LOAD.size == records.MODULE_LOAD.itemsize
assert _THREAD_CREATED.size == records.THREAD_CREATED.itemsize
assert _PIECE.size == records.CRASH_PIECE.itemsize
assert _SCRIPT_FUNCTION.size == records.SCRIPT_FUNCTION.itemsize


@dataclass(frozen=True, slots=True)
class Record:
    """What every record has. process, thread: numbers in the session, 0 when unknown. tsc: ticks."""

    kind: int
    tsc: int
    process: int
    pid: int
    tid: int
    thread: int


@dataclass(frozen=True, slots=True)
class ProcessStart(Record):
    """A process began: launched, forked (with its parent's modules), or a new image of it by exec."""

    parent_process: int
    ppid: int
    cause: int
    path: str
    command: tuple[str, ...]
    monotonic_ns: int
    realtime_ns: int


@dataclass(frozen=True, slots=True)
class ModuleLoad(Record):
    """A module came. base, region: addresses; span, region_bytes: bytes. id_base: 0 when it is not traced."""

    base: int
    span: int
    id_base: int
    function_count: int
    patch_count: int
    patch_refused: int
    module_flags: int
    build_id: bytes
    region: int
    region_bytes: int
    path: str


@dataclass(frozen=True, slots=True)
class ModuleUnload(Record):
    """A module began to go."""

    base: int
    span: int


@dataclass(frozen=True, slots=True)
class ThreadCreated(Record):
    """Who made the thread. created_tsc: ticks; call_site, start_address: absolute addresses."""

    creator_thread: int
    creator_tid: int
    created_tsc: int
    call_site: int
    start_address: int


@dataclass(frozen=True, slots=True)
class ScriptFunction(Record):
    """A function of an interpreter. script_kind: SCRIPT_CODE or SCRIPT_NATIVE. file, module: empty where there is none.
    line: from 1, 0 when unknown. address: a native one's code, absolute, or 0.
    """

    function: int
    script_kind: int
    line: int
    address: int
    name: str
    file: str
    module: str


@dataclass(frozen=True, slots=True)
class Switch(Record):
    """Recording went on, or off, in a process."""

    is_on: bool


@dataclass(frozen=True, slots=True)
class Mute(Record):
    """Entries of a function are not recorded any more, nor are its ends where it is `restored`."""

    function: int
    restored: bool


@dataclass(frozen=True, slots=True)
class Crash(Record):
    """A thread at its crash: a CRASH record with the copies of memory that follow it.

    fields: the values of the record by name, integers, tuples of them, `name` as text. pieces: more memory, (address,
    bytes).
    """

    fields: dict[str, Any]
    vector: bytes
    stack: bytes
    code: bytes
    pieces: tuple[tuple[int, bytes], ...]

    def ended(self, session: Mapping[str, Any]) -> bool:
        """Of an exception that a Windows program raised: whether it ended the program, whose status it then is."""
        status, whole = session.get("exit_status"), session.get("windows_status")
        if isinstance(whole, int):
            return self.process == 1 and whole == self.fields["code"]
        return self.process == 1 and isinstance(status, int) and status == self.fields["code"] & 0xFF


@dataclass(frozen=True, slots=True)
class Text(Record):
    """A thread's name (THREAD_START, THREAD_END), a marker, or a note of the agent."""

    code: int
    text: str


def read_journal(directory: Path, warnings: list[str]) -> list[Record]:
    """All whole records of a trace's journal, in the order of the file.

    A missing or damaged journal costs its records and a warning. Raises TraceError when it is of another version.
    """
    path = directory / JOURNAL_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        warnings.append(f"{JOURNAL_NAME} cannot be read ({error.strerror}): processes and modules are unknown")
        return []
    try:
        data = _read_data(descriptor)
    finally:
        os.close(descriptor)
    if len(data) < records.JOURNAL_HEADER.itemsize or struct.unpack_from("<Q", data)[0] != records.JOURNAL_MAGIC:
        warnings.append(f"{JOURNAL_NAME} is damaged: processes and modules are unknown")
        return []
    version, header_size = struct.unpack_from("<II", data, 8)
    check_version(version, str(path))
    lost = struct.unpack_from("<I", data, records.JOURNAL_HEADER.fields["lost"][1])[0]  # type: ignore[index]
    if lost:
        warnings.append(f"{JOURNAL_NAME} was full: {lost} records of later processes, modules and threads are missing")
    return parse_records(data, max(header_size, records.JOURNAL_HEADER.itemsize), warnings)


def _read_data(descriptor: int) -> bytes:
    """The file up to where its data ends: it is sparse, and longer than what was written."""
    size = min(os.fstat(descriptor).st_size, _MOST_BYTES)
    header = os.pread(descriptor, records.JOURNAL_HEADER.itemsize, 0)
    if len(header) == records.JOURNAL_HEADER.itemsize:
        tail = struct.unpack_from("<Q", header, 24)[0]
        size = tail if records.JOURNAL_HEADER.itemsize <= tail <= size else size
    pieces, at = [], 0
    while at < size:
        piece = os.pread(descriptor, min(size - at, 1 << 24), at)
        if not piece:
            break
        pieces.append(piece)
        at += len(piece)
    return b"".join(pieces)


def parse_records(data: bytes, offset: int, warnings: list[str]) -> list[Record]:
    """The records from `offset` on. Holes, unfinished and damaged records are passed over, with one warning for them
    all.
    """
    found: list[Record] = []
    damaged = 0
    at = (offset + 7) & ~7
    while at + _RECORD.size <= len(data):
        size, kind, _, *rest = _RECORD.unpack_from(data, at)
        if size == 0:
            at = _skip_zeros(data, at)
            continue
        if size % 8 or size < _RECORD.size or size > min(len(data) - at, _MOST_RECORD):
            damaged += 1
            at += 8
            continue
        if kind:
            record = _parse(Record(kind, *rest), data[at + _RECORD.size : at + size])
            damaged += record is None
            if record is not None:
                found.append(record)
        else:
            damaged += 1
        at += size
    if damaged:
        warnings.append(f"{JOURNAL_NAME}: {damaged} unfinished or damaged records are left out")
    return found


def _skip_zeros(data: bytes, at: int) -> int:
    """The next 8-byte word that may begin a record."""
    while at + 8 <= len(data):
        block = data[at : at + 4096]
        zeros = len(block) - len(block.lstrip(b"\0"))
        at += zeros & ~7
        if zeros < len(block):
            # A record begins with its size; zeros before a later byte of this word belong to a damaged one.
            return at if data[at : at + 4] != b"\0\0\0\0" else at + 8
    return len(data)


def _parse(record: Record, payload: bytes) -> Record | None:
    """The record with its payload; None when the payload does not fit. Records of unknown kinds stay as they are."""
    head = (record.kind, record.tsc, record.process, record.pid, record.tid, record.thread)
    try:
        if record.kind == records.JOURNAL_PROCESS_START:
            parent, ppid, cause, path_bytes, command_bytes, _, monotonic, realtime = _PROCESS_START.unpack_from(payload)
            path = _text(payload, _PROCESS_START.size, path_bytes)
            command = _bytes(payload, _PROCESS_START.size + path_bytes, command_bytes)
            words = tuple(os.fsdecode(word) for word in command.removesuffix(b"\0").split(b"\0")) if command else ()
            return ProcessStart(*head, parent, ppid, cause, path, words, monotonic, realtime)
        if record.kind == records.JOURNAL_MODULE_LOAD:
            fields = _MODULE_LOAD.unpack_from(payload)
            base, span, id_base, count, patched, refused, flags, id_bytes, build_id, region, region_bytes, length, _ = (
                fields
            )
            path = _text(payload, _MODULE_LOAD.size, length)
            build_id = build_id[: min(id_bytes, 32)]
            return ModuleLoad(
                *head, base, span, id_base, count, patched, refused, flags, build_id, region, region_bytes, path
            )
        if record.kind == records.JOURNAL_MODULE_UNLOAD:
            return ModuleUnload(*head, *_MODULE_UNLOAD.unpack_from(payload))
        if record.kind == records.JOURNAL_THREAD_CREATED:
            return ThreadCreated(*head, *_THREAD_CREATED.unpack_from(payload))
        if record.kind == records.JOURNAL_SCRIPT_FUNCTION:
            function, kind, *lengths, line, module_bytes, address = _SCRIPT_FUNCTION.unpack_from(payload)
            texts, at = [], _SCRIPT_FUNCTION.size
            for length in (*lengths, module_bytes):
                texts.append(_text(payload, at, length))
                at += length
            name, file, module = texts
            return ScriptFunction(*head, function, kind, line, address, name, file, module)
        if record.kind == records.JOURNAL_SWITCH:
            return Switch(*head, bool(_PAIR.unpack_from(payload)[0]))
        if record.kind == records.JOURNAL_MUTE:
            function, restored = _PAIR.unpack_from(payload)
            return Mute(*head, function, bool(restored))
        if record.kind == records.JOURNAL_CRASH:
            return _parse_crash(record, payload)
        if record.kind in (records.JOURNAL_THREAD_START, records.JOURNAL_THREAD_END, records.JOURNAL_MARKER,
                           records.JOURNAL_NOTE) and payload:  # fmt: skip
            text_bytes, code = _TEXT.unpack_from(payload)
            return Text(*head, code, _text(payload, _TEXT.size, text_bytes))
    except (struct.error, ValueError):
        return None
    return record


def _parse_crash(record: Record, payload: bytes) -> Crash:
    """The record and its copies. Raises ValueError when they do not fit."""
    if len(payload) < records.CRASH.itemsize:
        raise ValueError
    row = np.frombuffer(payload, records.CRASH, 1)[0]
    fields: dict[str, Any] = {}
    for name in records.CRASH.names or ():
        value = row[name]
        fields[name] = tuple(value.tolist()) if isinstance(value, np.ndarray) else value.item()
    fields["name"] = os.fsdecode(fields["name"])
    at, parts = records.CRASH.itemsize, []
    for name in ("vector_bytes", "stack_bytes", "code_bytes"):
        parts.append(_bytes(payload, at, fields[name]))
        at += (fields[name] + 7) & ~7
    vector, stack, code = parts
    pieces = tuple(_pieces(_bytes(payload, at, fields["pieces_bytes"])))
    head = (record.kind, record.tsc, record.process, record.pid, record.tid, record.thread)
    return Crash(*head, fields, vector, stack, code, pieces)


def _pieces(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Copies of memory behind their addresses. Raises ValueError when they do not fit."""
    at = 0
    while at + _PIECE.size <= len(data):
        address, count = _PIECE.unpack_from(data, at)
        at += _PIECE.size
        yield address, _bytes(data, at, count)
        at += count


def _bytes(payload: bytes, start: int, count: int) -> bytes:
    if start + count > len(payload):
        raise ValueError
    return payload[start : start + count]


def _text(payload: bytes, start: int, count: int) -> str:
    return os.fsdecode(_bytes(payload, start, count)).rstrip("\0")


__all__ = [
    "JOURNAL_NAME",
    "Crash",
    "ModuleLoad",
    "ModuleUnload",
    "Mute",
    "ProcessStart",
    "Record",
    "ScriptFunction",
    "Switch",
    "Text",
    "ThreadCreated",
    "TraceError",
    "parse_records",
    "read_journal",
]

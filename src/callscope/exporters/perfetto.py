"""Perfetto's own protobuf, for https://ui.perfetto.dev and trace_processor.

Source: protos/perfetto/trace of https://github.com/google/perfetto (trace_packet, track_event, track_descriptor,
interned_data), written by hand: a field is a varint of number and type, then its value (Protocol Buffers, "Encoding").

All packets are of one sequence, whose first one has the names and places of all functions (interned). A call is a BEGIN
and an END on its thread's track, with arguments and result as debug annotations. A marker is an INSTANT, and so is the
making of a thread, from which a flow leads to the thread's first call. Packets of calls are made by the kernel from
templates: all but the time is the same for all entries of a function in a thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from callscope.errors import TraceError
from callscope.exporters.steps import packets, step_batches
from callscope.exporters.walk import full_name, threads
from callscope.reports.database import Database
from callscope.reports.markers import markers
from callscope.reports.selection import Selection, command_line
from callscope.trace.open import open_trace

_PACKET: Final = 1  # of Trace
_TIMESTAMP, _SEQUENCE, _TRACK_EVENT, _INTERNED, _FLAGS, _TRACK_DESCRIPTOR = 8, 10, 11, 12, 13, 60  # of TracePacket
_UUID, _PROCESS, _THREAD, _PARENT = 1, 3, 4, 5  # of TrackDescriptor
_PID, _COMMAND, _PROCESS_NAME = 1, 2, 6  # of ProcessDescriptor
_TYPE, _NAME_ID, _TRACK, _NAME, _CATEGORY = 9, 10, 11, 23, 22  # of TrackEvent
_ANNOTATION, _PLACE, _FLOWS, _FLOWS_END = 4, 34, 47, 48
_ANNOTATION_NAME_ID, _ANNOTATION_INTEGER, _ANNOTATION_TEXT = 1, 4, 6  # of DebugAnnotation
_EVENT_NAMES, _ANNOTATION_NAMES, _PLACES = 2, 3, 4  # of InternedData; their entries have an id 1 and a text 2
_PLACE_LINE = 4  # of SourceLocation
_BEGIN, _END, _INSTANT = 1, 2, 3
_STATE_CLEARED, _NEEDS_STATE = 1, 2
_OWN_SEQUENCE: Final = 1
MOST_NAMES: Final = 1 << 16
"""Names of arguments; those with further ones are left out."""
_ARGUMENTS: Final = """
SELECT s.step, call_arguments_json(s.function_id, c.data) AS captured FROM argument_rows c
JOIN steps s ON s.call_id = c.call_id WHERE c.call_id BETWEEN {first} AND {last} ORDER BY s.step
"""
_RESULTS: Final = _ARGUMENTS.replace("arguments_json", "result_json").replace("argument_rows", "result_rows")


def chunks(database: Database, selection: Selection) -> Iterator[bytes]:
    """The file in pieces. Of `selection` thread and process are regarded. Raises TraceError."""
    yield _packet(_int(_FLAGS, _STATE_CLEARED) + _bytes(_INTERNED, _functions(database)))
    who = threads(database)
    tracks = _Tracks(database)
    yield from tracks.processes()
    encoder = _Encoder(database, tracks)
    thread = -1
    created = _creations(database)
    shown = set()
    for batch in step_batches(database, selection):
        if batch.thread != thread:
            thread = batch.thread
            shown.add(thread)
            yield tracks.thread(thread, who[thread])
            encoder.begin(thread, thread in created)
        yield from encoder.packets(batch.steps)
    for number, (creator, time) in created.items():
        if number in shown and creator in shown:
            event = _text(_NAME, f"new thread {who[number][1]}") + _text(_CATEGORY, "thread")
            yield tracks.instant(creator, time, event + _fixed(_FLOWS, number))
    for marker in markers(database):
        if marker["thread"] in shown and marker["time_ns"] is not None:
            event = _text(_NAME, marker["text"]) + _text(_CATEGORY, "marker")
            yield tracks.instant(marker["thread"], marker["time_ns"], event)


def _functions(database: Database) -> bytes:
    """Interned names and places of all functions, whose ids are their order by number, from 1."""
    out = bytearray()
    rows = database.rows("SELECT name, module, file, line FROM functions ORDER BY function_id")
    for number, row in enumerate([{}, *rows], 1):
        out += _bytes(_EVENT_NAMES, _int(1, number) + _text(2, full_name(row.get("name"), row.get("module"))))
        if row.get("file"):
            out += _bytes(_PLACES, _int(1, number) + _text(2, row["file"]) + _int(_PLACE_LINE, row["line"] or 0))
    return bytes(out)


def _creations(database: Database) -> dict[int, tuple[int, int]]:
    """Thread number -> number of the thread that made it, and when (ns)."""
    if not database.has_clock:
        return {}
    try:
        trace = open_trace(database.trace)
    except TraceError:
        return {}  # only its calls table is there
    return {
        thread.number: (thread.created.creator_thread, trace.clock.ns(thread.created.created_tsc))
        for thread in trace.history.threads.values()
        if thread.created is not None and thread.created.creator_thread
    }


class _Tracks:
    """Processes and threads, and their tracks' numbers: those of processes, then those of threads."""

    def __init__(self, database: Database) -> None:
        self._processes = database.rows("SELECT process, pid, path, command FROM processes ORDER BY process")
        self._of_thread = {
            row["thread"]: row["process"] for row in database.rows("SELECT thread, process FROM threads")
        }
        self._threads_from = max((row["process"] for row in self._processes), default=0) + 1

    def processes(self) -> Iterator[bytes]:
        """Their descriptions."""
        for row in self._processes:
            described = _int(_PID, row["pid"]) + _text(_PROCESS_NAME, command_line(row))
            described += b"".join(_text(_COMMAND, word) for word in row["command"] or [])
            yield _packet(_bytes(_TRACK_DESCRIPTOR, _int(_UUID, row["process"]) + _bytes(_PROCESS, described)))

    def thread(self, number: int, who: tuple[int, int, str]) -> bytes:
        """The description of a thread: (pid, tid, name)."""
        pid, tid, name = who
        described = _int(1, pid) + _int(2, tid) + (_text(5, name) if name else b"")
        track = _int(_UUID, self.of(number)) + _int(_PARENT, self._of_thread[number]) + _bytes(_THREAD, described)
        return _packet(_bytes(_TRACK_DESCRIPTOR, track))

    def instant(self, thread: int, time: int, event: bytes) -> bytes:
        """A moment on a thread's track."""
        event = _int(_TYPE, _INSTANT) + _int(_TRACK, self.of(thread)) + event
        return _packet(_int(_TIMESTAMP, max(time, 0)) + _bytes(_TRACK_EVENT, event))

    def of(self, thread: int) -> int:
        """The number of a thread's track."""
        return self._threads_from + thread


class _Encoder:
    """Makes the packets of calls, thread by thread, from templates: a packet without its time."""

    def __init__(self, database: Database, tracks: _Tracks) -> None:
        self._database, self._tracks = database, tracks
        rows = database.arrays(
            "SELECT function_id, file IS NOT NULL AND file != '' AS placed FROM functions ORDER BY 1"
        )
        self._functions = rows["function_id"].astype(np.int64)
        self._placed = [False, *rows["placed"].tolist()]
        self._words: dict[str, int] = {}

    def begin(self, thread: int, is_created: bool) -> None:
        """The next steps are of this thread; `is_created`: its first call ends the flow with its number."""
        self._thread = thread
        self._track = _int(_TRACK, self._tracks.of(thread))
        self._templates = [_event(_int(_TYPE, _END) + self._track)]
        self._of_function = np.zeros(len(self._functions) + 1, np.uint32)
        self._flow = is_created

    def packets(self, steps: NDArray[np.void]) -> Iterator[bytes]:
        """The packets of the thread's next steps."""
        entries = steps["is_entry"] != 0
        ranks = self._ranks(steps["function"][entries])
        for rank in np.unique(ranks[self._of_function[ranks] == 0]).tolist():
            self._of_function[rank] = len(self._templates)
            self._templates.append(_event(self._entry(rank)))
        templates = np.zeros(len(steps), np.uint32)
        templates[entries] = self._of_function[ranks]
        more: dict[int, bytes] = {}
        if self._flow and len(steps):
            self._flow = False
            more[0] = _fixed(_FLOWS_END, self._thread)
        known = len(self._words)
        for at, captured in self._captured(steps) if self._database.has_captures else ():
            more[at] = more.get(at, b"") + captured
        if words := list(self._words.items())[known:]:
            named = b"".join(_bytes(_ANNOTATION_NAMES, _int(1, number) + _text(2, word)) for word, number in words)
            yield _packet(_int(_FLAGS, _NEEDS_STATE) + _bytes(_INTERNED, named))
        every = list(self._templates)
        for at, event in more.items():
            function = steps["function"][at : at + 1]
            plain = self._entry(int(self._ranks(function)[0])) if entries[at] else _int(_TYPE, _END) + self._track
            templates[at] = len(every)
            every.append(_event(plain + event))
        offsets = np.zeros(len(every) + 1, np.uint64)
        np.cumsum([len(template) for template in every], out=offsets[1:])
        yield packets(steps, templates, offsets, b"".join(every))

    def _ranks(self, functions: NDArray[Any]) -> NDArray[np.int64]:
        """Where the functions stand in the order of all, from 1; 0 for unknown ones."""
        if not len(self._functions):
            return np.zeros(len(functions), np.int64)
        places = np.minimum(np.searchsorted(self._functions, functions), len(self._functions) - 1)
        return np.where(self._functions[places] == functions, places + 1, 0)

    def _entry(self, rank: int) -> bytes:
        event = _int(_TYPE, _BEGIN) + self._track + _int(_NAME_ID, rank + 1)
        return event + _int(_PLACE, rank + 1) if self._placed[rank] else event

    def _captured(self, steps: NDArray[np.void]) -> Iterator[tuple[int, bytes]]:
        """Which steps have arguments or results, and these as annotations."""
        for is_entry, query in enumerate((_RESULTS, _ARGUMENTS)):
            at = np.flatnonzero((steps["is_entry"] == is_entry) & (steps["is_switch"] == 0))
            if not len(at):
                continue
            calls, functions = steps["call"][at], steps["function"][at]
            self._database.create_table_of_arrays("steps", {"step": at, "call_id": calls, "function_id": functions})
            for row in self._database.rows(query.format(first=calls.min(), last=calls.max())):
                found = _named(json.loads(row["captured"] or "[]"))
                yield row["step"], b"".join(self._annotation(name, value) for name, value in found)

    def _annotation(self, name: str, value: dict[str, Any]) -> bytes:
        if name not in self._words and len(self._words) >= MOST_NAMES:
            return b""
        number = self._words.setdefault(name, len(self._words) + 1)
        plain, text = value.get("value"), str(value.get("text"))
        if isinstance(plain, int) and str(plain) == text and -(1 << 63) <= plain < 1 << 63:
            content = _int(_ANNOTATION_INTEGER, plain & ((1 << 64) - 1))
        else:
            content = _text(_ANNOTATION_TEXT, text)
        return _bytes(_ANNOTATION, _int(_ANNOTATION_NAME_ID, number) + content)


def _named(found: Any) -> list[tuple[str, dict[str, Any]]]:
    """Arguments by name, those without one by number; or a result."""
    if isinstance(found, dict):
        return [("result", found)]
    return [(value.get("name") or str(number), value) for number, value in enumerate(found)]


def _event(event: bytes) -> bytes:
    """What follows the time in a packet."""
    return _bytes(_TRACK_EVENT, event) + _int(_SEQUENCE, _OWN_SEQUENCE) + _int(_FLAGS, _NEEDS_STATE)


def _packet(body: bytes) -> bytes:
    """A packet that the kernel does not make."""
    return _bytes(_PACKET, body + _int(_SEQUENCE, _OWN_SEQUENCE))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _fixed(field: int, value: int) -> bytes:
    return _varint(field << 3 | 1) + value.to_bytes(8, "little")


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode("utf-8", "replace"))

"""Perfetto's own protobuf, for https://ui.perfetto.dev and trace_processor.

Source: protos/perfetto/trace of https://github.com/google/perfetto (trace_packet, track_event, track_descriptor,
interned_data), written by hand: a field is a varint of number and type, then its value (Protocol Buffers, "Encoding").
Function names are interned; a thread is a sequence of packets of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from callscope.exporters.walk import names, steps, threads
from callscope.reports.database import Database
from callscope.reports.selection import Selection, command_line

_PACKET = 1  # of Trace
_TIMESTAMP, _SEQUENCE, _TRACK_EVENT, _INTERNED, _FLAGS, _TRACK_DESCRIPTOR = 8, 10, 11, 12, 13, 60  # of TracePacket
_UUID, _PROCESS, _THREAD, _PARENT = 1, 3, 4, 5  # of TrackDescriptor
_TYPE, _NAME_ID, _TRACK = 9, 10, 11  # of TrackEvent
_ANNOTATION = 4
_ANNOTATION_NAME, _ANNOTATION_TEXT = 10, 6  # of DebugAnnotation
_EVENT_NAMES = 2  # of InternedData
_BEGIN, _END = 1, 2
_STATE_CLEARED, _NEEDS_STATE = 1, 2
_BATCH = 1 << 16
_TIME_KEY = bytes([_TIMESTAMP << 3])


def chunks(database: Database, selection: Selection) -> Iterator[bytes]:
    """The file in pieces. Raises TraceError."""
    texts = names(database)
    who = threads(database)
    processes = database.rows("SELECT process, pid, path, command FROM processes ORDER BY process")
    for row in processes:
        process = _int(1, row["pid"]) + _text(6, command_line(row))
        yield _packet(_bytes(_TRACK_DESCRIPTOR, _int(_UUID, row["process"]) + _bytes(_PROCESS, process)))
    of_thread = {row["thread"]: row["process"] for row in database.rows("SELECT thread, process FROM threads")}
    out = bytearray()
    thread, known = -1, dict[int, bytes]()
    begin = end = b""
    for is_entry, time, call in steps(database, selection):
        if call.thread != thread:
            thread, known = call.thread, {}
            uuid = len(processes) + 1 + thread
            pid, tid, name = who[thread]
            described = _int(1, pid) + _int(2, tid) + (_text(5, name) if name else b"")
            track = _int(_UUID, uuid) + _int(_PARENT, of_thread[thread]) + _bytes(_THREAD, described)
            sequence = _int(_SEQUENCE, thread)
            out += _packet(_bytes(_TRACK_DESCRIPTOR, track) + sequence + _int(_FLAGS, _STATE_CLEARED))
            begin = _int(_TYPE, _BEGIN) + _int(_TRACK, uuid)
            end = _bytes(_TRACK_EVENT, _int(_TYPE, _END) + _int(_TRACK, uuid)) + sequence + _int(_FLAGS, _NEEDS_STATE)
        if is_entry:
            number = call.function_id
            is_new = number not in known
            if is_new:
                event = _bytes(_TRACK_EVENT, begin + _int(_NAME_ID, number))
                known[number] = event + sequence + _int(_FLAGS, _NEEDS_STATE)
            body = known[number]
            if call.arguments is not None:
                event = begin + _int(_NAME_ID, number) + _annotation("arguments", call.arguments)
                body = _bytes(_TRACK_EVENT, event) + sequence + _int(_FLAGS, _NEEDS_STATE)
            if is_new:
                name_entry = _int(1, number) + _text(2, texts.get(number, "?"))
                body += _bytes(_INTERNED, _bytes(_EVENT_NAMES, name_entry))
        elif call.result is not None:
            event = _int(_TYPE, _END) + _int(_TRACK, uuid) + _annotation("result", call.result)
            body = _bytes(_TRACK_EVENT, event) + sequence + _int(_FLAGS, _NEEDS_STATE)
        else:
            body = end
        out += _packet(_TIME_KEY + _varint(time) + body)
        if len(out) > _BATCH:
            yield bytes(out)
            out.clear()
    yield bytes(out)


def _annotation(name: str, text: str) -> bytes:
    return _bytes(_ANNOTATION, _text(_ANNOTATION_NAME, name) + _text(_ANNOTATION_TEXT, text))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode("utf-8", "replace"))


def _packet(body: bytes) -> bytes:
    return _bytes(_PACKET, body)

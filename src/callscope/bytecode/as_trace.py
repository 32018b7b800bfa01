"""Executed instructions as calls of an ordinary trace: each frame a call of its code object, each instruction in it.

The layout: format/SPEC.md, functions of interpreters. There is no clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from callscope import format as records
from callscope.bytecode.codes import Code
from callscope.bytecode.executed import Edge, Executed
from callscope.bytecode.text import operand_text, printable
from callscope.errors import RecordError

_STACK: Final = 0x7FFF_0000
"""The stack pointer of all events: frames of Python have none."""
_ROOM: Final = records.CHUNK_BYTES - records.CHUNK_HEADER.itemsize
_LEAVING: Final = ("RETURN", "YIELD", "INTERPRETER_EXIT")


@dataclass
class _Thread:
    number: int
    events: bytearray = field(default_factory=bytearray)
    last: dict[int, str] = field(default_factory=dict)
    """by code object, the instruction executed last"""


class TraceWriter:
    """Writes the events and the journal of a trace whose files have been made."""

    def __init__(self, directory: Path, command: tuple[str, ...], resolve: bool) -> None:
        """`command`: the interpreter, and what it was given. resolve: name what operands mean."""
        self._events = (directory / "events").open("r+b")
        self._journal = (directory / "journal").open("r+b")
        self._header = np.frombuffer(self._events.read(records.EVENTS_HEADER.itemsize), records.EVENTS_HEADER)[0].copy()
        self._journal.seek(records.JOURNAL_HEADER_BYTES)
        self._resolve = resolve
        self._threads: dict[int, _Thread] = {}
        self._codes: dict[int, int] = {}
        self._instructions: dict[tuple[int, int], bytes] = {}
        self._next = records.SCRIPT_FIRST
        payload = np.zeros((), records.PROCESS_START)
        path, words = command[0].encode(errors="replace"), "\0".join(command).encode(errors="replace")
        payload["path_bytes"], payload["command_bytes"] = len(path), len(words)
        self._record(records.JOURNAL_PROCESS_START, payload.tobytes() + path + words)

    def write(self, executed: Iterable[Executed | Edge]) -> None:
        """Write all, and close both files. Raises RecordError when the trace has no room for it."""
        with self._events, self._journal:
            for one in executed:
                thread = self._threads.get(one.thread) or self._start(one.thread)
                if isinstance(one, Executed):
                    thread.last[one.code.number] = one.code.instructions[one.at].name
                    self._put(thread, self._instruction(one.code, one.at))
                else:
                    self._put(thread, self._edge(thread, one))
            for thread in self._threads.values():
                self._flush(thread)
            self._finish()

    def _start(self, number: int) -> _Thread:
        self._threads[number] = _Thread(number + 1)
        return self._threads[number]

    def _edge(self, thread: _Thread, edge: Edge) -> bytes:
        function = self._codes.get(edge.code.number)
        if function is None:
            function = self._codes[edge.code.number] = self._name(edge.code.qualname, edge.code, edge.code.line)
        if edge.enters:
            return _event(function)
        left = thread.last.get(edge.code.number, "").startswith(_LEAVING)
        return _event(function | (records.SCRIPT_EXIT if left else records.SCRIPT_UNWOUND))

    def _instruction(self, code: Code, at: int) -> bytes:
        """Its begin and its end."""
        found = self._instructions.get((code.number, at))
        if found is None:
            one = code.instructions[at]
            operand = f" ({operand_text(code, at, self._resolve)})" if one.operand is not None else ""
            function = self._name(printable(f"{one.offset} {one.name}{operand}"), code, one.line or 0)
            found = _event(function) + _event(function | records.SCRIPT_EXIT)
            self._instructions[code.number, at] = found
        return found

    def _name(self, name: str, code: Code, line: int) -> int:
        """A new id for a function."""
        payload = np.zeros((), records.SCRIPT_FUNCTION)
        texts = [text.encode(errors="replace") for text in (name, code.file, Path(code.file).name)]
        payload["function"], payload["kind"] = self._next, records.SCRIPT_CODE
        payload["name_bytes"], payload["file_bytes"], payload["module_bytes"] = map(len, texts)
        payload["line"] = line
        self._record(records.JOURNAL_SCRIPT_FUNCTION, payload.tobytes() + b"".join(texts))
        self._next += 1
        return self._next - 1

    def _record(self, kind: int, payload: bytes) -> None:
        payload += bytes(-len(payload) % 8)
        head = np.zeros((), records.JOURNAL_RECORD)
        head["size"], head["kind"], head["process"] = head.nbytes + len(payload), kind, 1
        head["pid"] = 1
        if self._journal.tell() + int(head["size"]) > records.JOURNAL_BYTES:
            raise RecordError(
                "the program has too many different instructions for a trace: choose some with -n or --file"
            )
        self._journal.write(head.tobytes() + payload)

    def _put(self, thread: _Thread, events: bytes) -> None:
        if len(thread.events) + len(events) > _ROOM:
            self._flush(thread)
        thread.events += events

    def _flush(self, thread: _Thread) -> None:
        """A chunk of the thread's events."""
        chunk = int(self._header["next_chunk"])
        if not thread.events:
            return
        if chunk >= self._header["chunk_limit"]:
            raise RecordError("the trace has no room for more events: choose less with -n, or another disk")
        head = np.zeros((), records.CHUNK_HEADER)
        head["magic"], head["process"], head["thread"] = records.CHUNK_MAGIC, 1, thread.number
        head["pid"], head["tid"], head["sequence"], head["sp"] = 1, thread.number, chunk - 1, _STACK
        head["used"] = head.nbytes + len(thread.events)
        self._events.seek(chunk * records.CHUNK_BYTES)
        self._events.write(head.tobytes() + thread.events)
        self._header["next_chunk"] = chunk + 1
        thread.events.clear()

    def _finish(self) -> None:
        """The counters in both headers."""
        self._header["next_process"], self._header["next_thread"] = 1, len(self._threads)
        self._header["next_script"] = self._next - records.SCRIPT_FIRST
        self._events.seek(0)
        self._events.write(self._header.tobytes())
        tail = self._journal.tell()
        self._journal.seek(0)
        header = np.frombuffer(self._journal.read(records.JOURNAL_HEADER.itemsize), records.JOURNAL_HEADER)[0].copy()
        header["tail"] = tail
        self._journal.seek(0)
        self._journal.write(header.tobytes())


def _event(kind: int) -> bytes:
    """An EXTENDED record with a script_event; of two units of 8 bytes."""
    units = (8 + records.SCRIPT_EVENT.itemsize) // 8
    return np.array([kind, units << 3 | records.EVENT_EXTENDED, 0, _STACK], "<u4").tobytes()

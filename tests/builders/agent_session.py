"""A recorder in miniature for tests of the agent: the files of a session, a socket that answers, what came of it."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from callscope import format as records
from callscope.native import AGENT_NAME, library_path

EVENT_NAMES = {records.EVENT_ENTRY: "entry", records.EVENT_EXIT: "exit", records.EVENT_TAIL: "tail"}
MOST_CHUNKS = 1000
"""That a test reads: events become objects"""
TEXT_KINDS = (records.JOURNAL_THREAD_START, records.JOURNAL_THREAD_END, records.JOURNAL_NOTE)


@dataclass(frozen=True)
class Record:
    """A journal record: its header's fields, its payload's fields (if any), and the bytes after them."""

    kind: int
    process: int
    pid: int
    tid: int
    thread: int
    tsc: int
    payload: dict[str, Any]
    rest: bytes


@dataclass(frozen=True)
class Event:
    """An event with the kind "entry", "exit" or "tail"; `function` is an index, -1 where events have none."""

    kind: str
    sp: int
    function: int
    tsc: int


@dataclass
class Session:
    """Makes `directory` with the session's files; use it as a context manager to have a recorder that answers.

    plans: path of a module -> path of its plan. chunks: of the events file, its header included; smaller ones than a
    recorder makes, so that tests with many of them stay quick.
    """

    directory: Path
    plans: Mapping[Path, Path] = field(default_factory=dict)
    chunks: int = 4096
    features: int = 0
    max_depth: int = 0
    chosen: Path | None = None
    hang_up: bool = False
    chunk_bytes: int = 0x40000
    questions: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True)
        header = np.zeros(1, records.EVENTS_HEADER)
        header["magic"], header["version"] = records.EVENTS_MAGIC, records.TRACE_VERSION
        header["header_size"], header["chunk_bytes"] = records.EVENTS_HEADER_BYTES, self.chunk_bytes
        header["features"], header["chunk_limit"], header["next_chunk"] = self.features, self.chunks, 1
        header["max_depth"] = self.max_depth
        self._write("events", header, self.chunks * self.chunk_bytes)
        journal = np.zeros(1, records.JOURNAL_HEADER)
        journal["magic"], journal["version"] = records.JOURNAL_MAGIC, records.TRACE_VERSION
        journal["header_size"] = journal["tail"] = records.JOURNAL_HEADER_BYTES
        self._write("journal", journal, records.JOURNAL_BYTES)

    def _write(self, name: str, header: np.ndarray[Any, Any], size: int) -> None:
        with (self.directory / name).open("wb") as file:
            file.write(header.tobytes())
            file.truncate(size)

    @property
    def socket_path(self) -> Path:
        return self.directory / "recorder"

    def __enter__(self) -> Session:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(self.socket_path))
        self._socket.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        if self.hang_up:
            connection.close()
            return
        with connection, connection.makefile("rwb") as stream:
            request = np.frombuffer(stream.read(records.REQUEST.itemsize), records.REQUEST)[0]
            for _ in range(int(request["module_count"])):
                data = stream.read(records.REQUEST_MODULE.itemsize)
                stream.write(self._answer(np.frombuffer(data, records.REQUEST_MODULE)[0]))
                stream.flush()

    def _answer(self, question: np.void) -> bytes:
        path = bytes(question["path"]).split(b"\0")[0].decode()
        self.questions.append(path)
        reply = np.zeros(1, records.REPLY)
        plan = {str(module.resolve()): (number, plan) for number, (module, plan) in enumerate(self.plans.items())}
        if (found := plan.get(str(Path(path).resolve()))) is not None:
            reply["status"], reply["id_base"], reply["plan"] = records.REPLY_PLAN, self.id_base(found[0]), str(found[1])
            reply["chosen"] = str(self.chosen or "")
        return reply.tobytes()

    @staticmethod
    def id_base(number: int) -> int:
        """Of the module that is number `number` in `plans`."""
        return 1 + 1000 * number

    @staticmethod
    def preload() -> dict[str, str]:
        """What loads the agent."""
        return {"LD_PRELOAD": str(library_path(AGENT_NAME))}

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a traced program."""
        ours = {
            "CALLSCOPE_SESSION": str(self.directory),
            "CALLSCOPE_RECORDER": str(self.socket_path),
        }
        return {**os.environ, **self.preload(), **ours, **more}

    def run(self, *command: str | Path, timeout: float = 60, check: bool = True, **options: Any) -> Any:
        """Run a program traced; what subprocess.run gives."""
        environment = self.environment(**options.pop("variables", {}))
        words: Sequence[str] = [str(word) for word in command]
        return subprocess.run(
            words, env=environment, capture_output=True, text=True, timeout=timeout, check=check, **options
        )

    def header(self) -> np.void:
        """The header of the events file as it is now."""
        found: np.void = np.fromfile(self.directory / "events", records.EVENTS_HEADER, 1)[0]
        return found

    def journal(self, kind: int | None = None) -> list[Record]:
        """The journal's records, or those of one kind."""
        data = np.memmap(self.directory / "journal", np.uint8, "r")
        tail = int(data[: records.JOURNAL_HEADER.itemsize].view(records.JOURNAL_HEADER)[0]["tail"])
        size, at, found = records.JOURNAL_RECORD.itemsize, records.JOURNAL_HEADER_BYTES, []
        while at < tail:
            head = data[at : at + size].view(records.JOURNAL_RECORD)[0]
            if not head["size"]:
                at += 8
                continue
            found.append(decode_record(head, bytes(data[at + size : at + int(head["size"])])))
            at += int(head["size"])
        return [record for record in found if kind is None or record.kind == kind]

    def events(self) -> dict[int, list[Event]]:
        """Thread number -> its events, in order."""
        data = np.memmap(self.directory / "events", np.uint8, "r")
        claimed = int(self.header()["next_chunk"])
        assert claimed < MOST_CHUNKS or self.features & records.FEATURE_KEEP_LAST, f"{claimed} chunks: out of hand"
        found: dict[int, list[tuple[int, list[Event]]]] = {}
        for number in range(1, min(claimed, self.chunks)):
            chunk = data[number * self.chunk_bytes : (number + 1) * self.chunk_bytes]
            head = chunk[: records.CHUNK_HEADER.itemsize].view(records.CHUNK_HEADER)[0]
            if head["magic"] == records.CHUNK_MAGIC:
                found.setdefault(int(head["thread"]), []).append((int(head["sequence"]), decode_chunk(head, chunk)))
        return {
            thread: [e for _, part in sorted(parts, key=lambda p: p[0]) for e in part]
            for thread, parts in found.items()
        }


CHUNK_CALLS = (Session.chunk_bytes - records.CHUNK_HEADER.itemsize) // 24
"""Calls, an entry and an exit each, that a chunk holds"""


def decode_record(head: np.void, data: bytes) -> Record:
    """Split a journal record's payload."""
    kind = int(head["kind"])
    layouts = {
        records.JOURNAL_PROCESS_START: records.PROCESS_START,
        records.JOURNAL_MODULE_LOAD: records.MODULE_LOAD,
        records.JOURNAL_MODULE_UNLOAD: records.MODULE_UNLOAD,
        **dict.fromkeys(TEXT_KINDS, records.TEXT_PAYLOAD),
    }
    payload, layout = {}, layouts.get(kind)
    if layout is not None:
        fields = np.frombuffer(data, layout, 1)[0]
        payload = {
            name: fields[name].item() if not fields[name].shape else bytes(fields[name]) for name in layout.names or ()
        }
        data = data[layout.itemsize :]
    process, pid, tid, thread, tsc = (int(head[name]) for name in ("process", "pid", "tid", "thread", "tsc"))
    return Record(kind, process, pid, tid, thread, tsc, payload, data)


def decode_chunk(head: np.void, chunk: np.ndarray[Any, Any]) -> list[Event]:
    """The events of one chunk."""
    end = int(head["used"]) or len(chunk)
    words = chunk[records.CHUNK_HEADER.itemsize : end].view(np.uint32).tolist()
    found, at, epoch = [], 0, int(head["tsc"]) >> 32
    while at < len(words):
        time, second = words[at : at + 2]
        kind = second & records.EVENT_KIND_MASK
        if kind == records.EVENT_CONTROL and second >> 3 == records.CONTROL_EPOCH:
            epoch = time
        if kind == records.EVENT_ENTRY:
            found.append(Event("entry", second & ~7, words[at + 2], epoch << 32 | time))
            at += 2
        elif kind in EVENT_NAMES:
            found.append(Event(EVENT_NAMES[kind], second & ~7, -1, epoch << 32 | time))
        at += 2
    return found


def calls(events: list[Event], function: int = 1) -> int:
    """Entries of a function, which must all have been left again."""
    kinds = Counter((event.kind, event.function) for event in events)
    assert sum(count for (kind, _), count in kinds.items() if kind == "entry") == kinds["exit", -1]
    return kinds["entry", function]

"""Dumps a flight recorder by itself: when a program of the session asks by a signal, or one of several crashes.

Agents write a journal record about either (format/SPEC.md); the recorder looks for such records while the program runs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np

from callscope import format as records
from callscope.errors import CallscopeError
from callscope.recording.directory import EVENTS_NAME, JOURNAL_NAME
from callscope.recording.dump import numbered, write_dump

INTERVAL: Final = 0.02
"""seconds between looks"""
PATIENCE: Final = 25
"""looks until a record that was begun and not finished is passed over"""
MOST_CRASHES: Final = 8
"""dumps of crashes, so that a worker that crashes for days does not fill the disk"""
_HEAD = records.JOURNAL_RECORD.itemsize


class Watch:
    """Watches a session's journal within the `with` block, and once more at its end."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="watch")
        self._processes: set[int] = set()
        self._crashes = 0
        self.dumps: list[Path] = []
        """Traces written."""
        self.failures: list[str] = []
        """Reasons why some were not."""

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        with suppress(OSError), (self._directory / JOURNAL_NAME).open("rb", buffering=0) as file:
            follower = Follower(file)
            last = False
            while not last:
                last = self._done.wait(INTERVAL)
                wanted: dict[str, str] = {}
                for kind, process, payload in follower.records():
                    self._look_at(kind, process, payload, wanted)
                for word, why in wanted.items():
                    self._dump(word, why)

    def _look_at(self, kind: int, process: int, payload: bytes, wanted: dict[str, str]) -> None:
        """Note what a record asks for: the word in a dump's name, and why. Several at a time are one."""
        if kind == records.JOURNAL_PROCESS_START:
            self._processes.add(process)
        elif kind == records.JOURNAL_PROCESS_END:
            self._processes.discard(process)
        elif kind == records.JOURNAL_DUMP:
            wanted["dump"] = "a signal"
        elif kind == records.JOURNAL_CRASH and len(payload) >= records.CRASH.itemsize:
            crash = np.frombuffer(payload, records.CRASH, 1)[0]
            # Of a Windows program's exceptions nobody tells at this moment whether they will be handled.
            if crash["system"] == records.CRASH_WINDOWS or int(crash["crash_flags"]) & records.CRASH_HANDLED:
                return
            self._processes.discard(process)
            # Of the last process nothing makes room any more: the trace itself has it all.
            if self._processes and self._crashes < MOST_CRASHES:
                self._crashes += 1
                wanted["crash"] = "a crash"

    def _dump(self, word: str, why: str) -> None:
        try:
            self.dumps.append(write_dump(self._directory, numbered(self._directory, word), why).trace)
        except CallscopeError as error:
            self.failures.append(str(error))
        if word == "crash":
            with suppress(OSError):
                self._let_go()

    def _let_go(self) -> None:
        """The crashed process's chunks may be used again."""
        where = records.EVENTS_HEADER.fields["held_until"][1]  # type: ignore[index]  # every record has fields
        descriptor = os.open(self._directory / EVENTS_NAME, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(descriptor, bytes(8), where)
        finally:
            os.close(descriptor)


class Follower:
    """Reads a journal that grows."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._at = 0
        self._looks = 0

    def records(self) -> Iterator[tuple[int, int, bytes]]:
        """Kind, process and payload of the records since the last time."""
        header = self._header()
        if header is None:
            return
        if not self._at:
            self._at = records.JOURNAL_HEADER_BYTES + int(header["cells"]) * records.JOURNAL_CELL_BYTES
        self._file.seek(self._at)
        data = self._file.read(max(min(int(header["tail"]), records.JOURNAL_BYTES) - self._at, 0))
        at = 0
        while at + _HEAD <= len(data):
            record = np.frombuffer(data, records.JOURNAL_RECORD, 1, at)[0]
            size, kind = int(record["size"]), int(record["kind"])
            if not kind or size < _HEAD or size % 8 or at + size > len(data):
                self._looks += 1
                if self._looks < PATIENCE:
                    break
                at += 8
                continue
            self._looks = 0
            yield kind, int(record["process"]), data[at + _HEAD : at + size]
            at += size
        self._at += at

    def _header(self) -> np.void | None:
        self._file.seek(0)
        data = self._file.read(records.JOURNAL_HEADER.itemsize)
        return np.frombuffer(data, records.JOURNAL_HEADER)[0] if len(data) == records.JOURNAL_HEADER.itemsize else None

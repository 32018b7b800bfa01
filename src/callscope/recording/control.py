"""Tells the agents of a running session to record or not, through a word of its events file that they wait for."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from callscope import format as records
from callscope.errors import RecordError
from callscope.recording.directory import EVENTS_NAME, JOURNAL_NAME, read_header
from callscope.recording.files import SMALLEST_CHUNK

_FUTEX: Final = 202
_FUTEX_WAKE: Final = 1
_EVERYBODY: Final = 0x7FFFFFFF
PATIENCE: Final = 5.0
"""seconds that a process may take to obey"""
INTERVAL: Final = 0.0005


class Control:
    """The control record of an events file, mapped. Close it."""

    def __init__(self, events: Path) -> None:
        """Raises RecordError when the file cannot be opened."""
        try:
            with events.open("r+b") as file:
                self._memory = mmap.mmap(file.fileno(), SMALLEST_CHUNK)
        except (OSError, ValueError) as error:
            raise RecordError(f"cannot open {events}: {getattr(error, 'strerror', error)}; run as its user") from None
        self._record: NDArray[np.void] = np.frombuffer(self._memory, records.CONTROL, 1, records.EVENTS_CONTROL)

    def close(self) -> None:
        """Unmap it."""
        del self._record
        self._memory.close()

    @property
    def is_off(self) -> bool:
        """Whether the session is to record nothing."""
        return bool(self._record["off"][0])

    def switch(self, on: bool) -> None:
        """Tell all processes of the session."""
        self._record["off"] = not on
        self._tell()

    def mute(self, words: Sequence[int]) -> list[int]:
        """Have functions muted: their ids, with MUTE_RESTORE for their own code. Those for which there was room."""
        count = int(self._record["mutes"][0])
        taken = list(words[: records.MOST_MUTES - count])
        if not taken:
            return []
        table = np.frombuffer(self._memory, np.uint32, records.MOST_MUTES, records.EVENTS_MUTES)
        table[count : count + len(taken)] = taken
        del table
        self._record["mutes"] += len(taken)
        self._tell()
        return taken

    def _tell(self) -> None:
        self._record["asked"] += 1
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall(_FUTEX, ctypes.c_void_p(self._record.ctypes.data), _FUTEX_WAKE, _EVERYBODY, None, None, 0)


@contextmanager
def control_of(events: Path) -> Iterator[Control]:
    """The control record within a block."""
    control = Control(events)
    try:
        yield control
    finally:
        control.close()


def session_of(pid: int) -> Path:
    """The trace directory that a process writes to. Raises RecordError when it is not recorded."""
    try:
        lines = (Path("/proc") / str(pid) / "maps").read_text(errors="surrogateescape").splitlines()
    except FileNotFoundError:
        raise RecordError(f"there is no process {pid}: see ps -e") from None
    except OSError as error:
        raise RecordError(f"process {pid} cannot be looked at: {error.strerror}; run as its user") from None
    found = {line.split(None, 5)[5] for line in lines if line.endswith("/" + EVENTS_NAME)}
    for path in map(Path, found):
        try:
            if int(read_header(path)["magic"]) == records.EVENTS_MAGIC:
                return path.parent
        except (OSError, IndexError):
            continue
    raise RecordError(f"process {pid} is not recorded: start it with callscope record --switchable")


def switch(pid: int, on: bool) -> bool:
    """Turn the recording of a process's session on or off; False when it was so already.

    Returns when that process has obeyed. Raises RecordError when it is not recorded, or does not obey.
    """
    directory = session_of(pid)
    events = directory / EVENTS_NAME
    if not int(read_header(events)["features"]) & records.FEATURE_SWITCHED:
        raise RecordError(f"process {pid} was not made to obey: record it with --switchable or --start-off")
    journal = directory / JOURNAL_NAME
    start = _tail(journal)
    with control_of(events) as control:
        if control.is_off != on:
            return False
        control.switch(on)
    _await(journal, start, pid, on)
    return True


def _tail(journal: Path) -> int:
    return int(np.fromfile(journal, records.JOURNAL_HEADER, 1)[0]["tail"])


def _await(journal: Path, start: int, pid: int, on: bool) -> None:
    """Wait until the process has written that it obeyed."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if any(state == on for state in _switches(journal, start, pid)):
            return
        if not (Path("/proc") / str(pid)).exists():
            raise RecordError(f"process {pid} has ended: its trace is {journal.parent}")
        time.sleep(INTERVAL)
    raise RecordError(f"process {pid} does not answer: it may be stopped, or have begun while recording was off")


def _switches(journal: Path, start: int, pid: int) -> Iterator[bool]:
    """What a process wrote of its switching since the journal had `start` bytes."""
    head = records.JOURNAL_RECORD.itemsize
    with journal.open("rb") as file:
        data = os.pread(file.fileno(), max(_tail(journal) - start, 0), start)
    at = 0
    while at + head <= len(data):
        record = np.frombuffer(data, records.JOURNAL_RECORD, 1, at)[0]
        size = int(record["size"])
        if size < head or size % 8 or at + size > len(data):
            return
        if int(record["kind"]) == records.JOURNAL_SWITCH and int(record["pid"]) == pid:
            yield bool(np.frombuffer(data, records.SWITCH, 1, at + head)[0]["on"])
        at += size

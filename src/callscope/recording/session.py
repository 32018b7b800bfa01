"""The trace directory while it is being recorded: made, described in session.json, finished.

The bytes of `events` and `journal` are format/SPEC.md's. Agents map both files; the recorder writes their headers
once, before any agent runs.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import callscope
from callscope import format as records
from callscope.clock import clock_pair
from callscope.errors import RecordError
from callscope.recording.directory import EVENTS_NAME, SESSION_NAME, hold, make_way, read_header
from callscope.recording.options import RecordOptions, stacks_signal

JOURNAL_NAME = "journal"
PLANS_NAME = "plans"
LARGEST_EVENTS = 256 << 30
DISK_RESERVE = 1 << 30


class Session:
    """One trace directory being written. `directory` is absolute. Methods may be called from several threads."""

    def __init__(self, directory: Path, options: RecordOptions) -> None:
        """Make the directory and its files.

        Raises UsageError when something else is in its place, RecordError when the system refuses.
        """
        self.directory = directory
        self._lock = threading.Lock()
        self._guard = -1
        features = records.FEATURE_NO_CLOCK if options.clock == "none" else 0
        features |= records.FEATURE_KEEP_LAST if options.keep_last else 0
        features |= records.FEATURE_CALLS if options.calls else 0
        features |= records.FEATURE_STACKS if options.wants_stacks else 0
        features |= records.FEATURE_SCRIPTS if options.python != "off" else 0
        features |= records.FEATURE_CALLS_ONCE if options.calls == "once" else 0
        made = False
        try:
            make_way(directory)
            directory.mkdir(0o700, parents=True)
            made = True
            self._guard = hold(directory)
            (directory / PLANS_NAME).mkdir(0o700)
            self.state = self._describe(options, features)
            self.write()
            write_events(directory / EVENTS_NAME, options, features)
            write_journal(directory / JOURNAL_NAME, features)
        except OSError as error:
            self.release()
            if made:
                shutil.rmtree(directory, ignore_errors=True)
            what = error.strerror or str(error)
            raise RecordError(f"cannot make the trace {directory}: {what}; choose another place with -o") from None

    def _describe(self, options: RecordOptions, features: int) -> dict[str, Any]:
        """What session.json says from the start."""
        return {
            "format": "callscope-trace",
            "version": records.TRACE_VERSION,
            "callscope": callscope.__version__,
            "status": "recording",
            "command": list(options.command),
            "cwd": str(Path.cwd()),
            "host": {
                "hostname": platform.node(),
                "kernel": platform.release(),
                "machine": platform.machine(),
                "cpus": os.cpu_count(),
            },
            "options": {name: value for name, value in asdict(options).items() if name != "command"},
            "features": features,
            "clock": {"start": asdict(clock_pair())},
            "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "exit_status": None,
            "main_pid": None,
            "images": [],
            "rejected": [],
        }

    @property
    def events(self) -> Path:
        """The events file."""
        return self.directory / EVENTS_NAME

    @property
    def plans(self) -> Path:
        """The directory of what the trace keeps of plans."""
        return self.directory / PLANS_NAME

    def update(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Let `change` alter the description, and write it: whatever happens next, it can be read."""
        with self._lock:
            change(self.state)
            self._write()

    def write(self) -> None:
        """Write session.json."""
        self.update(lambda state: None)

    def _write(self) -> None:
        partial = self.directory / (SESSION_NAME + ".tmp")
        with suppress(FileNotFoundError):
            partial.unlink()
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            json.dump(self.state, file, indent=1, default=str)
        partial.replace(self.directory / SESSION_NAME)

    def finish(self, exit_status: int | None, trim: bool) -> None:
        """Write the end. `trim`: no program has the files mapped, so the unused rest of both can go."""
        end = asdict(clock_pair())

        def complete(state: dict[str, Any]) -> None:
            state["clock"]["end"] = end
            state["exit_status"] = exit_status
            state["status"] = "complete"

        if trim:
            header = read_header(self.events)
            used = min(int(header["next_chunk"]), int(header["chunk_limit"])) * records.CHUNK_BYTES
            trim_file(self.events, used)
            journal = self.directory / JOURNAL_NAME
            tail = np.fromfile(journal, records.JOURNAL_HEADER, 1)[0]["tail"]
            trim_file(journal, int(tail))
        self.update(complete)

    def release(self) -> None:
        """Let others replace the trace."""
        if self._guard >= 0:
            os.close(self._guard)
            self._guard = -1


def write_events(path: Path, options: RecordOptions, features: int) -> None:
    """Make the sparse events file: as large as its chunks may become."""
    chunk = records.CHUNK_BYTES
    if options.keep_last:
        size = chunk + -(-options.keep_last // chunk) * chunk
    else:
        free = shutil.disk_usage(path.parent).free
        size = min(LARGEST_EVENTS, free - min(DISK_RESERVE, free // 20)) // chunk * chunk
    header = np.zeros((), records.EVENTS_HEADER)
    header["magic"], header["version"] = records.EVENTS_MAGIC, records.TRACE_VERSION
    header["header_size"], header["features"] = records.EVENTS_HEADER_BYTES, features
    header["chunk_bytes"], header["next_chunk"] = chunk, 1
    header["max_depth"] = options.max_depth
    header["stacks_every"], header["stacks_signal"] = options.stacks_every_ns, stacks_signal(options.stacks_on)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        size = make_sparse(descriptor, size, chunk)
        header["chunk_limit"] = size // chunk
        os.pwrite(descriptor, header.tobytes(), 0)
    finally:
        os.close(descriptor)


def make_sparse(descriptor: int, size: int, unit: int) -> int:
    """Give the file `size` bytes without using disk, or what the file system and the user's limits allow; the size."""
    while size >= 2 * unit:
        try:
            os.ftruncate(descriptor, size)
            return size
        except OSError as error:
            if error.errno not in (errno.EFBIG, errno.EINVAL):
                raise
            size = size // 2 // unit * unit
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_journal(path: Path, features: int) -> None:
    """Make the sparse journal."""
    header = np.zeros((), records.JOURNAL_HEADER)
    header["magic"], header["version"] = records.JOURNAL_MAGIC, records.TRACE_VERSION
    header["header_size"], header["features"] = records.JOURNAL_HEADER_BYTES, features
    header["tail"] = records.JOURNAL_HEADER_BYTES
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        make_sparse(descriptor, records.JOURNAL_BYTES, 4096)
        os.pwrite(descriptor, header.tobytes(), 0)
    finally:
        os.close(descriptor)


def trim_file(path: Path, size: int) -> None:
    """Cut a file that is longer."""
    if 0 < size < path.stat().st_size:
        os.truncate(path, size)

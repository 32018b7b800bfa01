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

import callscope
from callscope import format as records
from callscope.clock import clock_pair
from callscope.errors import RecordError
from callscope.recording.directory import (
    EVENTS_NAME,
    JOURNAL_NAME,
    PACKED_NAME,
    PLANS_NAME,
    RESERVE_NAME,
    SESSION_NAME,
    hold,
    make_way,
)
from callscope.recording.dump import copy_events, copy_journal, copy_packed, numbered
from callscope.recording.files import trim_files, write_events, write_journal
from callscope.recording.options import RecordOptions

RESERVE_BYTES = 256 << 10


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
        features |= records.FEATURE_KEEP_LAST if options.keeps_last else 0
        features |= records.FEATURE_COARSE_CLOCK if options.clock == "coarse" else 0
        features |= records.FEATURE_SWITCHED if options.is_switched else 0
        features |= records.FEATURE_CALLS if options.calls else 0
        features |= records.FEATURE_STACKS if options.wants_stacks else 0
        features |= records.FEATURE_SCRIPTS if options.python != "off" else 0
        features |= records.FEATURE_CALLS_ONCE if options.calls == "once" else 0
        self._events = self._journal = -1
        made = False
        try:
            make_way(directory)
            directory.mkdir(0o700, parents=True)
            made = True
            self._guard = hold(directory)
            (directory / PLANS_NAME).mkdir(0o700)
            self.state = self._describe(options, features)
            self.write()
            chunks = write_events(directory / EVENTS_NAME, options, features)
            write_journal(directory / JOURNAL_NAME, features, chunks)
            self._events, self._journal = (
                os.open(directory / name, os.O_RDONLY | os.O_CLOEXEC) for name in (EVENTS_NAME, JOURNAL_NAME)
            )
            self._reserve()
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

    def _reserve(self) -> None:
        """Keep a little of the disk for the description: its end is to be written when the disk is full."""
        descriptor = os.open(self.directory / RESERVE_NAME, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with suppress(OSError):
                os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
        finally:
            os.close(descriptor)

    def _write(self) -> None:
        try:
            self._replace()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            (self.directory / RESERVE_NAME).unlink(missing_ok=True)
            self._replace()

    def _replace(self) -> None:
        partial = self.directory / (SESSION_NAME + ".tmp")
        with suppress(FileNotFoundError):
            partial.unlink()
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            json.dump(self.state, file, indent=1, default=str)
        partial.replace(self.directory / SESSION_NAME)

    def is_there(self) -> bool:
        """Whether the directory still has the files that agents write to."""
        try:
            return os.path.samestat(self.events.stat(), os.fstat(self._events))
        except OSError:
            return False

    def restore(self, packed: int = -1) -> None:
        """Write the trace again when its directory was removed: programs have the files as long as they are mapped.

        packed: a descriptor of the packed file, or -1. Under another name when something else is there by now. What was
        copied of plans is missing. Raises RecordError, OSError.
        """
        removed, partial = self.directory, self.directory.with_name(f".{self.directory.name}.{os.getpid()}")
        partial.mkdir(0o700, parents=True)
        copy_events(Path(f"/proc/self/fd/{self._events}"), partial / EVENTS_NAME)
        copy_journal(Path(f"/proc/self/fd/{self._journal}"), partial / JOURNAL_NAME)
        if packed >= 0:
            copy_packed(Path(f"/proc/self/fd/{packed}"), partial / PACKED_NAME)
        (partial / PLANS_NAME).mkdir(0o700)
        if os.path.lexists(removed):
            self.directory = numbered(removed, "restored")
        partial.rename(self.directory)
        self._guard = hold(self.directory)
        self.write()

    def finish(self, exit_status: int | None, trim: bool) -> None:
        """Write the end. `trim`: no program has the files mapped, so the unused rest of both can go."""
        end = asdict(clock_pair())

        def complete(state: dict[str, Any]) -> None:
            state["clock"]["end"] = end
            state["exit_status"] = exit_status
            state["status"] = "complete"

        if trim:
            trim_files(self.directory)
        (self.directory / RESERVE_NAME).unlink(missing_ok=True)
        self.update(complete)

    def seconds_until(self, tsc: int) -> float:
        """Seconds from the start to a moment before the end, which is known by now."""
        start, end = self.state["clock"]["start"], self.state["clock"]["end"]
        rate = (end["monotonic_ns"] - start["monotonic_ns"]) / max(end["tsc"] - start["tsc"], 1)
        return float(max(tsc - start["tsc"], 0) * rate / 1e9)

    def release(self) -> None:
        """Let others replace the trace."""
        for descriptor in (self._guard, self._events, self._journal):
            if descriptor >= 0:
                os.close(descriptor)
        self._guard = self._events = self._journal = -1

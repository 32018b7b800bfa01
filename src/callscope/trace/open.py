"""A trace directory, opened: everything but the events themselves."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from callscope import format as records
from callscope.clock import ClockPair
from callscope.errors import TraceError
from callscope.trace.clock import TraceClock, make_clock
from callscope.trace.events import EVENTS_NAME, EventsFile, read_events
from callscope.trace.images import ImageFunctions, read_images
from callscope.trace.journal import ProcessStart, Record, read_journal
from callscope.trace.processes import History, Module, Note, Process, Thread, all_modules, read_history
from callscope.trace.session import SESSION_NAME, SessionFile, read_session

STOPPED = {
    records.STOP_SIZE: "the trace had the size that --max-size allows; the program went on",
    records.STOP_DISK: "the disk was full; the program went on",
}
"""Why a recording ended before the program did."""


@dataclass
class Trace:
    """A trace. `warnings` says, one line each, what is missing or damaged; it grows when more is read.

    session: the contents of session.json, {} when it is lost. journal: all records in the order of the file.
    """

    path: Path
    session: Mapping[str, Any]
    file: SessionFile
    events: EventsFile
    journal: list[Record]
    history: History
    clock: TraceClock
    warnings: list[str] = field(default_factory=list)

    @property
    def processes(self) -> list[Process]:
        """In order of number."""
        return [self.history.processes[number] for number in sorted(self.history.processes)]

    @property
    def threads(self) -> list[Thread]:
        """In order of number; of a thread that recorded nothing only the journal tells."""
        return [self.history.threads[number] for number in sorted(self.history.threads)]

    @property
    def modules(self) -> list[Module]:
        """Of all processes, in order of process and load."""
        return all_modules(self.processes)

    @property
    def notes(self) -> list[Note]:
        """Markers and notes of the agent, in order of time."""
        return self.history.notes

    @property
    def has_clock(self) -> bool:
        """Whether events have times, and not only an order."""
        return not self.events.features & records.FEATURE_NO_CLOCK

    @property
    def is_complete(self) -> bool:
        """Whether the recorder wrote the trace's end."""
        return self.session.get("status") == "complete"

    @cached_property
    def images(self) -> list[ImageFunctions]:
        """The functions of the planned images, in order of ids; read when first asked for."""
        return read_images(self.path, self.file.images, self.warnings)

    @cached_property
    def end_tsc(self) -> int:
        """The latest time known, in ticks: calls that never ended are open until then."""
        times = [record.tsc for record in self.journal]
        times += [int(tsc) for tsc in self.events.chunks["tsc"]]
        if self.file.end is not None:
            times.append(self.file.end.tsc)
        limit = self.clock.tick_limit
        return max((tsc for tsc in times if abs(tsc - self.clock.origin) <= limit), default=self.clock.origin)


def open_trace(path: str | Path) -> Trace:
    """Open the trace directory at `path`.

    What is missing or damaged costs a line in `warnings` as long as anything can be read. Raises TraceError, with one
    line that says what to do, when it is no trace or was written by another version.
    """
    directory = Path(path)
    if "\0" in str(path) or not directory.exists():
        raise TraceError(f"{directory} does not exist: give the directory that callscope record made")
    if not directory.is_dir():
        raise TraceError(f"{directory} is not a directory: give the directory that callscope record made")
    try:
        present = {name for name in (SESSION_NAME, EVENTS_NAME) if (directory / name).exists()}
    except OSError as error:
        raise TraceError(f"{directory} cannot be read: {error.strerror}; check its permissions") from None
    if not present:
        raise TraceError(
            f"{directory} is not a trace: it has neither {SESSION_NAME} nor {EVENTS_NAME}; "
            "make one with callscope record"
        )
    warnings: list[str] = []
    file = read_session(directory, warnings)
    events = read_events(directory, warnings)
    journal = read_journal(directory, warnings)
    history = read_history(journal, events.chunks, warnings)
    pairs = [ClockPair(r.tsc, r.monotonic_ns, r.realtime_ns) for r in journal if isinstance(r, ProcessStart)]
    first = int(events.chunks["tsc"].min()) if len(events.chunks) else 0
    unclear: list[str] = []
    clock = make_clock(file.start, file.end, pairs, first, unclear)
    if not events.features & records.FEATURE_NO_CLOCK:
        warnings += unclear
    if file.raw.get("status") == "recording":
        warnings.append(unfinished(directory))
    if reason := STOPPED.get(events.stopped):
        warnings.append(f"recording stopped after {clock.ns(events.stopped_tsc) / 1e9:.1f} s, since {reason}")
    elif events.lost:
        warnings.append(
            f"{events.lost} events found no room and were lost: record again with --keep-last, or on a larger disk"
        )
    return Trace(directory, file.raw, file, events, journal, history, clock, warnings)


def unfinished(directory: Path) -> str:
    """What to say of a trace without an end: its recorder holds a lock on the directory as long as it lives."""
    missing = "calls may be missing at the end"
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return f"the recording did not end properly, or still goes on: {missing}"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return f"the recording still goes on: {missing}"
    except OSError:
        return f"the recording did not end properly, or still goes on: {missing}"
    else:
        return f"the recorder was killed before the recording ended: {missing}, and of programs started since"
    finally:
        os.close(descriptor)

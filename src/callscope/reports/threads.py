"""The threads of a trace: names, times, and which call of which thread made them: `callscope info --threads`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from callscope.reports.crash_memory import Memory
from callscope.reports.crash_unwind import Unwinder
from callscope.reports.database import Database
from callscope.reports.frames import Frame
from callscope.reports.table import Column, fit, header, line, widest
from callscope.reports.text import Style, printable, seconds
from callscope.trace.open import Trace
from callscope.trace.processes import Thread

_THREADS = """
SELECT t.thread, t.pid, t.tid, t.name, t.start_ns, t.end_ns, t.calls, c.end_ns AS last_ns
FROM threads t LEFT JOIN (
    SELECT thread, max(start_ns + duration_ns) AS end_ns FROM call_rows GROUP BY thread
) c ON c.thread = t.thread
ORDER BY t.start_ns, t.thread
"""


_OPEN_CALLS = """
SELECT w.thread, max(c.call_id) AS call_id
FROM (SELECT unnest([{threads}]) AS thread, unnest([{creators}]) AS creator, unnest([{times}]) AS at) w
JOIN call_rows c ON c.thread = w.creator AND c.start_ns <= w.at AND c.start_ns + c.duration_ns >= w.at
GROUP BY w.thread
"""


def threads(database: Database, trace: Trace) -> list[dict[str, Any]]:
    """Every thread, in order of their starts. Times in nanoseconds since the session's start.

    end_ns: of its last call where its end was seen later, None where it ran on to the trace's end. created_by: None for
    a process's first thread, else the creator's tid, the time, the call that was open (its id, None where none was
    recorded), and function, file and line that the creating call returns to.
    """
    rows = database.rows(_THREADS)
    places = _Places(trace)
    calls = _open_calls(database, trace)
    for row in rows:
        thread = trace.history.threads.get(row.pop("thread"))
        last = row.pop("last_ns")
        if thread is None or thread.end_tsc is None:
            row["end_ns"] = None
        elif last is not None and database.has_clock:
            row["end_ns"] = min(row["end_ns"], last)
        row["created_by"] = None if thread is None else _creation(database, trace, thread, places, calls)
    return rows


class _Places:
    """Where calls that made threads return to; most threads of a program come from a few places."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._unwinders: dict[int, Unwinder] = {}
        self._found: dict[tuple[int, int], Frame | None] = {}

    def at(self, process: int, call_site: int) -> Frame | None:
        """The place in a process, or None."""
        if (process, call_site) not in self._found:
            if process not in self._unwinders:
                known = self._trace.history.processes.get(process)
                self._unwinders[process] = Unwinder(known.modules if known else [], Memory([]), [])
            frame = self._unwinders[process].frame({"rip": call_site, "rsp": None}, exact=False)
            self._found[process, call_site] = frame
        return self._found[process, call_site]


def _open_calls(database: Database, trace: Trace) -> dict[int, int]:
    """By thread: the call that was open in its creator when it made it."""
    made = [(t.number, t.created) for t in trace.history.threads.values() if t.created and t.created.creator_thread]
    if not made or not database.has_clock:
        return {}
    columns = {
        "threads": ",".join(str(number) for number, _ in made),
        "creators": ",".join(str(created.creator_thread) for _, created in made),
        "times": ",".join(str(trace.clock.ns(created.created_tsc)) for _, created in made),
    }
    return {row["thread"]: row["call_id"] for row in database.rows(_OPEN_CALLS.format(**columns))}


def _creation(
    database: Database, trace: Trace, thread: Thread, places: _Places, calls: dict[int, int]
) -> dict[str, Any] | None:
    created = thread.created
    if created is None:
        return None
    place = places.at(thread.process, created.call_site)
    return {
        "tid": created.creator_tid,
        "time_ns": trace.clock.ns(created.created_tsc) if database.has_clock else None,
        "call_id": calls.get(thread.number),
        "function": place.function if place else None,
        "module": place.module if place else None,
        "file": place.file if place else None,
        "line": place.line if place else None,
        "call_site": f"{created.call_site:#x}",
    }


def text(rows: Sequence[dict[str, Any]], style: Style) -> Iterator[str]:
    """Lines of a table."""
    several = len({row["pid"] for row in rows}) > 1
    columns = [
        *([Column("pid", "PID", widest(str(row["pid"]) for row in rows), rank=5)] if several else []),
        Column("tid", "TID", widest(str(row["tid"]) for row in rows)),
        Column("name", "Name", widest(printable(row["name"]) for row in rows), left=True),
        Column("start_ns", "Start", widest(seconds(row["start_ns"]) for row in rows), rank=4),
        Column("end_ns", "End", widest(seconds(row["end_ns"]) for row in rows), rank=3),
        Column("calls", "Calls", widest(style.count(row["calls"]) for row in rows), rank=2),
        Column("created_by", "Created by"),
    ]
    columns = fit(columns, style)
    yield header(columns, style)
    for row in rows:
        yield line(columns, [_cell(row, column.key, style) for column in columns])


def _cell(row: dict[str, Any], key: str, style: Style) -> str:
    value = row[key]
    if key in ("start_ns", "end_ns"):
        return seconds(value)
    if key == "calls":
        return style.count(value)
    if key == "created_by":
        if value is None:
            return "-"
        source = f" ({value['file']}:{value['line']})" if value["file"] else ""
        return printable(f"{value['function'] or value['call_site']}{source} in thread {value['tid']}")
    return printable(str(value))

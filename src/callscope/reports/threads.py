"""The threads of a trace: names, times, and which call of which thread made them: `callscope info --threads`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from callscope.reports.crash_memory import Memory
from callscope.reports.crash_unwind import Unwinder
from callscope.reports.database import Database
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


def threads(database: Database, trace: Trace) -> list[dict[str, Any]]:
    """Every thread, in order of their starts. Times in nanoseconds since the session's start.

    end_ns: of its last call where its end was seen later, None where it ran on to the trace's end. created_by: None for
    a process's first thread, else the creator's tid, the time, the call that was open (its id, None where none was
    recorded), and function, file and line that the creating call returns to.
    """
    rows = database.rows(_THREADS)
    unwinders: dict[int, Unwinder] = {}
    for row in rows:
        thread = trace.history.threads.get(row.pop("thread"))
        last = row.pop("last_ns")
        if thread is None or thread.end_tsc is None:
            row["end_ns"] = None
        elif last is not None and database.has_clock:
            row["end_ns"] = min(row["end_ns"], last)
        row["created_by"] = None if thread is None else _creation(database, trace, thread, unwinders)
    return rows


def _creation(
    database: Database, trace: Trace, thread: Thread, unwinders: dict[int, Unwinder]
) -> dict[str, Any] | None:
    created = thread.created
    if created is None:
        return None
    if thread.process not in unwinders:
        process = trace.history.processes.get(thread.process)
        unwinders[thread.process] = Unwinder(process.modules if process else [], Memory([]), [])
    place = unwinders[thread.process].frame({"rip": created.call_site, "rsp": None}, exact=False)
    at = trace.clock.ns(created.created_tsc)
    calls = (
        database.rows(
            "SELECT c.call_id FROM call_rows c"
            f" WHERE c.thread = {created.creator_thread} AND c.start_ns <= {at} AND c.start_ns + c.duration_ns >= {at}"
            " ORDER BY c.call_id DESC LIMIT 1"
        )
        if database.has_clock and created.creator_thread
        else []
    )
    return {
        "tid": created.creator_tid,
        "time_ns": at if database.has_clock else None,
        "call_id": calls[0]["call_id"] if calls else None,
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

"""What the program wrote down by callscope_marker, with times and threads."""

from __future__ import annotations

from typing import Any

from callscope import format as records
from callscope.errors import TraceError
from callscope.reports.database import Database
from callscope.trace.open import open_trace

_MOST = 1000
"""Markers that a tree shows."""


def markers(database: Database) -> list[dict[str, Any]]:
    """text, pid, tid, thread (number), time_ns (since the session's start; None without a clock), in order of time.

    Empty when only the calls table of the trace can be read.
    """
    try:
        trace = open_trace(database.trace)
    except TraceError:
        return []
    pids = {process.number: process.pid for process in trace.processes}
    return [
        {
            "text": record.text,
            "pid": pids.get(record.process),
            "tid": record.tid,
            "thread": record.thread,
            "time_ns": trace.clock.ns(record.tsc) if database.has_clock else None,
        }
        for record in trace.notes
        if record.kind == records.JOURNAL_MARKER
    ]


def before_calls(database: Database) -> dict[int, list[tuple[int, str]]]:
    """Thread number -> (call_id, text) of its markers: the first call that began after each; behind all calls the id
    after the last.
    """
    found: dict[int, list[tuple[int, str]]] = {}
    for marker in markers(database)[:_MOST] if database.has_clock else []:
        thread, time = int(marker["thread"]), int(marker["time_ns"])
        rows = database.rows(
            f"SELECT coalesce(min(call_id) FILTER (start_ns > {time}), max(call_id) + 1) AS call_id"
            f" FROM call_rows WHERE thread = {thread}"
        )
        if rows and rows[0]["call_id"] is not None:
            found.setdefault(thread, []).append((rows[0]["call_id"], marker["text"]))
    return found

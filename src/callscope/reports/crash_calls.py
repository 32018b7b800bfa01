"""The calls around a crash, from the calls table."""

from __future__ import annotations

from typing import Any

from callscope.reports.database import ENDINGS, Database
from callscope.trace.journal import Record

_RUNNING = ENDINGS.index("running")


def _process(crash: Record) -> str:
    """A condition: threads of the image that crashed; by its id where its number is not known."""
    return f"t.process = {crash.process}" if crash.process else f"t.pid = {crash.pid}"


def open_calls(database: Database, crash: Record, at_ns: int) -> list[dict[str, Any]]:
    """For each thread of the process, that of the crash first, the calls that were open then, the outermost first.

    Without a clock: those that were open in the end.
    """
    ended = f"OR c.start_ns + c.duration_ns > {at_ns}" if database.has_clock else ""
    begun = f"AND c.start_ns <= {at_ns}" if database.has_clock else ""
    rows = database.rows(
        "SELECT t.tid, t.name AS thread_name, f.name AS function, f.module, c.call_id, c.start_ns FROM call_rows c"
        " JOIN threads t ON t.thread = c.thread LEFT JOIN functions f ON f.function_id = c.function_id"
        f" WHERE {_process(crash)} {begun} AND (c.ended_by = {_RUNNING} {ended})"
        f" ORDER BY t.tid <> {crash.tid}, t.thread, c.call_id"
    )
    threads: dict[int, dict[str, Any]] = {}
    for row in rows:
        thread = threads.setdefault(
            row["tid"], {"thread_id": row["tid"], "thread_name": row["thread_name"], "calls": []}
        )
        start = row["start_ns"] if database.has_clock else None
        thread["calls"].append(
            {"call_id": row["call_id"], "function": row["function"], "module": row["module"], "start_ns": start}
        )
    return list(threads.values())


def innermost_since(database: Database, crash: Record, at_ns: int) -> dict[str, Any] | None:
    """Of the calls of the thread that began after its crash, in a handler, the innermost that never ended; None when
    there is none, or no clock.
    """
    rows = database.rows(
        "SELECT c.call_id, f.name AS function, f.module FROM call_rows c JOIN threads t ON t.thread = c.thread"
        " LEFT JOIN functions f ON f.function_id = c.function_id"
        f" WHERE {_process(crash)} AND t.tid = {crash.tid} AND c.start_ns > {at_ns} AND c.ended_by = {_RUNNING}"
        " ORDER BY c.call_id DESC LIMIT 1"
    )
    return rows[0] if rows and database.has_clock else None


def last_calls(database: Database, crash: Record, at_ns: int, count: int) -> list[dict[str, Any]]:
    """The `count` calls of the thread that began last before its crash, in order."""
    begun = f"AND c.start_ns <= {at_ns}" if database.has_clock else ""
    rows = database.rows(
        "SELECT c.call_id, f.name AS function, f.module, c.depth, c.start_ns, c.duration_ns, c.ended_by"
        " FROM call_rows c JOIN threads t ON t.thread = c.thread"
        " LEFT JOIN functions f ON f.function_id = c.function_id"
        f" WHERE {_process(crash)} AND t.tid = {crash.tid} {begun}"
        f" ORDER BY c.call_id DESC LIMIT {count}"
    )
    for row in rows:
        row["ended_by"] = ENDINGS[row["ended_by"]]
        if not database.has_clock:
            row["start_ns"] = row["duration_ns"] = None
    return rows[::-1]

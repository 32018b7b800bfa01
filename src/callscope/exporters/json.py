"""CallTrace's JSON: one object with metadata, the call tree of every thread, statistics and the crash.

Source: "Example Output" and "Example Crash Output" of CallTrace 1.0's README. What that leaves open: `call_tree` is the
outermost call of the thread; of several, a node `[thread]` with id 0 that holds them. Arguments and return values are
objects of `name`, `type`, `value` and `text`. Added are `ended_by`, `end_time` and `creation_info` of threads, and
`markers`. Without a clock all times are null.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

import callscope
from callscope.errors import TraceError
from callscope.exporters.walk import Call, calls
from callscope.reports import crash as crashes
from callscope.reports.database import CAPTURED_JSON, ENDINGS, Database
from callscope.reports.markers import markers
from callscope.reports.selection import Selection
from callscope.reports.threads import threads
from callscope.trace.open import Trace, open_trace

SCHEMA_VERSION = "1.0.0"
"""of CallTrace, whose JSON this is"""
_DEEPEST_INDENT = 64
_TREE = 3
"""indentation of `call_tree`"""
_LAST_CALLS = 10
_THREADS = "SELECT pid, tid, name, start_ns, end_ns, NULL AS created_by FROM threads ORDER BY start_ns, thread"


def lines(database: Database, selection: Selection, pretty: bool = True, max_depth: int = 0) -> Iterator[str]:
    """The object, with line breaks and indentation if it is to be `pretty`; without calls nested deeper than
    `max_depth`, unless that is 0.

    Memory grows with the depth of calls, and with functions, call sites and threads, not with calls. Raises TraceError.
    """
    try:
        trace = open_trace(database.trace)
    except TraceError:
        trace = None  # only its calls table is there
    yield from _Writer(database, trace, pretty, max_depth).write(selection)


class _Writer:
    def __init__(self, database: Database, trace: Trace | None, pretty: bool, max_depth: int) -> None:
        self._database, self._trace, self._pretty = database, trace, pretty
        self._max_depth = max_depth
        self._nodes = 0
        self._bases = {
            (row["process"], row["path"]): row["base"]
            for row in database.rows("SELECT process, path, base FROM modules ORDER BY load_ns DESC")
        }
        self._functions = {
            row["function_id"]: (_text(row["name"] or "?"), row["path"], row["address"])
            for row in database.rows("SELECT function_id, name, path, address FROM functions")
        }
        self._sites = {row["site"]: row["address"] for row in database.rows("SELECT site, address FROM sites")}
        roots = database.rows("SELECT thread, count(*) AS calls FROM call_rows WHERE depth = 0 GROUP BY thread")
        self._roots = {row["thread"]: row["calls"] for row in roots}
        numbers = database.rows("SELECT thread, process FROM threads ORDER BY start_ns, thread")
        self._threads = {
            number["thread"]: number | row
            for number, row in zip(numbers, threads(database, trace) if trace else database.rows(_THREADS), strict=True)
        }

    def write(self, selection: Selection) -> Iterator[str]:
        """The object, line by line."""
        left = dict(self._threads)
        if selection.thread is not None or selection.process is not None:
            left = {
                number: row
                for number, row in left.items()
                if selection.thread in (None, row["tid"]) and selection.process in (None, row["pid"])
            }
        count = len(left)
        yield "{"
        yield self._line(1, f'"metadata": {self._value(self._metadata(), 1)},')
        yield self._line(1, '"threads": [')
        found = calls(self._database, selection, CAPTURED_JSON)
        for number, of_thread in groupby(found, key=lambda call: call.thread):
            row = left.pop(number)
            yield from self._thread(row, of_thread, "," if left else "")
        while left:
            row = left.pop(next(iter(left)))
            yield from self._thread(row, iter(()), "," if left else "")
        yield self._line(1, "],")
        statistics = {
            "total_threads": count,
            "total_function_calls": self._nodes,
            "total_nodes": self._nodes,
            "session_duration_us": self._duration_ns() // 1000,
        }
        more = self._more()
        yield self._line(1, f'"statistics": {self._value(statistics, 1)}{"," if more else ""}')
        for number, (name, value) in enumerate(more.items(), 1):
            yield self._line(1, f'"{name}": {self._value(value, 1)}{"," if number < len(more) else ""}')
        yield "}"

    def _more(self) -> dict[str, Any]:
        trace = self._trace
        if trace is None:
            return {}
        found = [
            {
                "time": None if row["time_ns"] is None else self._time(row["time_ns"]),
                "thread_id": row["tid"],
                "text": row["text"],
            }
            for row in markers(self._database)
        ]
        more: dict[str, Any] = {"markers": found} if found else {}
        crash = crashes.facts(trace, self._database, _LAST_CALLS)
        if crash is not None:
            more["crash"] = crash
        return more

    def _metadata(self) -> dict[str, Any]:
        session = self._database.session
        pid = session.get("main_pid") or next((row["pid"] for row in self._threads.values()), None)
        processes = self._database.rows("SELECT pid, path FROM processes ORDER BY process DESC")
        path = next((row["path"] for row in processes if row["pid"] == pid), None)
        return {
            "start_time": self._time(0),
            "end_time": self._time(self._duration_ns()),
            "duration_ms": self._duration_ns() / 1e6,
            "process_info": {
                "pid": pid,
                "architecture": (session.get("host") or {}).get("machine"),
                "executable_path": path,
                "command": session.get("command"),
            },
            "calltrace_version": SCHEMA_VERSION,
            "callscope_version": callscope.__version__,
        }

    def _duration_ns(self) -> int:
        return int(self._database.meta.get("duration_ns") or 0)

    def _thread(self, row: Mapping[str, Any], found: Iterator[Call], comma: str) -> Iterator[str]:
        created = row["created_by"]
        head = {
            "thread_id": row["tid"],
            "thread_name": row["name"] or f"Thread-{row['tid']}",
            "is_main_thread": row["tid"] == row["pid"],
            "process_id": row["pid"],
            "start_time": self._time(row["start_ns"]),
            "end_time": None if row["end_ns"] is None else self._time(row["end_ns"]),
            "creation_info": None
            if created is None
            else {
                "parent_thread_id": created["tid"],
                "creation_function": created["function"],
                "call_site": created["call_site"],
                "file": created["file"],
                "line": created["line"],
                "creation_time": None if created["time_ns"] is None else self._time(created["time_ns"]),
            },
        }
        yield self._line(2, "{")
        for name, value in head.items():
            yield self._line(3, f'"{name}": {self._value(value, 3)},')
        yield from self._tree(row, found)
        yield self._line(2, "}" + comma)

    def _tree(self, row: Mapping[str, Any], found: Iterator[Call]) -> Iterator[str]:
        """`call_tree` of one thread."""
        ends: list[int] = []  # of the calls that are open: the last id among their descendants
        held: str | None = None  # the end of the last call that was closed, until it is known whether another follows

        def close() -> Iterator[str]:
            nonlocal held
            ends.pop()
            indent = _TREE + 2 * len(ends)
            if held is not None:
                yield held
            yield self._line(indent + 1, '"children": []' if held is None else "]")
            held = self._line(indent, "}")

        several = self._roots.get(row["thread"], 0) > 1
        if several:
            yield from self._node(self._thread_node(row), _TREE)
            ends.append(1 << 62)
        for call in found:
            while ends and ends[-1] < call.call_id:
                yield from close()
            if self._max_depth and len(ends) - several >= self._max_depth:
                continue
            if held is not None:
                yield held + ","
                held = None
            elif ends:
                yield self._line(_TREE + 2 * len(ends) - 1, '"children": [')
            depth = len(ends)
            yield from self._node(self._call(call, row["process"], depth - several), _TREE + 2 * depth)
            ends.append(call.call_id + call.descendants)
            self._nodes += 1
        while ends:
            yield from close()
        yield self._line(_TREE, '"call_tree": null') if held is None else held

    def _node(self, members: Mapping[str, str], indent: int) -> Iterator[str]:
        yield self._line(indent, '"call_tree": {' if indent == _TREE else "{")
        for name, value in members.items():
            yield self._line(indent + 1, f'"{name}": {value},')

    def _call(self, call: Call, process: int, depth: int) -> dict[str, str]:
        """A call's members as JSON, but for its children."""
        name, path, rva = self._functions.get(call.function_id, ('"?"', "", 0))
        base = self._bases.get((process, path))
        site = self._sites.get(call.site)
        return {
            "id": str(call.call_id + 1),
            "function": name,
            "address": "null" if base is None else f'"{base + rva:#x}"',
            "call_site": "null" if site is None else f'"{site:#x}"',
            "start_time": _text(self._time(call.start_ns)),
            "end_time": _text(self._time(call.start_ns + call.duration_ns)),
            "duration_us": _microseconds(call.duration_ns) if self._database.has_clock else "null",
            "call_depth": str(depth),
            "arguments": call.arguments or "[]",
            "return_value": call.result or "null",
            "ended_by": f'"{ENDINGS[call.ended_by]}"',
        }

    def _thread_node(self, row: Mapping[str, Any]) -> dict[str, str]:
        """What holds the outermost calls of a thread that has several."""
        return {
            "id": "0",
            "function": '"[thread]"',
            "address": "null",
            "call_site": "null",
            "start_time": _text(self._time(row["start_ns"])),
            "end_time": "null",
            "duration_us": "null",
            "call_depth": "-1",
            "arguments": "[]",
            "return_value": "null",
        }

    def _time(self, ns: int) -> str | None:
        """Seconds since 1970, with microseconds, as text."""
        start = self._trace.clock.realtime_ns if self._trace is not None else None
        if start is None or not self._database.has_clock:
            return None
        return f"{(start + ns) // 10**9}.{(start + ns) % 10**9 // 1000:06d}"

    def _line(self, indent: int, text: str) -> str:
        return "  " * min(indent, _DEEPEST_INDENT) + text if self._pretty else text

    def _value(self, value: Any, indent: int) -> str:
        text = json.dumps(value, ensure_ascii=False, indent=2 if self._pretty else None)
        return text.replace("\n", "\n" + "  " * indent)


def _text(value: str | None) -> str:
    return json.dumps(value, ensure_ascii=False)


def _microseconds(ns: int) -> str:
    """Without a fraction where there is none."""
    return f"{ns // 1000}.{ns % 1000:03d}".rstrip("0").rstrip(".")

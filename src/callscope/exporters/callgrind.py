"""Callgrind's profile format for KCachegrind and callgrind_annotate: own time by function, calls by call site.

Source: Valgrind's manual, "Callgrind Format Specification" (version 1). The event is nanoseconds, or calls in a trace
without clock. Positions are lines; 0 where there are none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import callscope
from callscope.exporters.walk import full_name
from callscope.reports.database import Database
from callscope.reports.selection import Selection, check_calls, command_line, condition
from callscope.reports.text import printable

_OWN = """
SELECT function_id, sum({value})::BIGINT AS own FROM call_rows WHERE {chosen} GROUP BY function_id
"""
_CALLS = """
SELECT p.function_id AS caller, n.function_id AS callee, coalesce(s.line, 0) AS line, sum(g.calls)::BIGINT AS calls,
       sum(g.total)::BIGINT AS total
FROM (SELECT node, site, count(*) AS calls, sum({total})::BIGINT AS total FROM call_rows WHERE {chosen}
      GROUP BY node, site) g
JOIN nodes n ON n.node = g.node JOIN nodes p ON p.node = n.parent
LEFT JOIN sites s ON s.site = g.site AND s.function_id = p.function_id
GROUP BY ALL ORDER BY caller, line, callee
"""


def lines(database: Database, selection: Selection) -> Iterator[str]:
    """The profile, function by function. Raises TraceError."""
    check_calls(database)
    clock = database.has_clock
    chosen = condition(database, Selection(thread=selection.thread, process=selection.process))
    functions = {row["function_id"]: row for row in database.rows("SELECT * FROM functions")}
    own = {
        row["function_id"]: row["own"]
        for row in database.rows(_OWN.format(value="self_ns" if clock else "1", chosen=chosen))
    }
    total = "duration_ns" if clock else "descendants + 1"
    calls: dict[int, list[dict[str, Any]]] = {}
    for row in database.rows(_CALLS.format(total=total, chosen=chosen)):
        calls.setdefault(row["caller"], []).append(row)
    processes = database.rows("SELECT path, command FROM processes ORDER BY process LIMIT 1")
    yield "# callgrind format"
    yield "version: 1"
    yield f"creator: callscope {callscope.__version__}"
    yield from (f"cmd: {printable(command_line(process))}" for process in processes)
    yield "positions: line"
    yield f"events: {'ns' if clock else 'calls'}"
    yield f"summary: {sum(own.values())}"
    names = _Names()
    for number in sorted(own.keys() | calls.keys()):
        row = functions.get(number, {})
        yield ""
        yield from names.function(row)
        yield f"{row.get('line') or 0} {own.get(number, 0)}"
        for call in calls.get(number, []):
            callee = functions.get(call["callee"], {})
            yield from names.function(callee, "c")
            yield f"calls={call['calls']} {callee.get('line') or 0}"
            yield f"{call['line']} {call['total']}"


class _Names:
    """Writes names in full once and as numbers from then on ("name compression")."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str], int] = {}

    def function(self, row: dict[str, Any], called: str = "") -> Iterator[str]:
        """The object, file and name of a function."""
        name = full_name(row.get("name"), None)
        yield f"{called}ob={self._short('ob', row.get('path') or '???')}"
        yield f"{called}{'fi' if called else 'fl'}={self._short('fl', row.get('file') or '???')}"
        yield f"{called}fn={self._short('fn', name)}"

    def _short(self, kind: str, text: str) -> str:
        text = printable(text)
        number = self._numbers.get((kind, text))
        if number is None:
            number = self._numbers[kind, text] = len(self._numbers) + 1
            return f"({number}) {text}"
        return f"({number})"

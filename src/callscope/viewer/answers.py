"""What the page asks: the reports' own figures, as JSON can have them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any, Final

from callscope.reports import crash as crashes
from callscope.reports import functions as times
from callscope.reports.crash_text import text as crash_text
from callscope.reports.database import Database
from callscope.reports.graph import Edge, Graph, call_graph, calls_by_site
from callscope.reports.info import info
from callscope.reports.modules import modules
from callscope.reports.selection import Selection, command_line, label
from callscope.reports.stacks import Stacks, group_json
from callscope.reports.text import Style
from callscope.reports.tree import enclosing_calls
from callscope.trace.open import Trace
from callscope.viewer.flame import MOST_PATHS, Flame
from callscope.viewer.rows import Rows
from callscope.viewer.source import Sources
from callscope.viewer.tiles import Progress, ensure_tiles
from callscope.viewer.timeline import Timeline, Window

MOST_EDGES: Final = 500
"""Callers, callees and sites of a function that are answered, of each the heaviest."""
MOST_STACKS: Final = 500
MOST_ANCESTORS: Final = 200
LONGEST_CALLS: Final = 50
KEPT_FLAMES: Final = 8
"""Threads whose paths are kept for the next question."""
CHILDREN: Final = 100
"""Calls that one made, answered at a time."""
LAST_CALLS: Final = 20
"""Calls before a crash."""

_PLACES = """
SELECT label, any_value(s.file) AS file, any_value(s.line) AS line
FROM sites s JOIN site_labels l ON l.site = s.site WHERE s.file IS NOT NULL AND label IS NOT NULL GROUP BY label
"""


class Answers:
    """One trace's answers. May be asked by several threads at a time."""

    def __init__(
        self, database: Database, trace: Trace, progress: Progress | None = None, with_timeline: bool = True
    ) -> None:
        """Make the timeline's index unless it is there; `progress` is told of it. Without a timeline, `timeline` is not
        asked, and threads have no lanes. Raises TraceError.
        """
        self._database, self._trace = database, trace
        self._lock, self._slow_lock = RLock(), RLock()
        self._flames: dict[int, Flame] = {}
        self._rows = Rows(database.calls, database.has_clock)
        self._timeline: Timeline | None = None
        if with_timeline:
            self._timeline = Timeline(self._rows, ensure_tiles(self._rows, database.calls, progress))

    def close(self) -> None:
        """Close what was opened here. The database given stays open."""
        with self._slow_lock:
            if "_slow" in self.__dict__:
                self._slow.close()

    def summary(self) -> dict[str, Any]:
        """`callscope info`, and what the page must know first: threads with their lanes, whether there are times."""
        with self._lock:
            facts = info(self._database, crashes.crash_count(self._trace))
            threads = self._database.rows(
                "SELECT t.thread, t.pid, t.tid, t.name, t.start_ns, t.end_ns, t.calls, p.path, p.command"
                " FROM threads t LEFT JOIN processes p ON p.process = t.process ORDER BY t.thread"
            )
        clock = self._database.has_clock
        longest = max((row["calls"] for row in threads), default=0)
        for row in threads:
            row["command"] = command_line({"command": row["command"], "path": row.pop("path")})
            row["lanes"] = self._timeline.lanes(row["thread"]) if self._timeline is not None else 0
            row["first_ns"] = self._rows.begin(row["thread"]) if clock else None
        return {
            "info": facts,
            "name": Path(facts["trace"]).name,
            "clock": clock,
            "coarse": self._database.coarse_clock,
            "end": max(facts["duration_ns"] or 0, *(row["end_ns"] or 0 for row in threads), 1) if clock else longest,
            "threads": threads,
            "own_module": self._database.only_module,
            "captures": self._database.has_captures,
        }

    def timeline(self, thread: int, window: Window) -> dict[str, Any]:
        """What a window of a thread shows: `calls` and `bins` as columns, and the `names` of their functions."""
        assert self._timeline is not None
        view = self._timeline.view(thread, window)
        calls = {name: view.calls[name].tolist() for name in ("call", "start", "duration", "function", "depth")}
        bins = {name: values.tolist() for name, values in view.bins.items()}
        named = self.names({*calls["function"], *bins["function"]})
        return {
            "begin": window.begin,
            "end": window.end,
            "bin_ns": view.bin_ns,
            "finest": view.finest,
            "calls": calls,
            "bins": bins,
            "names": named,
        }

    def flame(self, root: int | None = None, most: int = MOST_PATHS, thread: int | None = None) -> dict[str, Any]:
        """The heaviest call paths, at or below one or of all, with the names of their functions. thread: its only."""
        found = (self._flame if thread is None else self._flame_of(thread)).below(root, most)
        return {**found, "names": self.names(set(found["function"]))}

    def functions(
        self, search: str = "", sort: str = "total", reverse: bool = False, offset: int = 0, limit: int = 100
    ) -> dict[str, Any]:
        """Rows of `callscope report`, those that have `search` in their names; `count`: of all such rows."""
        with self._lock:
            found = sorted(self._times.items(), key=lambda item: times.order(item[1], sort), reverse=reverse)
        if search:
            wanted = search.casefold()
            found = [item for item in found if wanted in label(item[1].function, item[1].module).casefold()]
        rows = [{"id": number, **asdict(entry)} for number, entry in found[offset : offset + limit]]
        return {"count": len(found), "rows": rows}

    def function(self, number: int) -> dict[str, Any] | None:
        """A function with its times, callers and callees; None for a number that no function called has."""
        with self._lock:
            graph = self._graph
            rows = self._database.rows("SELECT * EXCLUDE (owner) FROM functions WHERE function_id = ?", [number])
            entry = self._times.get(number)
        if not rows or entry is None:
            return None
        row = rows[0]
        callers, callees = graph.callers.get(number, []), graph.callees.get(number, [])
        others = {edge.caller for edge in callers[:MOST_EDGES]} | {edge.callee for edge in callees[:MOST_EDGES]}
        return {
            "id": number,
            **asdict(entry),
            "path": row["path"],
            "size": row["size"],
            "callers": [self._edge(edge, edge.caller) for edge in callers[:MOST_EDGES]],
            "callees": [self._edge(edge, edge.callee) for edge in callees[:MOST_EDGES]],
            "left_out": max(len(callers) - MOST_EDGES, 0) + max(len(callees) - MOST_EDGES, 0),
            "names": self.names({number, *(other for other in others if other is not None)}),
        }

    def sites(self, number: int) -> list[dict[str, Any]]:
        """The places that called a function: caller, call site, file, line, calls, total."""
        with self._lock:
            places = self._places
        with self._slow_lock:
            edges = calls_by_site(self._slow, number)[:MOST_EDGES]
        return [
            {**self._edge(edge, edge.caller), "call_site": edge.site, **places.get(edge.site or "", _NO_PLACE)}
            for edge in edges
        ]

    def longest_calls(self, number: int) -> list[dict[str, Any]]:
        """The longest calls of a function, without a clock the first ones."""
        order = "duration_ns DESC, call_id" if self._database.has_clock else "call_id"
        chosen = f"(SELECT * FROM call_rows WHERE function_id = {int(number)} ORDER BY {order} LIMIT {LONGEST_CALLS})"
        query = (
            f"SELECT c.*, t.thread FROM ({self._database.calls_query(chosen)}) c"
            f" JOIN (SELECT call_id, thread FROM {chosen}) t ON t.call_id = c.call_id ORDER BY c.{order}"
        )
        with self._slow_lock:
            return [_captured(row) for row in self._slow.rows(query)]

    def call(self, number: int) -> dict[str, Any] | None:
        """A call as `callscope calls` has it, with its thread, places and the calls it is in; None if there is none."""
        if not 0 <= number < self._database.call_count:
            return None
        with self._lock:
            rows = self._calls_of([number])
            if not rows:
                return None
            outer = enclosing_calls(self._database, number)
            rows[0]["order"] = number - self._rows.first_call(rows[0]["thread"])
            return {**rows[0], "ancestors": self._calls_of(outer[:MOST_ANCESTORS]), "ancestor_count": len(outer)}

    def children(self, thread: int, call: int | None = None, after: int | None = None) -> dict[str, Any]:
        """What a call made, or the outermost calls of a thread, in order: some `calls` as `call` has them (without what
        is around them), from the number `after` on; `next`: where more begin, None at the end.
        """
        with self._lock:
            if call is None:
                first, is_child = self._rows.first_call(thread), "up = 0"
                end = first + self._rows.count(thread)
            else:
                parent = self._calls_of([call])
                first, is_child = call + 1, f"up = call_id - {int(call)}"
                end = call + parent[0]["order_span"] if parent else first
            source = self._database.calls_between(first if after is None else after, end)
            found = self._database.rows(f"SELECT call_id FROM {source} WHERE {is_child} LIMIT {CHILDREN + 1}")
            numbers = sorted(row["call_id"] for row in found)
            return {
                "calls": self._calls_of(numbers[:CHILDREN]),
                "next": numbers[CHILDREN] if len(numbers) > CHILDREN else None,
            }

    def source(self, file: str, line: int) -> dict[str, Any]:
        """Source text around a line. Raises TraceError when the trace does not name the file, or it is not there."""
        with self._lock:
            sources = self._sources
        return sources.text(file, line)

    def modules(self) -> list[dict[str, Any]]:
        """`callscope modules`."""
        with self._lock:
            return modules(self._database)

    def snapshots(self) -> dict[str, Any]:
        """`callscope stacks`: groups of equal stacks, the most frequent first; count: of all groups."""
        with self._lock:
            groups = self._stacks
            shown = [group_json(group) for group in groups[:MOST_STACKS]]
            for group in shown:
                self._sources.add(group["frames"])
        return {"count": len(groups), "groups": shown}

    def crash(self) -> dict[str, Any] | None:
        """`callscope crash` as `facts` and as `text`; None when nothing crashed."""
        with self._lock:
            facts = crashes.facts(self._trace, self._database, LAST_CALLS)
            if facts is None:
                return None
            self._sources.add(facts["backtrace"])
        return {"facts": facts, "text": list(crash_text(facts, Style()))}

    def names(self, numbers: Iterable[int]) -> dict[int, list[str | None]]:
        """Name and module of functions, by number."""
        known = self._functions
        return {number: known[number] for number in numbers if number in known}

    def _edge(self, edge: Edge, other: int | None) -> dict[str, Any]:
        total = edge.total_ns if self._database.has_clock else None
        return {"function": other, "calls": edge.calls, "total_ns": total}

    def _calls_of(self, numbers: list[int]) -> list[dict[str, Any]]:
        """Calls by number, in that order."""
        found: dict[int, dict[str, Any]] = {}
        for first, end in _stretches(sorted(numbers)):
            listed = ", ".join(str(number) for number in numbers if first <= number < end)
            source = f"(SELECT * FROM {self._database.calls_between(first, end)} WHERE call_id IN ({listed}))"
            query = (
                "SELECT c.*, r.thread, r.descendants + 1 AS order_span,"
                " s.file AS site_file, s.line AS site_line, f.file, f.line"
                f" FROM ({self._database.calls_query(source)}) c JOIN {source} r ON r.call_id = c.call_id"
                " LEFT JOIN sites s ON s.site = r.site LEFT JOIN functions f ON f.function_id = c.function_id"
            )
            found |= {row["call_id"]: _captured(row) for row in self._database.rows(query)}
        return [found[number] for number in numbers if number in found]

    @cached_property
    def _functions(self) -> dict[int, list[str | None]]:
        with self._lock:
            rows = self._database.rows("SELECT function_id, name, module FROM functions")
        return {row["function_id"]: [row["name"] or "?", row["module"]] for row in rows}

    @cached_property
    def _times(self) -> dict[int, times.FunctionTimes]:
        return times.times_by_function(self._database, Selection())

    @cached_property
    def _graph(self) -> Graph:
        return call_graph(self._database, Selection())

    @cached_property
    def _slow(self) -> Database:
        """For questions that read all calls: others need not wait for them."""
        own = self._database
        return Database(own.trace, own.calls, own.session, own.meta, own.has_clock)

    @cached_property
    def _places(self) -> dict[str, dict[str, Any]]:
        return {row.pop("label"): row for row in self._database.rows(_PLACES)}

    @cached_property
    def _flame(self) -> Flame:
        with self._lock:
            return Flame(self._database)

    def _flame_of(self, thread: int) -> Flame:
        with self._slow_lock:
            if thread not in self._flames:
                while len(self._flames) >= KEPT_FLAMES:
                    del self._flames[next(iter(self._flames))]
                self._flames[thread] = Flame(self._slow, thread)
            return self._flames[thread]

    @cached_property
    def _sources(self) -> Sources:
        return Sources(self._database)

    @cached_property
    def _stacks(self) -> list[Any]:
        return Stacks(self._trace).groups()


_NO_PLACE: Final = {"file": None, "line": None}
_NEAR = 1 << 22  # further apart, two questions cost less than one


def _captured(row: dict[str, Any]) -> dict[str, Any]:
    """A call with what was captured as objects and not as JSON."""
    return row | {name: json.loads(row[name]) for name in ("arguments", "result") if row.get(name)}


def _stretches(numbers: list[int]) -> list[tuple[int, int]]:
    """Ranges (first, end) that hold all numbers, which are sorted, and no wide gap."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number - found[-1][1] < _NEAR:
            found[-1] = found[-1][0], number + 1
        else:
            found.append((number, number + 1))
    return found

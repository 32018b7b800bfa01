"""Two traces side by side: what changed in functions and calls, and where the two runs part.

Functions are matched by module and name: addresses differ from build to build and from run to run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any, Final

from callscope.reports.database import Database
from callscope.reports.graph import Graph, call_graph
from callscope.reports.selection import Selection, command_line, label
from callscope.reports.table import Column, fit, header, line, taken
from callscope.reports.text import BOLD, DURATION_WIDTH, Style, duration, plural, printable

ORDERS: Final = ("self", "total", "calls")
"""What differences can be sorted by: the largest in either direction first."""
PATH_SHOWN: Final = 6
"""Callers shown of where two runs part."""

Name = tuple[str | None, str]
"""Module and name of a function."""


@dataclass(frozen=True)
class Difference:
    """A function, or the calls of one by another, in both traces. calls: 0 where it is not. Times in nanoseconds, None
    unless both traces have a clock. caller: None for a function, else the caller's name.
    """

    function: str
    module: str | None
    caller: str | None
    calls_before: int
    calls_after: int
    total_before_ns: int | None
    total_after_ns: int | None
    self_before_ns: int | None = None
    self_after_ns: int | None = None

    def change(self, what: str) -> int:
        """After less before: calls, or total or own time (ns)."""
        if what == "calls":
            return self.calls_after - self.calls_before
        return (getattr(self, f"{what}_after_ns") or 0) - (getattr(self, f"{what}_before_ns") or 0)


@dataclass(frozen=True)
class Parting:
    """Where a thread does something else in the second trace. thread: its number in order of start, from 0 on. calls:
    how many came before, alike. path: who was at work then, outermost first. before, after: what was called next, None
    where nothing was.
    """

    thread: int
    calls: int
    path: tuple[str, ...]
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Differences:
    """All of it. has_clock: whether times can be compared."""

    functions: list[Difference]
    edges: list[Difference]
    partings: list[Parting]
    has_clock: bool


def differences(before: Database, after: Database, sort: str = "self") -> Differences:
    """Compare two traces. Raises TraceError."""
    clock = before.has_clock and after.has_clock
    graphs = call_graph(before, Selection()), call_graph(after, Selection())
    what = sort if clock else "calls"
    functions = [found for found in _functions(*graphs, clock) if _differs(found, clock)]
    edges = [found for found in _edges(*graphs, clock) if found.change("calls")]
    return Differences(
        sorted(functions, key=lambda found: _order(found, what)),
        sorted(edges, key=lambda found: _order(found, "calls")),
        list(_partings(before, after)),
        clock,
    )


def _differs(found: Difference, clock: bool) -> bool:
    return bool(found.change("calls") or (clock and (found.change("self") or found.change("total"))))


def _order(found: Difference, what: str) -> tuple[Any, ...]:
    return (
        -abs(found.change(what)),
        -abs(found.change("calls")),
        found.module or "",
        found.function,
        found.caller or "",
    )


def _functions(before: Graph, after: Graph, clock: bool) -> Iterator[Difference]:
    sums: dict[Name, list[list[int]]] = {}
    for side, graph in enumerate((before, after)):
        for node in graph.nodes.values():
            total = sums.setdefault((node.module, node.name), [[0, 0, 0], [0, 0, 0]])[side]
            for place, value in enumerate((node.calls, node.total_ns, node.self_ns)):
                total[place] += value
    for (module, name), (first, second) in sums.items():
        times = (first[1], second[1], first[2], second[2]) if clock else (None, None, None, None)
        yield Difference(name, module, None, first[0], second[0], *times)


def _edges(before: Graph, after: Graph, clock: bool) -> Iterator[Difference]:
    sums: dict[tuple[Name | None, Name], list[list[int]]] = {}
    for side, graph in enumerate((before, after)):
        names = {number: (node.module, node.name) for number, node in graph.nodes.items()}
        for edge in graph.edges:
            caller = None if edge.caller is None else names[edge.caller]
            total = sums.setdefault((caller, names[edge.callee]), [[0, 0], [0, 0]])[side]
            total[0] += edge.calls
            total[1] += edge.total_ns
    for (caller, (module, name)), (first, second) in sums.items():
        if caller is not None:
            times = (first[1], second[1]) if clock else (None, None)
            yield Difference(name, module, label(caller[1], caller[0]), first[0], second[0], *times)


def _partings(before: Database, after: Database) -> Iterator[Parting]:
    """For each pair of threads, in order of start, the first call at which they part, if they do."""
    ranges = _thread_ranges(before), _thread_ranges(after)
    for number, (first, second) in enumerate(zip(*ranges, strict=False)):
        path: list[str] = []
        for calls, (ours, theirs) in enumerate(zip_longest(_calls(before, first), _calls(after, second))):
            if ours != theirs:
                depth = min(call[0] for call in (ours, theirs) if call is not None)
                yield Parting(number, calls, tuple(path[:depth]), ours and ours[1], theirs and theirs[1])
                break
            del path[ours[0] :]
            path.append(ours[1])


def _thread_ranges(database: Database) -> list[tuple[int, int]]:
    """(first call, call after the last) of each thread that has calls, in order of their start."""
    rows = database.rows("SELECT calls FROM threads ORDER BY thread")
    ranges, first = [], 0
    for row in rows:
        if row["calls"]:
            ranges.append((first, first + row["calls"]))
            first += row["calls"]
    return ranges


def _calls(database: Database, calls: tuple[int, int]) -> Iterator[tuple[int, str]]:
    """(depth, function) of calls in order."""
    rows = database.rows("SELECT function_id, name, module FROM functions")
    names = {row["function_id"]: label(row["name"] or "?", row["module"]) for row in rows}
    found = database.stream_calls(
        lambda source, end: f"SELECT depth, function_id FROM {source} c ORDER BY c.call_id", [calls]
    )
    for depth, function in found:
        yield depth, names.get(function, "?")


def as_json(found: Differences) -> dict[str, Any]:
    """`functions`, `edges` and `partings`."""
    return {
        "functions": [{key: value for key, value in asdict(row).items() if key != "caller"} for row in found.functions],
        "edges": [
            {key: value for key, value in asdict(row).items() if not key.startswith("self")} for row in found.edges
        ],
        "partings": [asdict(row) for row in found.partings],
    }


def text(before: Database, after: Database, found: Differences, style: Style, limit: int = 0) -> Iterator[str]:
    """Where the runs part, then functions, then calls between them, each with what changed, signed."""
    for sign, database in (("-", before), ("+", after)):
        processes = database.rows("SELECT path, command FROM processes ORDER BY process LIMIT 1")
        command = command_line(processes[0]) if processes else "?"
        yield f"{sign} {printable(str(database.trace))}: {printable(command)}, {plural(database.call_count, 'call')}"
    yield ""
    yield from _parting_lines(found, style)
    for title, rows in (("Function", found.functions), ("Calls between functions", found.edges)):
        yield ""
        yield from _table(title, rows, found.has_clock, style, limit)


def _parting_lines(found: Differences, style: Style) -> Iterator[str]:
    if not found.partings:
        yield "Both made the same calls in the same order."
    for parting in found.partings:
        path = [printable(name) for name in parting.path[-PATH_SHOWN:]]
        within = " > ".join((["..."] if len(parting.path) > PATH_SHOWN else []) + path) or "the thread's start"
        yield style.paint(f"Thread {parting.thread} parts after {plural(parting.calls, 'call')}, in {within}", BOLD)
        for sign, name in (("-", parting.before), ("+", parting.after)):
            yield f"  {sign} {printable(name) if name else 'no further call'}"


def _table(title: str, rows: list[Difference], clock: bool, style: Style, limit: int) -> Iterator[str]:
    is_edges = title != "Function"
    width = DURATION_WIDTH + 1
    columns = [
        Column("self", "Self", width, rank=2),
        Column("total", "Total", width, rank=1),
        Column("calls", "Calls", max((len(_signed(row.change("calls"))) for row in rows), default=5)),
        Column("function", title),
    ]
    columns = [column for column in columns if (clock or column.key not in ("self", "total"))]
    columns = [column for column in columns if not (is_edges and column.key == "self")]
    columns = fit(columns, style)
    yield header(columns, style)
    room = (style.width or 0) - taken(columns)
    shown = rows[:limit] if limit else rows
    for row in shown:
        name = label(row.function, row.module)
        name = style.name(f"{row.caller} -> {name}" if row.caller else name, room)
        mark = " (new)" if not row.calls_before else " (gone)" if not row.calls_after else ""
        yield line(columns, [*(_cell(row, column.key) for column in columns[:-1]), name + mark])
    if len(shown) < len(rows):
        yield style.comment(f"{len(rows) - len(shown):,} more: --limit 0 shows all")
    if not rows:
        yield style.comment("no difference")


def _signed(value: int) -> str:
    return f"{value:+,}" if value else "="


def _cell(row: Difference, key: str) -> str:
    change = row.change(key)
    if key == "calls" or not change:
        return _signed(change)
    return ("+" if change > 0 else "-") + duration(abs(change)).strip()

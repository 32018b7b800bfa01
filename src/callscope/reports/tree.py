"""The call tree, thread by thread, as nested braces.

The calls come in order of their ids, which is that of starts within a thread, and a call's subtree is the range of ids
(id, id + descendants]. So the tree is written while the rows stream by: what is kept is the stack of open calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from callscope.errors import TraceError
from callscope.reports import muted
from callscope.reports.calls import fields_of
from callscope.reports.database import CAPTURED_JOINS, CAPTURED_TEXTS, Database
from callscope.reports.selection import Selection, check_calls, check_clock, condition, functions_matching
from callscope.reports.text import NO_CLOCK, Style, plural
from callscope.reports.tree_text import Row, Shape, TreeWriter, caller_of

BLOCK: Final = 1 << 17
"""Calls read at a time when looking for those around one."""

_LONG_OR_AROUND = """(
SELECT * FROM (
    SELECT *, min(CASE WHEN duration_ns >= {shortest} THEN call_id END)
        OVER (ORDER BY call_id DESC ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS next_long
    FROM {rows}
) WHERE next_long <= call_id + descendants OR call_id + descendants >= {end}
)"""
"""The long calls and those that hold one, or may hold one at or after the call `end`, the first of the next range."""

_ID, _DURATION, _DESCENDANTS = map(Row._fields.index, ("call_id", "duration_ns", "descendants"))
_COLUMNS = ", ".join(f"c.{name}" for name in Row._fields[:-2])


def text(database: Database, selection: Selection, shape: Shape, style: Style) -> Iterator[str]:
    """Lines of the tree. In a terminal, long names are shortened; a pipe gets all of them."""
    check_calls(database)
    source = _Source(database, selection, shape)
    writer = TreeWriter(database, style, shape, source.first_calls)
    if database.coarse_clock:
        yield style.comment(database.coarse_clock)
    yield from muted.lines(database, style)
    yield from writer.lines(map(Row._make, source.rows()))
    if writer.cut:
        yield style.comment(f"cut after {plural(shape.limit, 'call')}: a higher --limit shows more, --limit 0 all")
    elif writer.shown < database.call_count:
        yield style.comment(f"{writer.shown:,} of {plural(database.call_count, 'call')} shown")
    if not database.has_clock:
        yield style.comment(NO_CLOCK)


def json(database: Database, selection: Selection, shape: Shape) -> Iterator[str]:
    """The same calls as JSON objects, parents before children: the fields of `calls` and `descendants`."""
    check_calls(database)
    source = _Source(database, selection, shape)
    fields = ", ".join(f"{name}: v.{name}" for name in fields_of(database))
    levels = _Levels()
    shown = 0
    for *columns, _arguments, _result, value in source.rows(f"to_json({{{fields}, descendants: c.descendants}})"):
        row = Row._make([*columns, None, None])
        if shape.depth and levels.of(row) >= shape.depth:
            continue
        yield value
        shown += 1
        if shown == shape.limit:
            return


class _Levels:
    """How many of the calls that a call is in are in the tree."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[int, int]] = {}  # call: the last that began before it ended, its level
        self._most = 10_000

    def of(self, row: Row) -> int:
        """A call's level, the root's being 0. To be asked for each call."""
        _, above = self._open.get(caller_of(row), (0, -1))
        if row.descendants:
            if len(self._open) > self._most:
                self._open = {call: entry for call, entry in self._open.items() if entry[0] >= row.call_id}
                self._most = 2 * len(self._open) + 10_000
            self._open[row.call_id] = (row.call_id + row.descendants, above + 1)
        return above + 1


class _Source:
    """The rows of the calls that may be in the tree, as a query of ranges of `call_rows`.

    first_calls: for --last, each thread's first call that is not only there because it encloses another.
    """

    def __init__(self, database: Database, selection: Selection, shape: Shape) -> None:
        self.database = database
        self.first_calls: dict[int, int] = {}
        self._ranges: list[tuple[int, int]] | None = None
        self._shortest = selection.min_duration_ns
        self._conditions = [condition(database, replace(selection, functions=(), min_duration_ns=0))]
        if self._shortest:
            check_clock(database)
            self._conditions.append(f"duration_ns >= {int(self._shortest)} OR (ended_by = 1 AND descendants > 0)")
        if selection.functions:
            self._choose_subtrees(functions_matching(database, selection.functions), shape.depth)
            self._conditions.append("node IN (SELECT node FROM tree_nodes)")
        elif shape.depth:
            self._conditions.append(f"depth < {int(shape.depth)}")
        if selection.last:
            self._choose_last(selection.last)

    def rows(self, extra: str = "") -> Iterator[tuple[Any, ...]]:
        """The columns of Row, and an expression of the calls `c` and their rows `v` in the view `calls`."""
        where = self._where()

        def query(source: str, end: int) -> str:
            chosen = f"(SELECT * FROM {source} WHERE {where})"
            if self._shortest:
                chosen = _LONG_OR_AROUND.format(rows=chosen, shortest=int(self._shortest), end=end)
            texts, joins = ", NULL, NULL", ""
            if extra:
                joins = f" JOIN ({self.database.calls_query(chosen)}) v ON v.call_id = c.call_id"
            elif self.database.has_captures:
                texts, joins = CAPTURED_TEXTS, CAPTURED_JOINS
            more = f", {extra}" if extra else ""
            return f"SELECT {_COLUMNS}{texts}{more} FROM {chosen} c{joins} ORDER BY c.call_id"

        rows = self.database.stream_calls(query, self._ranges)
        return long_or_around(rows, self._shortest) if self._shortest else rows

    def _where(self) -> str:
        return " AND ".join(f"({term})" for term in self._conditions)

    def _choose_subtrees(self, functions: list[int], depth: int) -> None:
        """The table `tree_nodes`: the nodes of these functions and those below them.

        A node's depth may be less than its calls' (recursion is collapsed when it explodes), never more: with a depth
        limit the nodes are all that are needed and perhaps more.
        """
        import numpy as np

        nodes = self.database.arrays("SELECT node, parent, function_id, depth FROM nodes ORDER BY node")
        wanted = np.isin(nodes["function_id"], np.array(functions))
        levels = np.where(wanted, 0, -1)
        order = np.argsort(nodes["depth"], kind="stable")
        parents = np.searchsorted(nodes["node"], nodes["parent"])
        starts = np.flatnonzero(np.diff(nodes["depth"][order], prepend=-1))
        for generation in np.split(order, starts[1:])[1:]:
            above = levels[parents[generation]]
            levels[generation] = np.where(above >= 0, above + 1, levels[generation])
        kept = levels >= 0
        if depth:
            kept &= levels < depth
        self.database.create_table_of_arrays("tree_nodes", {"node": nodes["node"][kept]})

    def _choose_last(self, last: int) -> None:
        """Of the calls chosen so far, those that started last, and those around them."""
        rows = self.database.rows(
            f"SELECT thread, min(call_id) AS first FROM (SELECT thread, call_id FROM call_rows WHERE {self._where()}"
            f" ORDER BY start_ns DESC, call_id DESC LIMIT {int(last)}) GROUP BY thread ORDER BY first"
        )
        self.first_calls = {row["thread"]: row["first"] for row in rows}
        spans = "SELECT thread, calls, sum(calls) OVER (ORDER BY thread)::BIGINT AS ends FROM threads"
        threads = {row["thread"]: (row["ends"] - row["calls"], row["ends"]) for row in self.database.rows(spans)}
        enclosing: list[int] = []
        self._ranges = []
        for thread, first in self.first_calls.items():
            outer = enclosing_calls(self.database, first)
            enclosing += outer
            begin, end = threads[thread]
            blocks = sorted({call_id // BLOCK * BLOCK for call_id in outer})
            self._ranges += [(max(block, begin), min(block + BLOCK, first)) for block in blocks]
            self._ranges.append((first, end))
        self.database.create_table("enclosing_calls", "call_id BIGINT", [(call_id,) for call_id in enclosing])
        firsts = " ".join(f"WHEN {thread} THEN {first}" for thread, first in self.first_calls.items())
        self._conditions.append(
            f"call_id >= CASE thread {firsts} END OR call_id IN (SELECT call_id FROM enclosing_calls)"
            if firsts
            else "false"
        )


def long_or_around(rows: Iterator[tuple[Any, ...]], shortest: int) -> Iterator[tuple[Any, ...]]:
    """The calls of at least `shortest` ns, and the shorter ones that hold one: what _LONG_OR_AROUND left open.

    A function that ends in a tail call may be over long before the call that it made so, which is in it in the tree.
    """
    waiting: list[tuple[Any, ...]] = []
    for row in rows:
        while waiting and waiting[-1][_ID] + waiting[-1][_DESCENDANTS] < row[_ID]:
            waiting.pop()
        waiting.append(row)
        if row[_DURATION] >= shortest:
            yield from waiting
            waiting.clear()


def enclosing_calls(database: Database, call_id: int) -> list[int]:
    """The calls that a call is in, innermost first. Reads the parts of the table that hold them, each once.

    Raises TraceError when the table is damaged.
    """
    found: list[int] = []
    while True:
        first = call_id // BLOCK * BLOCK
        source = database.calls_between(first, call_id + 1)
        ups = database.arrays(f"SELECT up FROM {source} ORDER BY call_id")["up"].tolist()
        if len(ups) != call_id + 1 - first:
            raise TraceError(f"the calls table {database.calls} has holes: delete it and try again, it is rebuilt")
        while call_id >= first:
            up = ups[call_id - first]
            if up <= 0:
                return found
            call_id -= up
            found.append(call_id)

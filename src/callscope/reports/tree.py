"""The call tree, thread by thread, as nested braces.

The calls come in order of their ids, which is that of starts within a thread, and a call's subtree is the range of ids
(id, id + descendants]. So the tree is written while the rows stream by: what is kept is the stack of open calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from callscope.reports.calls import FIELDS
from callscope.reports.database import Database
from callscope.reports.selection import Selection, check_calls, condition, functions_matching
from callscope.reports.text import NO_CLOCK, Style, plural
from callscope.reports.tree_text import Row, Shape, TreeWriter

_COLUMNS = ", ".join(f"c.{name}" for name in Row._fields)


def text(database: Database, selection: Selection, shape: Shape, style: Style) -> Iterator[str]:
    """Lines of the tree. In a terminal, long names are shortened; a pipe gets all of them."""
    check_calls(database)
    source = _Source(database, selection, shape)
    writer = TreeWriter(database, style, shape, source.first_calls)
    yield from writer.lines(Row._make(row) for row in source.rows(_COLUMNS))
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
    fields = ", ".join(f"{name}: v.{name}" for name in FIELDS)
    columns = f"c.call_id, c.descendants, to_json({{{fields}, descendants: c.descendants}})"
    ends: list[int] = []
    shown = 0
    for call_id, descendants, value in source.rows(columns, joined=True):
        while ends and ends[-1] < call_id:
            ends.pop()
        if shape.depth and len(ends) >= shape.depth:
            continue
        ends.append(call_id + descendants)
        yield value
        shown += 1
        if shown == shape.limit:
            return


class _Source:
    """The rows of the calls that may be in the tree, as a query of ranges of `call_rows`.

    first_calls: for --last, each thread's first call that is not only there because it encloses another.
    """

    def __init__(self, database: Database, selection: Selection, shape: Shape) -> None:
        self.database = database
        self.first_calls: dict[int, int] = {}
        self._conditions = [condition(database, selection, functions=False)]
        if selection.functions:
            self._choose_subtrees(functions_matching(database, selection.functions), shape.depth)
            self._conditions.append("node IN (SELECT node FROM tree_nodes)")
        elif shape.depth:
            self._conditions.append(f"depth < {int(shape.depth)}")
        if selection.last:
            self._choose_last(selection.last)

    def rows(self, columns: str, joined: bool = False) -> Iterator[tuple[Any, ...]]:
        """The columns of the calls `c`, and with `joined` of their rows `v` in the view `calls`."""
        where = " AND ".join(f"({term})" for term in self._conditions)

        def query(source: str) -> str:
            chosen = f"(SELECT * FROM {source} WHERE {where})"
            join = f" JOIN ({self.database.calls_query(chosen)}) v ON v.call_id = c.call_id" if joined else ""
            return f"SELECT {columns} FROM {chosen} c{join} ORDER BY c.call_id"

        return self.database.stream_calls(query)

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
        where = " AND ".join(f"({term})" for term in self._conditions)
        rows = self.database.rows(
            f"SELECT thread, min(call_id) AS first FROM (SELECT thread, call_id FROM call_rows WHERE {where}"
            f" ORDER BY start_ns DESC, call_id DESC LIMIT {int(last)}) GROUP BY thread"
        )
        self.first_calls = {row["thread"]: row["first"] for row in rows}
        firsts = " ".join(f"WHEN {thread} THEN {first}" for thread, first in self.first_calls.items())
        self._conditions.append(f"call_id + descendants >= CASE thread {firsts} END" if firsts else "false")

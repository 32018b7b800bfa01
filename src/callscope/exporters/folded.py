"""Folded stacks: a path of functions and its own time (ns), or its calls in a trace without clock.

What Brendan Gregg's flamegraph.pl and its many readers take: names from the root on, joined by semicolons.
"""

from __future__ import annotations

from collections.abc import Iterator

from callscope.exporters.walk import names
from callscope.reports.database import Database
from callscope.reports.selection import Selection, check_calls, condition
from callscope.reports.text import printable


def lines(database: Database, selection: Selection) -> Iterator[str]:
    """A line a path that has a value above 0. Raises TraceError."""
    check_calls(database)
    value = "self_ns" if database.has_clock else "1"
    chosen = condition(database, Selection(thread=selection.thread, process=selection.process))
    sums = database.arrays(f"SELECT node, sum({value})::BIGINT AS total FROM call_rows WHERE {chosen} GROUP BY node")
    totals = dict(zip(sums["node"].tolist(), sums["total"].tolist(), strict=True))
    nodes = database.arrays("SELECT node, parent, function_id FROM nodes ORDER BY node")
    texts = {number: printable(name).replace(";", ":") for number, name in names(database).items()}
    parents, functions = nodes["parent"].tolist(), nodes["function_id"].tolist()
    for node in range(len(parents)):
        if totals.get(node, 0) <= 0:
            continue
        path, at = [], node
        while at >= 0:
            path.append(texts.get(functions[at], "?"))
            at = parents[at]
        yield f"{';'.join(reversed(path))} {totals[node]}"

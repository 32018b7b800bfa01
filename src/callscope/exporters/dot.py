"""The whole call graph for Graphviz: what `callscope graph --format dot` draws."""

from __future__ import annotations

from collections.abc import Iterator

from callscope.reports.database import Database
from callscope.reports.graph import call_graph
from callscope.reports.graph_forms import FORMS
from callscope.reports.selection import Selection


def lines(database: Database, selection: Selection) -> Iterator[str]:
    """A directed graph in the DOT language. Of `selection` thread and process are regarded. Raises TraceError."""
    chosen = Selection(thread=selection.thread, process=selection.process)
    yield from FORMS["dot"](database, call_graph(database, chosen))

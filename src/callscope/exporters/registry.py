"""The formats that traces can be exported to. Nothing here imports one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from callscope.reports.database import Database
from callscope.reports.selection import Selection

Lines = Iterator[str]
Pieces = Iterator[bytes]
_HOME: Final = "callscope.exporters"


class Format(NamedTuple):
    """A format: its name and what it is for. It is written by the module of the same name, which has

    - `lines(database, selection)`, or if `is_binary` `chunks(database, selection)`;
    - if `is_directory`, `write(database, selection, directory)`, which fills an empty directory;
    - if `has_companions`, `companions(database)`: further files by what their names have in place of the main file's
      suffix.
    """

    name: str
    summary: str
    is_binary: bool = False
    has_companions: bool = False
    is_directory: bool = False

    def lines(self, database: Database, selection: Selection) -> Lines:
        """The lines of the file, as a stream. Raises TraceError."""
        write: Callable[[Database, Selection], Lines] = importlib.import_module(f"{_HOME}.{self.name}").lines
        return write(database, selection)

    def chunks(self, database: Database, selection: Selection) -> Pieces:
        """The bytes of a binary file, as a stream. Raises TraceError."""
        write: Callable[[Database, Selection], Pieces] = importlib.import_module(f"{_HOME}.{self.name}").chunks
        return write(database, selection)

    def write(self, database: Database, selection: Selection, directory: Path) -> None:
        """Fill a directory. Raises TraceError."""
        write: Callable[[Database, Selection, Path], None] = importlib.import_module(f"{_HOME}.{self.name}").write
        write(database, selection, directory)

    def companions(self, database: Database) -> dict[str, Lines]:
        """The files beside it, by the ending of their names."""
        if not self.has_companions:
            return {}
        write: Callable[[Database], dict[str, Lines]] = importlib.import_module(f"{_HOME}.{self.name}").companions
        return write(database)


_ALL: Final = (
    Format("perfetto", "a timeline for https://ui.perfetto.dev, in its own format", is_binary=True),
    Format("chrome", "a timeline in JSON, for chrome://tracing and others"),
    Format("speedscope", "flame graphs and time order at https://www.speedscope.app"),
    Format("firefox", "flame graph, stack chart and call tree at https://profiler.firefox.com"),
    Format("callgrind", "KCachegrind and callgrind_annotate: own time, calls by line"),
    Format("folded", "stacks with their own time, for flamegraph.pl and others"),
    Format("dot", "the call graph, for Graphviz"),
    Format("parquet", "all calls in one table, for pandas, Polars, DuckDB, Spark", is_binary=True),
    Format("uftrace", "a directory for uftrace report, replay, graph and tui", is_directory=True),
    Format("json", "CallTrace's JSON: call trees, threads, statistics, the crash"),
    Format("x64trace", "X64 Call Tracer's text, with _modules.json and _map.json", has_companions=True),
)

FORMATS: Final = {entry.name: entry for entry in _ALL}

"""The formats that traces can be exported to. Nothing here imports one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from callscope.reports.database import Database
from callscope.reports.selection import Selection

Lines = Iterator[str]
Writer = Callable[[Database, Selection], Lines]
Companions = Callable[[Database], dict[str, Lines]]


class Format(NamedTuple):
    """A format: its name, what it is for, and the module that writes it.

    The module has `lines(database, selection)`, and if `has_companions` also `companions(database)`: further files by
    what their names have in place of the main file's suffix.
    """

    name: str
    summary: str
    module: str
    has_companions: bool = False

    def lines(self, database: Database, selection: Selection) -> Lines:
        """The lines of the file, as a stream. Raises TraceError."""
        writer: Writer = importlib.import_module(self.module).lines
        return writer(database, selection)

    def companions(self, database: Database) -> dict[str, Lines]:
        """The files beside it, by the ending of their names."""
        if not self.has_companions:
            return {}
        companions: Companions = importlib.import_module(self.module).companions
        return companions(database)


_ALL: Final = (
    Format(
        "x64trace",
        "text, an event a line: enter, exit, call, called; with _modules.json and _map.json beside",
        "callscope.exporters.x64trace",
        has_companions=True,
    ),
)

FORMATS: Final = {entry.name: entry for entry in _ALL}

"""Traces in Python: Arrow tables and SQL.

with callscope.open("git.trace") as trace:
    print(trace.functions.to_pandas())
    trace.sql("SELECT function, count(*) FROM calls GROUP BY ALL ORDER BY 2 DESC LIMIT 10").show()
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from callscope.reports.database import open_database

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa


class TraceTables:
    """The tables of one trace. A context manager: leaving it closes the connection."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a trace, building its calls table when that is missing or stale. Raises TraceError."""
        self.path = Path(path)
        self._database = open_database(self.path)

    def __enter__(self) -> TraceTables:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; tables already asked for stay."""
        self._database.close()

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """The DuckDB connection, whose views callscope.reports.database describes."""
        return self._database.connection

    @property
    def session(self) -> dict[str, Any]:
        """What session.json says of the recording: command, host, options, clock."""
        return dict(self._database.session)

    def sql(self, query: str) -> duckdb.DuckDBPyRelation:
        """Ask in SQL: the answer has .show(), .fetchall(), .arrow(), .df() and more."""
        return self.connection.sql(query)

    @cached_property
    def calls(self) -> pa.Table:
        """Every call, a row each: 100 bytes and more of memory a call, so ask long traces in SQL instead.

        Columns: call_id, parent_id, pid, tid, function_id, function, module, address, call_site, start_ns, duration_ns,
        self_ns, depth, ended_by, via.
        """
        return self._table("FROM calls ORDER BY call_id")

    @cached_property
    def functions(self) -> pa.Table:
        """The functions called, and untraced ones seen at call sites (`traced` tells)."""
        return self._table("FROM functions ORDER BY function_id")

    @cached_property
    def modules(self) -> pa.Table:
        """Every load of a program or library into a process, with times."""
        return self._table("FROM modules ORDER BY load_ns, process, base")

    @cached_property
    def threads(self) -> pa.Table:
        """The threads, numbered in this session: thread ids may have been used twice."""
        return self._table("FROM threads ORDER BY thread")

    @cached_property
    def processes(self) -> pa.Table:
        """The processes, numbered in this session; one that replaced its program by exec is there twice."""
        return self._table("FROM processes ORDER BY process")

    def _table(self, query: str) -> pa.Table:
        table: pa.Table = self.connection.sql(query).to_arrow_table()
        return table

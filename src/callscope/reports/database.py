"""A trace's calls table in DuckDB: the views that reports ask, and the connection that users may ask too.

Views and tables
    calls       what users see: names instead of numbers, a row a call, made by joins on `call_rows`
    call_rows   the calls as stored (callscope.calls), in order of `call_id`
    nodes       paths of functions from the root, with counts and times
    durations   histogram of durations by function
    functions, sites, threads, processes, modules
Times are nanoseconds since the session's start; in a trace without clock they are NULL in `calls`, zero elsewhere.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import duckdb
from numpy.typing import NDArray

from callscope.errors import TraceError
from callscope.reports.session import checked
from callscope.reports.text import duration

MEMORY_LIMIT: Final = "1GB"
THREAD_LIMIT: Final = 8
BATCH: Final = 10_000
"""Rows fetched at a time."""
FIRST_RANGE: Final = 1 << 14
LONGEST_RANGE: Final = 1 << 20
"""Calls asked for at a time by `stream_calls`; longer where few are chosen."""

ENDINGS: Final = ("return", "tail_call", "unwound", "running", "off")
"""Names of the values of `ended_by`."""

_SMALL_TABLES = ("functions", "sites", "threads", "processes", "modules")
_LARGE_TABLES = ("nodes", "durations")
_CAPTURE_FILES = {"argument_rows": "arguments-*.parquet", "result_rows": "results-*.parquet"}
_CALL_FILE = re.compile(r"calls-(\d+)-(\d+)\.parquet")

_NO_CALLS = """
CREATE VIEW call_rows AS SELECT 0::BIGINT AS call_id, 0::BIGINT AS up, 0 AS thread, 0 AS function_id, 0 AS site,
    0::BIGINT AS start_ns, 0::BIGINT AS duration_ns, 0::BIGINT AS self_ns, 0 AS depth, 0::UTINYINT AS ended_by,
    0::BIGINT AS descendants, 0 AS node, false AS gap WHERE false
"""

_CALLS = """
SELECT c.call_id,
       CASE WHEN c.up > 0 THEN c.call_id - c.up END AS parent_id,
       t.pid,
       t.tid,
       c.function_id,
       f.name AS function,
       f.module,
       f.address,
       s.label AS call_site,
       {start_ns} AS start_ns,
       {duration_ns} AS duration_ns,
       {self_ns} AS self_ns,
       c.depth,
       ['return', 'tail_call', 'unwound', 'running', 'off'][c.ended_by + 1] AS ended_by,
       CASE WHEN c.gap THEN s.name END AS via{captured}
FROM {source} c
LEFT JOIN functions f ON f.function_id = c.function_id
LEFT JOIN threads t ON t.thread = c.thread
LEFT JOIN site_labels s ON s.site = c.site
{joins}
"""

_CAPTURED = """,
       call_arguments_json(c.function_id, ca.data)::JSON AS arguments,
       call_result_json(c.function_id, cr.data)::JSON AS result"""
CAPTURED_TEXTS: Final = """,
    call_arguments(c.function_id, ca.data) AS arguments, call_result(c.function_id, cr.data) AS result"""
"""What was captured of the calls `c`, as text, in a query with CAPTURED_JOINS."""
CAPTURED_JSON: Final = CAPTURED_TEXTS.replace("call_arguments(", "call_arguments_json(").replace(
    "call_result(", "call_result_json("
)
"""The same as JSON."""
CAPTURED_JOINS: Final = """
LEFT JOIN argument_rows ca ON ca.call_id = c.call_id LEFT JOIN result_rows cr ON cr.call_id = c.call_id"""

_LOWEST_CODE = 0x10000
"""No code lies below: a program's first function finds argc where others find their return address."""

_SITE_LABELS = f"""
CREATE VIEW site_labels AS
SELECT site, name,
       CASE WHEN module IS NOT NULL THEN module || printf('+0x%x', rva)
            WHEN address >= {_LOWEST_CODE} THEN printf('0x%x', address) END AS label
FROM sites
"""

_FILE_RANGES = """
SELECT file_name, min(stats_min_value::BIGINT) AS first, max(stats_max_value::BIGINT) AS last
FROM parquet_metadata([{files}]) WHERE path_in_schema = 'call_id' GROUP BY file_name ORDER BY first
"""


class Database:
    """One trace's tables, and what is known of its session.

    session: the contents of session.json, as found. meta: the contents of calls/meta.json. has_clock: whether times
    were recorded, and not only the order of calls. A context manager: leaving closes the connection and removes its
    temporary files.
    """

    @property
    def coarse_clock(self) -> str | None:
        """What to say of the times of a trace with the coarse clock; None for others."""
        resolution = checked(self.session)["resolution_ns"]
        if resolution is None:
            return None
        every = f", which moved every {duration(resolution).strip()}" if resolution else ""
        return f"times are those of the coarse clock{every}: shorter ones are 0 or a step"

    def __init__(
        self, trace: Path, calls: Path, session: Mapping[str, Any], meta: Mapping[str, Any], has_clock: bool = True
    ) -> None:
        """Open the tables in the directory `calls` of the trace directory `trace`; TraceError when they are damaged."""
        self.trace = trace
        self.calls = calls
        self.session = session
        self.meta = meta
        self.has_clock = has_clock
        self._temporary = tempfile.mkdtemp(prefix="callscope-")
        self.connection = duckdb.connect(
            config={
                "memory_limit": MEMORY_LIMIT,
                "threads": min(len(os.sched_getaffinity(0)), THREAD_LIMIT),
                "temp_directory": str(Path(self._temporary) / "spill"),
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "preserve_insertion_order": True,
            }
        )
        try:
            self.rows("SET enable_progress_bar = false")
            self._create_views()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and remove its temporary files."""
        self.connection.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    @cached_property
    def only_module(self) -> str | None:
        """The module of all functions called, when there is just one: texts need not name it then."""
        rows = self.rows("SELECT DISTINCT module FROM functions WHERE traced LIMIT 2")
        return str(rows[0]["module"]) if len(rows) == 1 else None

    @property
    def call_count(self) -> int:
        """Calls in the whole trace."""
        return int(self.meta.get("calls") or 0)

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """All rows of a query, as dicts. Raises TraceError when the tables are damaged."""
        with self._translated():
            cursor = self.connection.execute(sql, list(parameters))
            names = [column[0] for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def stream(self, sql: str) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, fetched in batches. Until the iterator ends, no other query may be made.

        Raises TraceError when the tables are damaged.
        """
        with self._translated():
            cursor = self.connection.execute(sql)
            while batch := cursor.fetchmany(BATCH):
                yield from batch

    def stream_calls(
        self, query: Callable[[str, int], str], ranges: Iterable[tuple[int, int]] | None = None
    ) -> Iterator[tuple[Any, ...]]:
        """The rows that a query makes of all calls, or those in `ranges` (first, end), in order, in bounded memory.

        `query(source, end)` answers SQL over `source`, the rows of `call_rows` in a range up to, but not with, the call
        `end`; it ends in ORDER BY call_id. The ranges are asked for one after the other, a small one first, so that the
        first rows come at once.
        (DuckDB sorts a million rows in little time and memory, and keeps no order through joins by itself.)
        """
        length = FIRST_RANGE
        for first, end in ranges or [(0, max((last + 1 for _, last, _ in self._files), default=0))]:
            while first < end:
                rows = 0
                until = min(first + length, end)
                for row in self.stream(query(self.calls_between(first, until), until)):
                    rows += 1
                    yield row
                first += length
                length = min(length * 4, LONGEST_RANGE if rows > length // 16 else LONGEST_RANGE * 4)

    def call_ranges(self, length: int) -> Iterator[tuple[int, int]]:
        """All calls in order: ranges (first, end) of at most `length`."""
        last = max((last for _, last, _ in self._files), default=-1)
        for first in range(0, last + 1, length):
            yield first, min(first + length, last + 1)

    def calls_query(self, source: str = "call_rows") -> str:
        """The rows of `source` as the view `calls` shows them: its definition."""
        times = ("start_ns", "duration_ns", "self_ns")
        values = {name: f"c.{name}" if self.has_clock else "NULL::BIGINT" for name in times}
        captured, joins = (_CAPTURED, CAPTURED_JOINS) if self.has_captures else ("", "")
        return _CALLS.format(source=source, captured=captured, joins=joins, **values)

    def create_table(self, name: str, columns: str, rows: Sequence[Sequence[Any]]) -> None:
        """Make or replace a temporary table, such as create_table('labels', 'id INTEGER, label VARCHAR', rows)."""
        self.rows(f"CREATE OR REPLACE TEMP TABLE {name} ({columns})")
        if rows:
            values = list(zip(*rows, strict=True))
            unnested = ", ".join("unnest(?)" for _ in values)
            self.rows(f"INSERT INTO {name} SELECT {unnested}", [list(column) for column in values])

    def arrays(self, sql: str) -> dict[str, NDArray[Any]]:
        """All rows of a query as NumPy arrays by column. Raises TraceError when the tables are damaged."""
        with self._translated():
            return self.connection.execute(sql).fetchnumpy()

    def create_table_of_arrays(self, name: str, columns: dict[str, NDArray[Any]]) -> None:
        """Make or replace a temporary table of NumPy arrays."""
        self.connection.register("given_arrays", columns)
        self.rows(f"CREATE OR REPLACE TEMP TABLE {name} AS FROM given_arrays")
        self.connection.unregister("given_arrays")

    def _create_views(self) -> None:
        """Views over the Parquet files; the small ones are read into memory."""
        files = sorted(
            (int(match[1]), int(match[2]), str(path))
            for path in self.calls.iterdir()
            if (match := _CALL_FILE.fullmatch(path.name))
        )
        self._files: list[tuple[int, int, str]] = []
        if files:
            listed = ", ".join(quoted(path) for _, _, path in files)
            self.rows(f"CREATE VIEW call_rows AS SELECT * FROM read_parquet([{listed}])")
            ranges = self.rows(_FILE_RANGES.format(files=listed))
            self._files = [(row["first"], row["last"], row["file_name"]) for row in ranges]
        else:
            self.rows(_NO_CALLS)
        for name in _SMALL_TABLES:
            self.rows(f"CREATE TABLE {name} AS SELECT * FROM {self._parquet(name)}")
        for name in _LARGE_TABLES:
            self.rows(f"CREATE VIEW {name} AS SELECT * FROM {self._parquet(name)}")
        self.rows(_SITE_LABELS)
        self._create_captures()
        self.rows(f"CREATE VIEW calls AS {self.calls_query()}")

    def _create_captures(self) -> None:
        """Views of captured arguments and results, and functions that make text of them."""
        found = {view: sorted(map(str, self.calls.glob(pattern))) for view, pattern in _CAPTURE_FILES.items()}
        self.has_captures = any(found.values())
        if not self.has_captures:
            return
        from callscope.reports.captures import register

        for view, paths in found.items():
            listed = ", ".join(quoted(path) for path in paths)
            source = (
                f"read_parquet([{listed}])" if paths else "(SELECT 0::BIGINT AS call_id, ''::BLOB AS data WHERE false)"
            )
            self.rows(f"CREATE VIEW {view} AS SELECT * FROM {source}")
        rows = self.rows("SELECT function_id, captures FROM functions WHERE captures IS NOT NULL")
        register(self.connection, {row["function_id"]: row["captures"] for row in rows})

    def calls_between(self, first: int, end: int) -> str:
        """A source of the rows of the calls `first` to `end` - 1, which opens only the files that hold them."""
        files = ", ".join(quoted(path) for low, high, path in self._files if low < end and high >= first)
        rows = f"read_parquet([{files}])" if files else "call_rows"
        return f"(SELECT * FROM {rows} WHERE call_id >= {first} AND call_id < {end})"

    def _parquet(self, name: str) -> str:
        return f"read_parquet([{quoted(str(self.calls / name) + '.parquet')}])"

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """DuckDB's exceptions as ours; it makes a RuntimeError of a KeyboardInterrupt."""
        try:
            yield
        except duckdb.Error as error:
            raise self._damaged(error) from error
        except RuntimeError as error:
            if "interrupted" in str(error):
                raise KeyboardInterrupt from error
            raise

    def _damaged(self, error: duckdb.Error) -> TraceError:
        if isinstance(error, duckdb.OutOfMemoryException):
            return TraceError(
                f"the question needs more than {MEMORY_LIMIT} of memory: ask for less, with --limit or --function"
            )
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return TraceError(
            f"the calls table {self.calls} cannot be read ({reason}): delete it and try again, it is rebuilt"
        )


def quoted(text: str) -> str:
    """A string literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def open_database(path: Path, progress: Callable[[int, int], None] | None = None) -> Database:
    """Open the trace at `path`, building its calls table when that is missing or stale.

    `progress` is told of events done and to do. Raises TraceError.
    """
    from callscope.calls.build import build_calls
    from callscope.trace.open import open_trace

    trace = open_trace(path)
    table = build_calls(trace, progress=progress)
    return Database(path, Path(table.path), trace.session, table.meta, trace.has_clock)

"""Functions by time and calls: `callscope report`.

Totals come from the table of call paths and percentiles from the histogram, so the calls themselves are read only when
a thread or a process is chosen. A recursive function's total counts its outermost calls only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from callscope.reports import muted
from callscope.reports.database import Database
from callscope.reports.selection import Selection, check_calls, condition, functions_matching, label
from callscope.reports.table import Column, fit, header, line, taken
from callscope.reports.text import DURATION_WIDTH, NO_CLOCK, Style, duration, duration_colour

PERCENTILE: Final = 0.99

_FROM_NODES = """
SELECT function_id, sum(calls)::BIGINT AS calls,
       coalesce(sum(CASE WHEN outermost THEN total_ns END), 0)::BIGINT AS total_ns,
       sum(total_ns)::BIGINT AS every_ns, sum(self_ns)::BIGINT AS self_ns, min(min_ns) AS min_ns, max(max_ns) AS max_ns
FROM nodes GROUP BY function_id
"""

_FROM_CALLS = """
SELECT c.function_id, count(*) AS calls,
       coalesce(sum(CASE WHEN n.outermost THEN c.duration_ns END), 0)::BIGINT AS total_ns,
       sum(c.duration_ns)::BIGINT AS every_ns, sum(c.self_ns)::BIGINT AS self_ns, min(c.duration_ns) AS min_ns,
       max(c.duration_ns) AS max_ns
FROM call_rows c JOIN nodes n ON n.node = c.node WHERE {condition} GROUP BY c.function_id
"""

_BUCKETS_OF_CALLS = """
SELECT function_id, bucket, count(*) AS calls FROM (
    SELECT function_id, CASE WHEN duration_ns < 16 THEN duration_ns
        ELSE (e - 3) * 16 + (duration_ns >> (e - 4)) - 16 END AS bucket
    FROM (SELECT function_id, duration_ns, length(bin(greatest(duration_ns, 1))) - 1 AS e
          FROM call_rows WHERE {condition})
) GROUP BY function_id, bucket
"""
"""As durations.parquet has them: 16 buckets to every power of two."""

_PERCENTILES = """
SELECT function_id, min(bucket) AS bucket FROM (
    SELECT function_id, bucket, sum(calls) OVER (PARTITION BY function_id ORDER BY bucket) AS below,
           sum(calls) OVER (PARTITION BY function_id) AS every
    FROM ({buckets}) b
) ranked WHERE below >= every * {fraction} GROUP BY function_id
"""


@dataclass(frozen=True)
class FunctionTimes:
    """One function's calls. Times in nanoseconds, None in a trace without clock.

    address: in the module. total_ns: time within it, calls it made included, a recursion's inner calls not counted
    again. average_ns, min_ns, max_ns, p99_ns: of single calls, inner ones too; p99_ns is exact to 3 %.
    """

    function: str
    module: str | None
    address: int
    file: str | None
    line: int | None
    calls: int
    total_ns: int | None
    self_ns: int | None
    average_ns: int | None
    min_ns: int | None
    max_ns: int | None
    p99_ns: int | None


ORDERS: Final = ("total", "self", "calls", "average", "min", "max", "p99", "name")
"""What functions can be sorted by: the largest first, names alphabetically."""


def function_times(database: Database, selection: Selection, sort: str = "total") -> list[FunctionTimes]:
    """The functions called, sorted. Raises TraceError when there are none."""
    check_calls(database)
    return sorted(times_by_function(database, selection).values(), key=lambda times: order(times, sort))


def times_by_function(database: Database, selection: Selection) -> dict[int, FunctionTimes]:
    """The functions called, by function_id. Raises TraceError when a glob matches none."""
    if selection.thread is None and selection.process is None and not selection.min_duration_ns:
        totals, buckets = _FROM_NODES, "SELECT function_id, bucket, sum(calls) AS calls FROM durations GROUP BY ALL"
    else:
        chosen = condition(database, replace(selection, functions=()))
        totals, buckets = _FROM_CALLS.format(condition=chosen), _BUCKETS_OF_CALLS.format(condition=chosen)
    percentiles = _PERCENTILES.format(buckets=buckets, fraction=PERCENTILE)
    rows = database.rows(
        f"SELECT t.*, p.bucket, f.name, f.module, f.address, f.file, f.line FROM ({totals}) t"
        f" LEFT JOIN ({percentiles}) p ON p.function_id = t.function_id"
        " LEFT JOIN functions f ON f.function_id = t.function_id"
    )
    if selection.functions:
        wanted = set(functions_matching(database, selection.functions))
        rows = [row for row in rows if row["function_id"] in wanted]
    return {row["function_id"]: _times(row, database.has_clock) for row in rows}


def text(database: Database, times: Sequence[FunctionTimes], style: Style, limit: int = 0) -> Iterator[str]:
    """Lines of a table. In a terminal, columns that do not fit are left out and long names shortened."""
    clock = database.has_clock
    columns = [
        Column("total_ns", "Total", DURATION_WIDTH),
        Column("self_ns", "Self", DURATION_WIDTH, rank=9),
        Column("calls", "Calls", max((len(style.count(entry.calls)) for entry in times), default=1)),
        Column("average_ns", "Average", DURATION_WIDTH, rank=3),
        Column("min_ns", "Min", DURATION_WIDTH, rank=1),
        Column("max_ns", "Max", DURATION_WIDTH, rank=2),
        Column("p99_ns", "P99", DURATION_WIDTH, rank=4),
        Column("function", "Function"),
    ]
    columns = fit([column for column in columns if clock or not column.key.endswith("_ns")], style)
    room = (style.width or 0) - taken(columns)
    if database.coarse_clock:
        yield style.comment(database.coarse_clock)
    yield from muted.lines(database, style)
    yield header(columns, style)
    shown = times[:limit] if limit else times
    for entry in shown:
        name = style.name(label(entry.function, entry.module, database.only_module), room)
        yield line(columns, [*(_cell(entry, column.key, style) for column in columns[:-1]), name])
    if len(shown) < len(times):
        yield style.comment(f"{len(times) - len(shown):,} more functions: --limit 0 shows all")
    if not clock:
        yield style.comment(NO_CLOCK)


def as_json(times: Iterable[FunctionTimes]) -> Iterator[dict[str, Any]]:
    """The fields of FunctionTimes."""
    return map(asdict, times)


def bucket_middle(bucket: int) -> float:
    """The middle of a histogram bucket, in nanoseconds: buckets below 32 hold one value each."""
    if bucket < 32:
        return bucket
    shift = bucket // 16 - 1
    return ((bucket % 16 + 16) << shift) + ((1 << shift) - 1) / 2


def _times(row: dict[str, Any], clock: bool) -> FunctionTimes:
    p99 = None
    if row["bucket"] is not None:
        p99 = min(max(round(bucket_middle(row["bucket"])), row["min_ns"]), row["max_ns"])
    return FunctionTimes(
        function=row["name"] or "?",
        module=row["module"],
        address=row["address"],
        file=row["file"],
        line=row["line"],
        calls=row["calls"],
        total_ns=row["total_ns"] if clock else None,
        self_ns=row["self_ns"] if clock else None,
        average_ns=round(row["every_ns"] / row["calls"]) if clock else None,
        min_ns=row["min_ns"] if clock else None,
        max_ns=row["max_ns"] if clock else None,
        p99_ns=p99 if clock else None,
    )


def order(times: FunctionTimes, sort: str) -> tuple[Any, ...]:
    """What functions are sorted by, `sort` one of ORDERS."""
    name = times.function, times.module or "", times.address or 0
    if sort == "name":
        return name
    first = times.calls if sort == "calls" else getattr(times, f"{sort}_ns")
    return (-(times.calls if first is None else first), -(times.self_ns or 0), -times.calls, *name)


def _cell(entry: FunctionTimes, key: str, style: Style) -> str:
    if key == "calls":
        return style.count(entry.calls)
    ns: int = getattr(entry, key)
    return style.paint(duration(ns), *duration_colour(ns))

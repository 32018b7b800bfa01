"""Every call, one a line, in the order of threads and then of starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final

from callscope.reports.database import CAPTURED_JOINS, Database
from callscope.reports.selection import Selection, check_calls, condition, label
from callscope.reports.table import GAP, Column, fit, header, taken, widest
from callscope.reports.text import DURATION_WIDTH, NO_CLOCK, Style, plural, printable, seconds

ORDERS: Final = {
    "start": "c.call_id",
    "duration": "c.duration_ns DESC, c.call_id",
    "self": "c.self_ns DESC, c.call_id",
}
"""What calls can be sorted by; `start` streams, the others must see all calls first."""

FIELDS: Final = (
    "call_id",
    "parent_id",
    "pid",
    "tid",
    "function",
    "module",
    "address",
    "call_site",
    "start_ns",
    "duration_ns",
    "self_ns",
    "depth",
    "ended_by",
    "via",
)
"""The fields of a call in JSON."""

_MACROS: Final = (
    "CREATE OR REPLACE TEMP MACRO pad_left(t, w) AS lpad(t, greatest(w, length(t))::INTEGER, ' ')",
    "CREATE OR REPLACE TEMP MACRO pad_right(t, w) AS rpad(t, greatest(w, length(t))::INTEGER, ' ')",
    """CREATE OR REPLACE TEMP MACRO human_value(v) AS
    CASE WHEN v < 9.995 THEN printf('%4.2f', v) WHEN v < 99.95 THEN printf('%4.1f', v) ELSE printf('%4.0f', v) END""",
    """CREATE OR REPLACE TEMP MACRO human(ns) AS CASE
    WHEN ns < 1000 THEN lpad(ns::VARCHAR, 4, ' ') || ' ns'
    WHEN ns < 999500 THEN human_value(ns / 1e3) || ' us'
    WHEN ns < 999500000 THEN human_value(ns / 1e6) || ' ms'
    WHEN ns < 9999500000000 THEN human_value(ns / 1e9) || ' s '
    WHEN ns < 359820000000000 THEN printf('%4.1f h ', ns / 3.6e12) ELSE printf('%4.0f h ', ns / 3.6e12) END""",
)
"""`human` is callscope.reports.text.duration in SQL."""

_CELLS: Final = {
    "call_id": "c.call_id::VARCHAR",
    "parent_id": "CASE WHEN c.up > 0 THEN (c.call_id - c.up)::VARCHAR ELSE '-' END",
    "pid": "coalesce(t.pid::VARCHAR, '-')",
    "tid": "coalesce(t.tid::VARCHAR, '-')",
    "start": "(c.start_ns // 1000000000)::VARCHAR || '.' || lpad((c.start_ns % 1000000000)::VARCHAR, 9, '0')",
    "duration": "human(c.duration_ns)",
    "self": "human(c.self_ns)",
    "depth": "c.depth::VARCHAR",
    "ended_by": "['return', 'tail_call', 'unwound', 'running', 'off'][c.ended_by + 1]",
    "call_site": "coalesce(s.label, '-')",
    "function": "coalesce(f.label, '?') || {captured}"
    " || CASE WHEN c.gap THEN ' [via ' || coalesce(s.via, '?') || ']' ELSE '' END",
}

_CAPTURED: Final = """coalesce('(' || call_arguments(c.function_id, ca.data) || ')', '')
    || coalesce(' = ' || call_result(c.function_id, cr.data), '')"""

_JOINS: Final = """
LEFT JOIN function_labels f ON f.function_id = c.function_id
LEFT JOIN printable_sites s ON s.site = c.site
LEFT JOIN threads t ON t.thread = c.thread
"""


def text(database: Database, selection: Selection, style: Style, sort: str = "start", limit: int = 0) -> Iterator[str]:
    """Lines of a table. In a terminal, columns that do not fit are left out; a pipe gets all."""
    check_calls(database)
    columns = _columns(database, style)
    yield header(columns, style)
    _set_labels(database, style, room=(style.width or 0) - taken(columns))
    for macro in _MACROS:
        database.rows(macro)
    shown = _CAPTURED if database.has_captures else "''"
    joins = _JOINS + (CAPTURED_JOINS if database.has_captures else "")
    cells = [
        f"pad_{'right' if column.left else 'left'}({_CELLS[column.key]}, {column.width})" for column in columns[:-1]
    ]
    line = f" || {GAP!r} || ".join([*cells, _CELLS[columns[-1].key].replace("{captured}", shown)])
    lines = _rows(database, selection, sort, limit, lambda source: f"SELECT {line} FROM {source} c {joins}")
    for count, (row,) in enumerate(lines):
        if limit and count == limit:
            yield style.comment(f"cut after {plural(limit, 'call')}: a higher --limit shows more, --limit 0 all")
            break
        yield row
    if not database.has_clock:
        yield style.comment(NO_CLOCK)


def json(database: Database, selection: Selection, sort: str = "start", limit: int = 0) -> Iterator[str]:
    """One JSON object a call: FIELDS, where `via` names the untraced function through which the call was made."""
    check_calls(database)
    fields = ", ".join(f"{field}: c.{field}" for field in fields_of(database))
    rows = _rows(
        database,
        selection,
        sort,
        limit,
        lambda source: f"SELECT to_json({{{fields}}}) FROM ({database.calls_query(source)}) c",
    )
    for (row,) in islice(rows, limit or None):
        yield row


def fields_of(database: Database) -> tuple[str, ...]:
    """The fields of a call in JSON: with arguments and result where these were recorded."""
    return (*FIELDS, "arguments", "result") if database.has_captures else FIELDS


def _rows(
    database: Database, selection: Selection, sort: str, limit: int, query: Callable[[str], str]
) -> Iterator[tuple[Any, ...]]:
    """The chosen calls as `query` shows them, in order, one more than `limit` to tell whether something was cut."""
    chosen = condition(database, selection)
    at_most = f" LIMIT {int(limit) + 1}" if limit else ""
    if sort == "start" and not selection.last:
        yield from islice(
            database.stream_calls(
                lambda source, end: query(f"(SELECT * FROM {source} WHERE {chosen})") + f" ORDER BY c.call_id{at_most}"
            ),
            limit + 1 if limit else None,
        )
        return
    source = f"SELECT * FROM call_rows c WHERE {chosen}"
    if selection.last:
        source = f"SELECT * FROM ({source} ORDER BY start_ns DESC, call_id DESC LIMIT {int(selection.last)}) c"
    order = f"ORDER BY {ORDERS[sort]}"
    if limit:
        source = f"{source} {order}{at_most}"
    yield from database.stream(f"{query(f'({source})')} {order}")


def _columns(database: Database, style: Style) -> list[Column]:
    ids = len(str(database.call_count))
    widths = database.rows(
        "SELECT coalesce(max(length(pid::VARCHAR)), 1) AS pid, coalesce(max(length(tid::VARCHAR)), 1) AS tid"
        " FROM threads"
    )[0]
    columns = [
        Column("call_id", "Call", ids),
        Column("parent_id", "Parent", ids, rank=5),
        Column("pid", "PID", widths["pid"], rank=3),
        Column("tid", "TID", widths["tid"], rank=6),
        Column("start", "Start", len(seconds(database.meta.get("duration_ns") or 0)), rank=7),
        Column("duration", "Duration", DURATION_WIDTH + 1),
        Column("self", "Self", DURATION_WIDTH, rank=4),
        Column("depth", "Depth", 5, rank=2),
        Column("ended_by", "Ended by", 9, left=True, rank=8),
        Column("call_site", "Call site", _site_width(database), left=True, rank=1),
        Column("function", "Function"),
    ]
    if not database.has_clock:
        columns = [column for column in columns if column.key not in ("start", "duration", "self")]
    return fit(columns, style)


def _site_width(database: Database) -> int:
    return widest(printable(row["label"] or "") for row in database.rows("SELECT DISTINCT label FROM site_labels"))


def _set_labels(database: Database, style: Style, room: int) -> None:
    """Tables of printable names for `_JOINS`."""
    functions = database.rows("SELECT function_id, name, module FROM functions")
    sites = database.rows("SELECT site, label, name FROM site_labels")
    database.create_table(
        "function_labels",
        "function_id INTEGER, label VARCHAR",
        [
            (row["function_id"], style.name(label(row["name"], row["module"], database.only_module), room))
            for row in functions
        ],
    )
    database.create_table(
        "printable_sites",
        "site INTEGER, label VARCHAR, via VARCHAR",
        [(row["site"], printable(row["label"] or "-"), style.name(row["name"] or "?", room // 2)) for row in sites],
    )

"""Programs and libraries as processes loaded and unloaded them: `callscope modules`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from callscope.reports.database import Database
from callscope.reports.table import Column, fit, header, line
from callscope.reports.text import DIM, Style, printable, seconds, size

_MODULES = """
SELECT p.pid, m.process, m.path, m.build_id, m.base, m.span, m.load_ns, m.unload_ns, m.traced,
       m.function_count, m.patch_count, m.refused
FROM modules m LEFT JOIN processes p ON p.process = m.process
ORDER BY m.load_ns, m.process, m.base
"""


def modules(database: Database, process: int | None = None) -> list[dict[str, Any]]:
    """Every load of a module, in order of time.

    load_ns, unload_ns: since the session's start; unload_ns None when it stayed. base: its address; span: bytes of
    address space. patch_count: patches applied; refused: those whose bytes in memory were not the file's.
    """
    rows = [{"pid": row.pop("pid"), "module": Path(row["path"] or "?").name, **row} for row in database.rows(_MODULES)]
    return rows if process is None else [row for row in rows if row["pid"] == process]


def text(rows: Sequence[dict[str, Any]], style: Style) -> Iterator[str]:
    """Lines of a table."""
    longest = max((len(seconds(row["unload_ns"] or row["load_ns"] or 0)) for row in rows), default=6)
    columns = [
        Column("pid", "PID", max((len(str(row["pid"])) for row in rows), default=3)),
        Column("load_ns", "Loaded", longest, rank=8),
        Column("unload_ns", "Unloaded", longest, rank=5),
        Column("base", "Address", 14, rank=6),
        Column("span", "Size", 7, rank=2),
        Column("traced", "Functions", 9, rank=7),
        Column("patch_count", "Patches", 7, rank=3),
        Column("build_id", "Build-id", 40, left=True, rank=1),
        Column("path", "Module"),
    ]
    shown = fit(columns, style)
    yield header(shown, style)
    for row in rows:
        written = line(shown, [_cell(row, column.key) for column in shown])
        yield written if row["traced"] else style.paint(written, DIM)


def _cell(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if key in ("load_ns", "unload_ns"):
        return seconds(value)
    if key == "base":
        return f"{value:#x}"
    if key == "span":
        return size(value or 0)
    if key == "traced":
        return str(row["function_count"]) if value else "-"
    if key == "patch_count":
        return str(value) if row["traced"] else "-"
    if key == "path":
        refused = f" ({row['refused']} patches refused)" if row["refused"] else ""
        return printable(value or "?") + refused
    return printable(str(value)) if value is not None else "-"

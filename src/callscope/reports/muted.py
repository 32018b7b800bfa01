"""Functions that were muted while the program ran, since tracing them cost too much (`record --max-overhead`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from callscope import format as records
from callscope.reports.database import Database
from callscope.reports.selection import label
from callscope.reports.text import Style, duration, plural

MOST_LISTED: Final = 8
SCRIPTS: Final = "all functions of the interpreter"


@dataclass(frozen=True)
class Muted:
    """A function that was muted. at_ns: when, since the session's start. calls: recorded until then; it ran on
    unrecorded.
    """

    function_id: int
    function: str
    module: str | None
    at_ns: int
    calls: int


def muted_functions(database: Database) -> list[Muted]:
    """In order of the calls that were recorded, most first."""
    entries = [entry for entry in database.meta.get("muted", []) if isinstance(entry, dict)]
    times = {int(entry["function_id"]): int(entry["at_ns"]) for entry in entries}
    if not times:
        return []
    counts = {
        row["function_id"]: row
        for row in database.rows(
            "SELECT f.function_id, f.name, f.module, coalesce(sum(n.calls), 0)::BIGINT AS calls FROM functions f"
            " LEFT JOIN nodes n USING (function_id) GROUP BY ALL"
        )
    }
    found = []
    for function, at in times.items():
        row = counts.get(function)
        if function == records.SCRIPT_FIRST:
            calls = sum(entry["calls"] for number, entry in counts.items() if number >= records.SCRIPT_FIRST)
            found.append(Muted(function, SCRIPTS, None, at, calls))
        elif row is not None:
            found.append(Muted(function, row["name"] or "?", row["module"], at, row["calls"]))
    return sorted(found, key=lambda entry: -entry.calls)


def lines(database: Database, style: Style) -> Iterator[str]:
    """Remarks for text; none where nothing was muted."""
    muted = muted_functions(database)
    if not muted:
        return
    yield style.comment(f"{plural(len(muted), 'function')} muted while it ran: they ran on, unrecorded")
    for entry in muted[:MOST_LISTED]:
        name = label(entry.function, entry.module, database.only_module) if entry.module else entry.function
        calls = plural(entry.calls, "call")
        yield style.comment(f"  {name}: {calls} until it was muted at {duration(entry.at_ns).strip()}")
    if len(muted) > MOST_LISTED:
        yield style.comment(f"  and {len(muted) - MOST_LISTED} more: callscope info --format json")


def as_json(database: Database) -> list[dict[str, Any]]:
    """The fields of Muted."""
    return [asdict(entry) for entry in muted_functions(database)]

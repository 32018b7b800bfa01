"""X64 Call Tracer's text form: an event a line, and JSON of modules and of the map of functions.

    TIME PID TID EVENT TARGET

    enter    a function begins                       exit     it has returned, or ended in another way
    call     a call site is about to call TARGET     called   TARGET has returned to the call site
             (these alone where TARGET is not traced, and its call site was recorded)
    jump     the function ended in a jump to the next one entered

TIME is seconds since the recording began, or the number of the event in its thread in a trace without clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from callscope.exporters.walk import TAIL_CALL, names, steps, threads
from callscope.reports.database import Database
from callscope.reports.selection import Selection
from callscope.reports.text import printable

_MODULES: Final = """
SELECT modules.path, base, span AS size, build_id, load_ns, unload_ns, pid
FROM modules JOIN processes USING (process) ORDER BY load_ns, base
"""
_MAP: Final = """
SELECT function_id, name, module, address, size, file, line FROM functions ORDER BY module, address
"""


def lines(database: Database, selection: Selection) -> Iterator[str]:
    """The events, thread by thread. Raises TraceError."""
    targets = {number: printable(name) for number, name in names(database).items()}
    sites = {row["site"]: row["label"] for row in database.rows("SELECT site, label FROM site_labels")}
    who = {number: f"{pid} {tid}" for number, (pid, tid, _) in threads(database).items()}
    outside = {row["function_id"] for row in database.rows("SELECT function_id FROM functions WHERE NOT traced")}
    clock = database.has_clock
    for is_entry, time, call, is_switch in steps(database, selection):
        if is_switch:
            continue
        when = f"{time // 1_000_000_000}.{time % 1_000_000_000:09d}" if clock else str(time)
        start = f"{when} {who[call.thread]}"
        target = targets.get(call.function_id, "?")
        if is_entry:
            yield f"{start} call {target} from {sites.get(call.site) or '-'}"
            if call.function_id not in outside:
                given = f"({call.arguments})" if call.arguments is not None else ""
                yield f"{start} enter {target}{given}"
        elif call.ended_by == TAIL_CALL:
            yield f"{start} jump {target}"
        else:
            if call.function_id not in outside:
                result = f" = {call.result}" if call.result is not None else ""
                yield f"{start} exit {target}{result}"
            yield f"{start} called {target}"


def companions(database: Database) -> dict[str, Iterator[str]]:
    """The modules with their load times, and the functions with their places: one JSON array each."""
    return {"_modules.json": _rows(database, _MODULES), "_map.json": _rows(database, _MAP)}


def _rows(database: Database, sql: str) -> Iterator[str]:
    rows = [json.dumps(row, ensure_ascii=False) for row in database.rows(sql)]
    yield from ["[", *(f"{row}," for row in rows[:-1]), *rows[-1:], "]"]

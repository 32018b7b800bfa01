"""speedscope's file format: an evented profile a thread.

Source: src/lib/file-format-spec.ts of https://github.com/jlfwong/speedscope.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby

from callscope.exporters.walk import full_name, steps, threads
from callscope.reports.database import Database
from callscope.reports.selection import Selection

SCHEMA = "https://www.speedscope.app/file-format-schema.json"


def lines(database: Database, selection: Selection) -> Iterator[str]:
    """One JSON object, an event a line. Raises TraceError."""
    functions = database.rows("SELECT function_id, name, module, file, line FROM functions ORDER BY function_id")
    index = {row["function_id"]: number for number, row in enumerate(functions)}
    frames = [
        {"name": full_name(row["name"], row["module"])}
        | {key: row[key] for key in ("file", "line") if row[key] is not None}
        for row in functions
    ]
    who = threads(database)
    unit = "nanoseconds" if database.has_clock else "none"
    shared = json.dumps({"frames": frames}, ensure_ascii=False)
    yield f'{{"$schema": "{SCHEMA}", "exporter": "callscope", "shared": {shared}, "profiles": ['
    before = ""
    for thread, found in groupby(steps(database, selection), key=lambda step: step.call.thread):
        pid, tid, name = who[thread]
        title = json.dumps(f"{name or 'thread'} {tid} (process {pid})", ensure_ascii=False)
        yield f'{before}{{"type": "evented", "name": {title}, "unit": "{unit}", "events": ['
        first = last = None
        for is_entry, time, call in found:
            first, comma = (time, "") if first is None else (first, ",")
            last = time
            kind = "O" if is_entry else "C"
            yield f'{comma}{{"type": "{kind}", "frame": {index[call.function_id]}, "at": {time}}}'
        yield f'], "startValue": {first}, "endValue": {last}}}'
        before = ","
    yield "]}"

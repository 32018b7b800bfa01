"""speedscope's file format: an evented profile a thread; of long traces a sampled one, summed up by path.

Source: src/lib/file-format-spec.ts of https://github.com/jlfwong/speedscope.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby

from callscope.exporters.walk import full_name, steps, threads
from callscope.reports.database import Database
from callscope.reports.selection import Selection, check_calls, condition

MOST_EVENTS = 4_000_000
"""calls; speedscope holds a file in memory, and browsers open no string of more than 512 MB"""
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
    check_calls(database)
    who = threads(database)
    unit = "nanoseconds" if database.has_clock else "none"
    shared = json.dumps({"frames": frames}, ensure_ascii=False)
    yield f'{{"$schema": "{SCHEMA}", "exporter": "callscope", "shared": {shared}, "profiles": ['
    chosen = condition(database, Selection(thread=selection.thread, process=selection.process))
    calls = database.rows(f"SELECT count(*) AS calls FROM call_rows WHERE {chosen}")[0]["calls"]
    if calls > MOST_EVENTS:
        yield from _sampled(database, chosen, index, unit)
        return
    before = ""
    for thread, found in groupby(steps(database, selection), key=lambda step: step.call.thread):
        pid, tid, name = who[thread]
        title = _title(pid, tid, name)
        yield f'{before}{{"type": "evented", "name": {title}, "unit": "{unit}", "events": ['
        first = last = None
        for is_entry, time, call, _ in found:
            first, comma = (time, "") if first is None else (first, ",")
            last = time
            kind = "O" if is_entry else "C"
            yield f'{comma}{{"type": "{kind}", "frame": {index[call.function_id]}, "at": {time}}}'
        yield f'], "startValue": {first}, "endValue": {last}}}'
        before = ","
    yield "]}"


def _title(pid: int, tid: int, name: str) -> str:
    return json.dumps(f"{name or 'thread'} {tid} (process {pid})", ensure_ascii=False)


def _sampled(database: Database, chosen: str, index: dict[int, int], unit: str) -> Iterator[str]:
    """A profile a thread, each path of functions once, with its own time (without a clock: its calls)."""
    value = "self_ns" if database.has_clock else "1"
    sums = database.rows(
        f"SELECT thread, node, sum({value})::BIGINT AS weight FROM call_rows WHERE {chosen} "
        "GROUP BY ALL HAVING weight > 0 ORDER BY thread, node"
    )
    nodes = database.arrays("SELECT parent, function_id FROM nodes ORDER BY node")
    parents, functions = nodes["parent"].tolist(), nodes["function_id"].tolist()
    who = threads(database)
    before = ""
    for thread, found in groupby(sums, key=lambda row: row["thread"]):
        title = _title(*who[thread])
        yield f'{before}{{"type": "sampled", "name": {title}, "unit": "{unit}", "startValue": 0, "samples": ['
        weights: list[int] = []
        for row in found:
            path, at = [], row["node"]
            while at >= 0:
                path.append(index[functions[at]])
                at = parents[at]
            yield ("," if weights else "") + json.dumps(path[::-1])
            weights.append(row["weight"])
        yield f'], "weights": {json.dumps(weights)}, "endValue": {sum(weights)}}}'
        before = ","
    yield "]}"

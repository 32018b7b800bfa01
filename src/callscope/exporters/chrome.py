"""Chrome's JSON for timelines: chrome://tracing, Perfetto's page, and other viewers of it.

Source: "Trace Event Format" (Google, 2016): duration events B and E, metadata events M. Times are microseconds, or the
number of the step in a trace without clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from callscope.exporters.walk import names, steps, threads
from callscope.reports.database import Database
from callscope.reports.markers import markers
from callscope.reports.selection import Selection, command_line


def lines(database: Database, selection: Selection) -> Iterator[str]:
    """One JSON object, an event a line. Raises TraceError."""
    texts = {number: json.dumps(name, ensure_ascii=False) for number, name in names(database).items()}
    who = threads(database)
    yield '{"displayTimeUnit": "ns", "traceEvents": ['
    for process in database.rows("SELECT pid, path, command FROM processes ORDER BY process"):
        yield _metadata("process_name", process["pid"], 0, command_line(process))
    for pid, tid, name in who.values():
        yield _metadata("thread_name", pid, tid, name or str(tid))
    places = {number: f'"pid": {pid}, "tid": {tid}' for number, (pid, tid, _) in who.items()}
    nameless = json.dumps("?")
    scale = 1000 if database.has_clock else 1
    for is_entry, time, call, is_switch in steps(database, selection):
        when = f"{time // scale}.{time % scale:03d}" if scale > 1 else str(time)
        name = f', "name": {texts.get(call.function_id, nameless)}'  # of exits, too: some readers match them by name
        shown = call.arguments if is_entry else call.result
        if shown is not None and not is_switch:
            name += f', "args": {{"{"arguments" if is_entry else "result"}": {json.dumps(shown, ensure_ascii=False)}}}'
        yield f'{{"ph": "{"B" if is_entry else "E"}", {places[call.thread]}, "ts": {when}{name}}},'
    for marker in markers(database):
        if marker["time_ns"] is not None:
            event = {"ph": "i", "s": "t", "name": marker["text"], "pid": marker["pid"], "tid": marker["tid"]}
            yield json.dumps(event | {"ts": marker["time_ns"] / 1000}, ensure_ascii=False) + ","
    yield _metadata("exporter", 0, 0, "callscope").rstrip(",") + "]}"


def _metadata(kind: str, pid: int, tid: int, name: str) -> str:
    event = {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}
    return json.dumps(event, ensure_ascii=False) + ","

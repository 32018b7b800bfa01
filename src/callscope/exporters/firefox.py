"""The processed profile format of Firefox's profiler, for https://profiler.firefox.com.

Source: src/types/profile.ts and docs-developer/CHANGELOG-formats.md of https://github.com/firefox-devtools/profiler,
version 60, which later ones bring up to date as they load it.

A sample says which path of functions is at work from its time until that of the next, and weighs as much ("tracing");
without a clock every call is a sample. Paths are the table of stacks, whose frames are functions; modules are
categories. Of long traces a path is one sample a thread, with all of its own time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from callscope.exporters.steps import step_batches
from callscope.reports.database import Database
from callscope.reports.markers import markers
from callscope.reports.selection import Selection, check_calls, command_line, condition

MOST_CALLS: Final = 2_000_000
"""calls whose order is kept; browsers open no text of more than 512 MB"""
FORMAT_VERSION: Final = 60
_GECKO_VERSION = 32
_COLOURS = (
    "blue",
    "green",
    "orange",
    "purple",
    "yellow",
    "lightblue",
    "red",
    "magenta",
    "brown",
    "darkgrey",
    "lightred",
)
_LIBRARY = 1  # the type of a resource
_INSTANT = 0  # the phase of a marker
_PIECE = 1 << 16
_MARKER: Final = {
    "name": "Marker",
    "display": ["marker-chart", "marker-table", "timeline-overview"],
    "tableLabel": "{marker.data.text}",
    "chartLabel": "{marker.data.text}",
    "fields": [{"key": "text", "label": "Text", "format": "string"}],
}


def lines(database: Database, selection: Selection) -> Iterator[str]:
    """One JSON object. Of `selection` thread and process are regarded. Raises TraceError."""
    check_calls(database)
    chosen = condition(database, Selection(thread=selection.thread, process=selection.process))
    texts = _Texts()
    functions = database.rows("SELECT * EXCLUDE (captures) FROM functions ORDER BY function_id")
    modules = list(dict.fromkeys(row["module"] or "?" for row in functions))
    marker_name = texts.number("Marker")
    yield f'{{"meta": {_json(_meta(database, modules))}, "libs": {_json([_library(database, row) for row in modules])},'
    yield '"threads": ['
    processes = {row["process"]: row for row in database.rows("SELECT * FROM processes")}
    of_thread = {row["thread"]: row for row in database.rows("SELECT * FROM threads")}
    noted: dict[int, list[Mapping[str, Any]]] = {}
    for marker in markers(database):
        if marker["time_ns"] is not None:
            noted.setdefault(marker["thread"], []).append(marker)
    before = ""
    for thread, samples in _samples(database, selection, chosen):
        process = processes.get(of_thread[thread]["process"], {})
        head = _thread(of_thread[thread], process) | {"markers": _markers(noted.get(thread, []), marker_name)}
        yield f'{before}{_json(head)[:-1]}, "samples": '
        yield from samples
        yield "}"
        before = ","
    yield '], "shared": {'
    yield f"{_functions(functions, modules, texts)},"
    yield from _stacks(database, functions)
    yield f', "stringArray": {_json(texts.all)}}}}}'


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True)  # names may hold halves of surrogate pairs


def _meta(database: Database, modules: list[str]) -> dict[str, Any]:
    session = database.session
    host = session.get("host") or {}
    started = ((session.get("clock") or {}).get("start") or {}).get("realtime_ns") or 0
    command = command_line(session)
    colours = [{"name": "Other", "color": "grey", "subcategories": ["Other"]}]
    colours += [
        {"name": name, "color": _COLOURS[number % len(_COLOURS)], "subcategories": ["Other"]}
        for number, name in enumerate(modules)
    ]
    return {
        "interval": 0.001,
        "startTime": started / 1e6,
        "profilingEndTime": (database.meta.get("duration_ns") or 0) / 1e6,
        "processType": 0,
        "product": command,
        "arguments": command,
        "importedFrom": "callscope",
        "stackwalk": 1,
        "version": _GECKO_VERSION,
        "preprocessedProfileVersion": FORMAT_VERSION,
        "symbolicated": True,
        "symbolicationNotSupported": True,
        "usesOnlyOneStackType": True,
        "sourceCodeIsNotOnSearchfox": True,
        "keepProfileThreadOrder": True,
        "oscpu": f"{host.get('kernel') or ''} {host.get('machine') or ''}".strip(),
        "logicalCPUs": host.get("cpus") or 0,
        "categories": colours,
        "markerSchema": [_MARKER],
    }


def _library(database: Database, module: str) -> dict[str, Any]:
    rows = database.rows("SELECT path, build_id FROM modules WHERE path LIKE '%' || ? LIMIT 1", [module])
    path = rows[0]["path"] if rows else module
    known: dict[str, Any] = {"arch": "x86_64", "name": module, "path": path, "debugName": module, "debugPath": path}
    return known | {"breakpadId": "", "codeId": (rows[0]["build_id"] or None) if rows else None}


def _thread(row: Mapping[str, Any], process: Mapping[str, Any]) -> dict[str, Any]:
    begin, end = ((row[name] or 0) / 1e6 for name in ("start_ns", "end_ns"))
    return {
        "processType": "default",
        "processName": command_line(process),
        "processStartupTime": (process.get("start_ns") or 0) / 1e6,
        "processShutdownTime": None if process.get("end_ns") is None else process["end_ns"] / 1e6,
        "registerTime": begin,
        "unregisterTime": max(begin, end),
        "pausedRanges": [],
        "name": row["name"] or f"thread {row['tid']}",
        "isMainThread": row["pid"] == row["tid"],
        "pid": str(row["pid"]),
        "tid": row["tid"],
        "showMarkersInTimeline": True,
    }


def _markers(found: list[Mapping[str, Any]], name: int) -> dict[str, Any]:
    times = [marker["time_ns"] / 1e6 for marker in found]
    return {
        "data": [{"type": "Marker", "text": marker["text"]} for marker in found],
        "name": [name] * len(found),
        "startTime": times,
        "endTime": [None] * len(found),
        "phase": [_INSTANT] * len(found),
        "category": [0] * len(found),
        "length": len(found),
    }


class _Texts:
    """The table of texts."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """A text's number."""
        if text not in self._numbers:
            self._numbers[text] = len(self.all)
            self.all.append(text)
        return self._numbers[text]


def _functions(functions: list[dict[str, Any]], modules: list[str], texts: _Texts) -> str:
    """Tables of resources, sources, functions, and a frame for each function; behind them one that is unknown."""
    files = list(dict.fromkeys(row["file"] for row in functions if row["file"]))
    file_of = {file: number for number, file in enumerate(files)}
    module_of = {module: number for number, module in enumerate(modules)}
    rows: list[dict[str, Any]] = [
        *functions,
        {"name": "?", "module": None, "file": None, "line": None, "address": None},
    ]
    count = len(rows)
    resources = [module_of.get(row["module"] or "?", -1) for row in rows]
    none = [None] * count
    tables = {
        "resourceTable": {
            "type": [_LIBRARY] * len(modules),
            "name": [texts.number(module) for module in modules],
            "host": [None] * len(modules),
            "lib": list(range(len(modules))),
            "length": len(modules),
        },
        "sources": {
            "id": [None] * len(files),
            "filename": [texts.number(file) for file in files],
            "length": len(files),
        },
        "funcTable": {
            "name": [texts.number(row["name"] or "?") for row in rows],
            "isJS": [False] * count,
            "relevantForJS": [False] * count,
            "resource": resources,
            "source": [file_of.get(row["file"]) for row in rows],
            "lineNumber": [row["line"] for row in rows],
            "columnNumber": none,
            "length": count,
        },
        "frameTable": {
            "address": [-1 if row["address"] is None else row["address"] for row in rows],
            "inlineDepth": [0] * count,
            "category": [number + 1 for number in resources],
            "subcategory": [0] * count,
            "func": list(range(count)),
            "nativeSymbol": none,
            "innerWindowID": [0] * count,
            "line": [row["line"] for row in rows],
            "column": none,
            "length": count,
        },
        "nativeSymbols": {"libIndex": [], "address": [], "name": [], "functionSize": [], "length": 0},
    }
    return _json(tables)[1:-1]


def _stacks(database: Database, functions: list[dict[str, Any]]) -> Iterator[str]:
    """The table of paths, whose numbers are those of nodes: callers come before what they call."""
    nodes = database.arrays("SELECT parent, function_id FROM nodes ORDER BY node")
    known = np.array([row["function_id"] for row in functions] or [0])
    places = np.minimum(np.searchsorted(known, nodes["function_id"]), len(known) - 1)
    frames = np.where(known[places] == nodes["function_id"], places, len(functions))
    count = len(frames)
    parents = np.where(nodes["parent"] < np.arange(count), nodes["parent"], -1)
    yield f'"stackTable": {{"length": {count}, "frame": ['
    yield from _listed(frames)
    yield '], "prefix": ['
    yield from _listed(parents, negative="null")
    yield "]}"


def _listed(values: NDArray[Any], negative: str | None = None) -> Iterator[str]:
    """The elements of a JSON array; `negative` stands for numbers below zero."""
    for first in range(0, len(values), _PIECE):
        part = values[first : first + _PIECE].tolist()
        texts = [str(value) if negative is None or value >= 0 else negative for value in part]
        yield ("," if first else "") + ",".join(texts)


def _samples(database: Database, selection: Selection, chosen: str) -> Iterator[tuple[int, Iterator[str]]]:
    """The table of samples of each thread that has any."""
    calls = database.rows(f"SELECT count(*) AS calls FROM call_rows WHERE {chosen}")[0]["calls"]
    found = _summed(database, chosen) if calls > MOST_CALLS else _in_order(database, selection)
    for thread, nodes, times, weights in found:
        yield thread, _table(nodes, times, weights, database.has_clock)


def _table(nodes: NDArray[Any], times: NDArray[Any], weights: NDArray[Any], has_clock: bool) -> Iterator[str]:
    """Times and weights in nanoseconds, or calls."""
    scale = 1e6 if has_clock else 1
    yield f'{{"length": {len(nodes)}, "weightType": "{"tracing-ms" if has_clock else "samples"}", "stack": ['
    yield from _listed(nodes, negative="null")
    yield '], "time": ['
    yield from _listed(times / scale)
    yield '], "weight": ['
    yield from _listed(weights / scale if has_clock else weights)
    yield "]}"


_Sampled = Iterator[tuple[int, NDArray[Any], NDArray[Any], NDArray[Any]]]


def _in_order(database: Database, selection: Selection) -> _Sampled:
    """(thread, nodes, times, weights): what is at work, step by step."""
    thread = -1
    parts: list[NDArray[np.void]] = []
    for batch in step_batches(database, selection):
        if batch.thread != thread and parts:
            yield thread, *_weighed(np.concatenate(parts), database.has_clock)
            parts = []
        thread = batch.thread
        parts.append(batch.steps[["time", "node", "is_entry"]].copy())
    if parts:
        yield thread, *_weighed(np.concatenate(parts), database.has_clock)


def _weighed(steps: NDArray[np.void], has_clock: bool) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    if not has_clock:
        entries = steps[steps["is_entry"] != 0]
        return entries["node"], entries["time"], np.ones(len(entries), np.int64)
    lasting = np.diff(steps["time"], append=steps["time"][-1:])
    kept = lasting > 0
    kept[-1] = True  # tells where the last call ends
    return steps["node"][kept], steps["time"][kept], lasting[kept]


def _summed(database: Database, chosen: str) -> _Sampled:
    """The same, each path once, one behind the other from the thread's start on."""
    value = "self_ns" if database.has_clock else "1"
    found = database.arrays(
        f"SELECT thread, node, sum({value})::BIGINT AS weight FROM call_rows WHERE {chosen} "
        "GROUP BY ALL HAVING weight > 0 ORDER BY thread, node"
    )
    starts = {row["thread"]: row["start_ns"] or 0 for row in database.rows("SELECT thread, start_ns FROM threads")}
    for thread in np.unique(found["thread"]).tolist():
        mine = found["thread"] == thread
        weights = found["weight"][mine]
        yield thread, found["node"][mine], starts[thread] + np.cumsum(weights) - weights, weights

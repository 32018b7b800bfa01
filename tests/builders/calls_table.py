"""Writes small traces with a calls table, from call trees written down in a test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from callscope.reports.database import Database

ENDINGS = ("return", "tail_call", "unwound", "running")


def schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind) for name, kind in columns.items()])


CALLS = schema(
    call_id=pa.int64(),
    up=pa.int64(),
    thread=pa.int32(),
    function_id=pa.int32(),
    site=pa.int32(),
    start_ns=pa.int64(),
    duration_ns=pa.int64(),
    self_ns=pa.int64(),
    depth=pa.int32(),
    ended_by=pa.uint8(),
    descendants=pa.int64(),
    node=pa.int32(),
    gap=pa.bool_(),
)
FUNCTIONS = schema(
    function_id=pa.int32(),
    module=pa.string(),
    path=pa.string(),
    name=pa.string(),
    address=pa.int64(),
    size=pa.int64(),
    file=pa.string(),
    line=pa.int32(),
    owner=pa.int32(),
    traced=pa.bool_(),
)
SITES = schema(
    site=pa.int32(),
    process=pa.int32(),
    address=pa.uint64(),
    module=pa.string(),
    rva=pa.int64(),
    function_id=pa.int32(),
    name=pa.string(),
    file=pa.string(),
    line=pa.int32(),
)
NODES = schema(
    node=pa.int32(),
    parent=pa.int32(),
    function_id=pa.int32(),
    depth=pa.int32(),
    outermost=pa.bool_(),
    calls=pa.int64(),
    total_ns=pa.int64(),
    self_ns=pa.int64(),
    min_ns=pa.int64(),
    max_ns=pa.int64(),
)
DURATIONS = schema(
    function_id=pa.int32(),
    bucket=pa.int32(),
    calls=pa.int64(),
)
THREADS = schema(
    thread=pa.int32(),
    process=pa.int32(),
    pid=pa.int64(),
    tid=pa.int64(),
    name=pa.string(),
    start_ns=pa.int64(),
    end_ns=pa.int64(),
    calls=pa.int64(),
    events=pa.int64(),
)
PROCESSES = schema(
    process=pa.int32(),
    parent=pa.int32(),
    pid=pa.int64(),
    ppid=pa.int64(),
    cause=pa.string(),
    path=pa.string(),
    command=pa.list_(pa.string()),
    start_ns=pa.int64(),
    end_ns=pa.int64(),
)
MODULES = schema(
    process=pa.int32(),
    base=pa.uint64(),
    span=pa.int64(),
    path=pa.string(),
    build_id=pa.string(),
    id_base=pa.int32(),
    load_ns=pa.int64(),
    unload_ns=pa.int64(),
    traced=pa.bool_(),
    function_count=pa.int64(),
    patch_count=pa.int64(),
    refused=pa.int64(),
)

BASE = 0x5555_5555_0000


@dataclass
class Call:
    """One call: `function` as 'name' or 'module!name', its own time, what it called.

    via: the untraced function between it and its caller. A call that ended by a tail call lasts for its own time only.
    """

    function: str
    self_ns: int
    children: tuple[Call, ...] = ()
    ended_by: str = "return"
    via: str | None = None


@dataclass
class Thread:
    """One thread: the calls at its root, and the time before each."""

    tid: int
    roots: tuple[Call, ...]
    pid: int = 1000
    name: str = ""
    start_ns: int = 0
    process: int = 1


@dataclass
class TraceBuilder:
    """Collects the rows of all tables of one trace."""

    threads: list[Thread]
    clock: bool = True
    session: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    processes: list[dict[str, Any]] = field(default_factory=list)
    modules: list[dict[str, Any]] = field(default_factory=list)

    def write(self, trace: Path) -> Path:
        """Write session.json and calls/ into the new directory `trace`."""
        calls = trace / "calls"
        calls.mkdir(parents=True, mode=0o700)
        self._functions: dict[str, int] = {}
        self._sites: dict[tuple[int, str], int] = {}
        self._nodes: dict[tuple[int, int], dict[str, Any]] = {}
        self._site_rows: list[dict[str, Any]] = []
        first = 0
        thread_rows = []
        for number, thread in enumerate(self.threads, 1):
            rows = self._thread_rows(number, thread, first)
            first += len(rows)
            if rows:
                pq.write_table(pa.Table.from_pylist(rows, CALLS), calls / f"calls-{number}-0.parquet")
            end = max((row["start_ns"] + row["duration_ns"] for row in rows), default=thread.start_ns)
            thread_rows.append(
                {
                    "thread": number,
                    "process": thread.process,
                    "pid": thread.pid,
                    "tid": thread.tid,
                    "name": thread.name,
                    "start_ns": thread.start_ns,
                    "end_ns": end,
                    "calls": len(rows),
                    "events": 2 * len(rows),
                }
            )
        tables = {
            "functions": (FUNCTIONS, list(self._function_rows())),
            "sites": (SITES, self._site_rows),
            "nodes": (NODES, [self._node_row(node) for node in self._nodes.values()]),
            "durations": (DURATIONS, list(self._duration_rows())),
            "threads": (THREADS, thread_rows),
            "processes": (PROCESSES, self.processes or [self._process_row()]),
            "modules": (MODULES, self.modules or [self._module_row()]),
        }
        for name, (schema, rows) in tables.items():
            pq.write_table(pa.Table.from_pylist(rows, schema), calls / f"{name}.parquet")
        duration = max((row["end_ns"] for row in thread_rows), default=0)
        meta = {"version": 1, "calls": first, "lost_events": 0, "duration_ns": duration, "warnings": [], **self.meta}
        (calls / "meta.json").write_text(json.dumps(meta))
        (trace / "session.json").write_text(json.dumps(self.session_json()))
        return trace

    def session_json(self) -> dict[str, Any]:
        """What the recorder would have written."""
        return {
            "format": "callscope-trace",
            "version": 1,
            "callscope": "0.1.0",
            "status": "complete",
            "command": ["git", "log"],
            "cwd": "/home/user",
            "host": {"hostname": "box", "kernel": "Linux 6.1.0", "machine": "x86_64", "cpus": 2},
            "options": {},
            "features": 0 if self.clock else 1,
            "clock": {
                "start": {"tsc": 0, "monotonic_ns": 0, "realtime_ns": 1_700_000_000_000_000_000},
                "end": {"tsc": 3_000_000, "monotonic_ns": 1_000_000, "realtime_ns": 1_700_000_000_001_000_000},
            },
            "started": "2023-11-14T22:13:20+00:00",
            "exit_status": 0,
            "main_pid": 1000,
            "images": [],
            "rejected": [],
        } | self.session

    def _thread_rows(self, number: int, thread: Thread, first: int) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []

        def add(call: Call, parent: dict[str, Any] | None, parent_node: int, start: int) -> dict[str, Any]:
            function = self._function(call.function)
            caller = call.via or (self._name(parent["function_id"]) if parent else "libc.so.6!__libc_start_main")
            node = self._node(parent_node, function)
            row: dict[str, Any] = {
                "call_id": first + len(rows),
                "up": first + len(rows) - parent["call_id"] if parent else 0,
                "thread": number,
                "function_id": function,
                "site": self._site(thread.process, caller),
                "start_ns": start,
                "depth": parent["depth"] + 1 if parent else 0,
                "ended_by": ENDINGS.index(call.ended_by),
                "node": node["node"],
                "gap": call.via is not None,
            }
            rows.append(row)
            now = start + call.self_ns // 2
            for child in call.children:
                now += add(child, row, node["node"], now)["duration_ns"]
            row["self_ns"] = call.self_ns
            row["duration_ns"] = now + call.self_ns - call.self_ns // 2 - start
            if call.ended_by == "tail_call":  # it was over when it made its last call
                row["duration_ns"] = call.self_ns
            row["descendants"] = first + len(rows) - 1 - row["call_id"]
            node["durations"].append((row["duration_ns"], row["self_ns"]))
            return row

        now = thread.start_ns
        for root in thread.roots:
            now += add(root, None, -1, now)["duration_ns"] + 100
        if not self.clock:
            for row in rows:
                row.update(start_ns=0, duration_ns=0, self_ns=0)
        return rows

    def _function(self, text: str) -> int:
        return self._functions.setdefault(text, len(self._functions) + 1)

    def _name(self, function: int) -> str:
        return list(self._functions)[function - 1]

    def _node(self, parent: int, function: int) -> dict[str, Any]:
        node = self._nodes.get((parent, function))
        if node is None:
            ancestors = list(self._ancestors(parent))
            node = {
                "node": len(self._nodes),
                "parent": parent,
                "function_id": function,
                "depth": len(ancestors),
                "outermost": all(ancestor["function_id"] != function for ancestor in ancestors),
                "durations": [],
            }
            self._nodes[parent, function] = node
        return node

    def _ancestors(self, node: int) -> Iterator[dict[str, Any]]:
        by_number = {row["node"]: row for row in self._nodes.values()}
        while node >= 0:
            yield by_number[node]
            node = by_number[node]["parent"]

    def _node_row(self, node: dict[str, Any]) -> dict[str, Any]:
        durations = [duration if self.clock else 0 for duration, _ in node["durations"]]
        return {key: value for key, value in node.items() if key != "durations"} | {
            "calls": len(durations),
            "total_ns": sum(durations),
            "self_ns": sum(own for _, own in node["durations"]) if self.clock else 0,
            "min_ns": min(durations),
            "max_ns": max(durations),
        }

    def _duration_rows(self) -> Iterator[dict[str, Any]]:
        counts: dict[tuple[int, int], int] = {}
        for node in self._nodes.values():
            for duration, _ in node["durations"]:
                key = node["function_id"], bucket_of(duration if self.clock else 0)
                counts[key] = counts.get(key, 0) + 1
        for (function, bucket), calls in sorted(counts.items()):
            yield {"function_id": function, "bucket": bucket, "calls": calls}

    def _function_rows(self) -> Iterator[dict[str, Any]]:
        for text, number in self._functions.items():
            module, name = split(text)
            yield {
                "function_id": number,
                "module": module,
                "path": f"/usr/bin/{module}",
                "name": name,
                "address": 0x1000 + 0x100 * number,
                "size": 0x80,
                "file": None,
                "line": None,
                "owner": number,
                "traced": True,
            }

    def _site(self, process: int, caller: str) -> int:
        site = self._sites.get((process, caller))
        if site is None:
            site = self._sites[process, caller] = len(self._sites)
            module, name = split(caller)
            rva = 0x2000 + 16 * site
            self._site_rows.append(
                {
                    "site": site,
                    "process": process,
                    "address": BASE + rva,
                    "module": module,
                    "rva": rva,
                    "function_id": self._functions.get(caller, -1),
                    "name": name,
                }
            )
        return site

    def _process_row(self) -> dict[str, Any]:
        return {
            "process": 1,
            "parent": 0,
            "pid": 1000,
            "ppid": 999,
            "cause": "launch",
            "path": "/usr/bin/git",
            "command": ["git", "log"],
            "start_ns": 0,
            "end_ns": None,
        }

    def _module_row(self) -> dict[str, Any]:
        return {
            "process": 1,
            "base": BASE,
            "span": 0x30_0000,
            "path": "/usr/bin/git",
            "build_id": "ab" * 20,
            "id_base": 1,
            "load_ns": 0,
            "unload_ns": None,
            "traced": True,
            "function_count": 5900,
            "patch_count": 13000,
            "refused": 0,
        }


def split(text: str) -> tuple[str, str]:
    """The module and the name of 'module!name'; git when there is no module."""
    module, mark, name = text.partition("!")
    return (module, name) if mark else ("git", text)


def bucket_of(value: int) -> int:
    """The bucket of a duration: 16 to every power of two, exact below 32."""
    if value < 16:
        return value
    exponent = value.bit_length() - 1
    return (exponent - 3) * 16 + (value >> (exponent - 4)) - 16


def sample() -> TraceBuilder:
    """A trace of two threads with recursion, a gap, a tail call, an exception and a call that never ended."""
    compare = Call("compare", 300, via="libc.so.6!qsort")
    walk = Call("walk", 1_000, (Call("walk", 500, (Call("walk", 200), Call("visit", 90))), Call("visit", 80)))
    emit = Call("emit", 700, ended_by="tail_call")
    main = Call(
        "main",
        40_000,
        (
            Call("setup", 2_500),
            Call("cmd_log", 12_000, (walk, compare, compare, emit, Call("flush", 950))),
            Call("fail", 1_100, (Call("throw_error", 60, ended_by="unwound"),), ended_by="unwound"),
            Call("wait_for_worker", 1_500_000, ended_by="running"),
        ),
        ended_by="running",
    )
    worker = tuple(Call("work", 20_000, (Call("pack::Stream<int, char>::push(int)", 4_000),)) for _ in range(3))
    return TraceBuilder([Thread(1000, (main,), name="git"), Thread(1001, worker, name="worker", start_ns=30_000)])


def open_built(builder: TraceBuilder | None, trace: Path) -> Database:
    """Write a trace, unless it is there, and open its tables, as callscope.reports.database.open_database does."""
    if builder is not None:
        builder.write(trace)
    session = json.loads((trace / "session.json").read_text())
    meta = json.loads((trace / "calls/meta.json").read_text())
    return Database(trace, trace / "calls", session, meta, has_clock=not session["features"])

"""Traces into a data set: Parquet files by host, program and day (Hive's partitioning), a row a call.

    DATASET/dataset.json                                   what was collected
    DATASET/calls/host=H/program=P/day=D/ID_N.parquet      the calls; ID is the trace's

Rows hold names instead of numbers, so that they mean the same wherever they come from. A trace collected again replaces
what was there of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any, Final

from callscope.errors import TraceError, UsageError
from callscope.reports.database import Database, open_database, quoted
from callscope.reports.selection import check_calls

INDEX: Final = "dataset.json"
CALLS: Final = "calls"
FORMAT: Final = "callscope-dataset"
VERSION: Final = 1

_ROWS: Final = """
SELECT {host} AS host, {trace} AS trace, p.process, p.pid, p.program, t.tid, t.name AS thread, c.call_id,
       CASE WHEN c.up > 0 THEN c.call_id - c.up END AS parent_id,
       coalesce(f.name, '?') AS function, coalesce(f.module, '') AS module, f.file, f.line,
       pf.name AS caller, pf.module AS caller_module,
       c.start_ns + {origin} AS start_utc_ns, c.duration_ns, c.self_ns, c.depth, e.ended_by, n.outermost,
       strftime(make_timestamp((c.start_ns + {origin}) // 1000), '%Y-%m-%d') AS day
FROM call_rows c
JOIN threads t ON t.thread = c.thread
JOIN collected_processes p ON p.process = t.process
JOIN nodes n ON n.node = c.node
LEFT JOIN nodes pn ON pn.node = n.parent
LEFT JOIN functions f ON f.function_id = c.function_id
LEFT JOIN functions pf ON pf.function_id = pn.function_id
JOIN (VALUES (0, 'return'), (1, 'tail_call'), (2, 'unwound'), (3, 'running'), (4, 'off')) e(number, ended_by)
    ON e.number = c.ended_by
"""

Progress = Callable[[str], None]


def find_traces(places: Iterable[Path]) -> list[Path]:
    """The traces among `places`, and in directories that are none; each once. Raises UsageError when there is none."""
    found: dict[Path, None] = {}
    for place in places:
        if (place / "session.json").is_file():
            found[place] = None
            continue
        if not place.is_dir():
            raise UsageError(f"{place} is neither a trace nor a directory of traces: check the path")
        found |= dict.fromkeys(sorted(path.parent for path in place.glob("**/session.json")))
    if not found:
        raise UsageError("there is no trace in " + ", ".join(map(str, places)) + ": make one with callscope record")
    return list(found)


def collect(traces: Iterable[Path], target: Path, tell: Progress = lambda _: None) -> list[dict[str, Any]]:
    """Add traces to the data set `target`, which is made when missing; what it then holds of them, an entry a trace.

    `tell` is given a line for a trace that has no calls and is left out. Raises TraceError, UsageError.
    """
    index: dict[str, Any] = (
        read_index(target) if target.exists() else {"format": FORMAT, "version": VERSION, "traces": []}
    )
    added = []
    try:
        (target / CALLS).mkdir(mode=0o700, parents=True, exist_ok=True)
        target.chmod(0o700)
        for trace in traces:
            with open_database(trace) as database:
                if not database.call_count:
                    tell(f"{trace} holds no calls: left out")
                    continue
                entry = _add(database, target)
            others = [old for old in index["traces"] if old["trace"] != entry["trace"]]
            index["traces"] = [*others, entry]
            _write_index(target, index)
            added.append(entry)
    except OSError as error:
        raise TraceError(
            f"cannot write {target} ({error.strerror}): free some space, or choose another place"
        ) from None
    return added


def read_index(dataset: Path) -> dict[str, Any]:
    """The contents of a data set's index. Raises UsageError when it is none of this version."""
    try:
        index = json.loads((dataset / INDEX).read_text())
    except (OSError, ValueError):
        index = None
    if not isinstance(index, dict) or index.get("format") != FORMAT or not isinstance(index.get("traces"), list):
        raise UsageError(f"{dataset} is not a data set: make one with callscope collect TRACE... -o {dataset}")
    if index.get("version") != VERSION:
        raise UsageError(f"{dataset} is of another version of callscope: collect the traces again")
    return index


def _write_index(target: Path, index: dict[str, Any]) -> None:
    partial = target / (INDEX + ".tmp")
    partial.write_text(json.dumps(index, indent=1))
    partial.chmod(0o600)
    partial.replace(target / INDEX)


def _add(database: Database, target: Path) -> dict[str, Any]:
    check_calls(database)
    session = database.session
    host = _name(str((session.get("host") or {}).get("hostname") or "unknown"))
    start = (session.get("clock") or {}).get("start") or {}
    origin = int(start.get("realtime_ns") or 0)
    key = json.dumps([host, origin, start.get("tsc"), session.get("command")])
    trace = hashlib.sha256(key.encode()).hexdigest()[:16]
    _forget(target, trace)
    rows = database.rows("SELECT process, pid, path FROM processes ORDER BY process")
    programs = [(row["process"], row["pid"], _name(PurePath(row["path"] or "unknown").name)) for row in rows]
    database.create_table("collected_processes", "process INTEGER, pid BIGINT, program VARCHAR", programs)
    query = _ROWS.format(host=quoted(host), trace=quoted(trace), origin=origin)
    database.rows(
        f"COPY ({query}) TO {quoted(str(target / CALLS))} (FORMAT parquet, COMPRESSION zstd, OVERWRITE_OR_IGNORE, "
        f"PARTITION_BY (host, program, day), FILENAME_PATTERN {quoted(trace + '_{i}')})"
    )
    for path in _files(target):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return {
        "trace": trace,
        "path": str(database.trace),
        "host": host,
        "command": session.get("command"),
        "processes": len(programs),
        "calls": database.call_count,
    }


def _forget(target: Path, trace: str) -> None:
    for path in list(_files(target)):
        if path.is_file() and path.name.startswith(f"{trace}_"):
            path.unlink()


def _files(target: Path) -> Iterator[Path]:
    return (target / CALLS).rglob("*")


def _name(text: str) -> str:
    """A name for a directory, which every engine takes as it is."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in text)[:100]
    return kept.strip(".") or "unknown"

"""The Parquet files of a calls table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from callscope.calls.captures import read_layouts
from callscope.calls.names import ImageNames
from callscope.calls.scripts import script_rows
from callscope.calls.targets import Target
from callscope.trace.open import Trace

if TYPE_CHECKING:
    from callscope.calls.build import ThreadCalls

PART_ROWS = 64 << 20
"""rows of one file: an unfinished Parquet file cannot be read, so a long table rolls over"""
_CALLS: dict[str, Any] = {
    "call_id": pa.int64(),
    "up": pa.int64(),
    "thread": pa.int32(),
    "function_id": pa.int32(),
    "site": pa.int32(),
    "start_ns": pa.int64(),
    "duration_ns": pa.int64(),
    "self_ns": pa.int64(),
    "depth": pa.int32(),
    "ended_by": pa.uint8(),
    "descendants": pa.int64(),
    "node": pa.int32(),
    "gap": pa.bool_(),
}
CALLS = pa.schema(list(_CALLS.items()))
_DICTIONARY = ["up", "thread", "function_id", "site", "depth", "ended_by", "descendants", "node"]
_ENCODINGS = {
    "call_id": "DELTA_BINARY_PACKED",
    "start_ns": "DELTA_BINARY_PACKED",
    "duration_ns": "BYTE_STREAM_SPLIT",
    "self_ns": "BYTE_STREAM_SPLIT",
}


class CallsWriter:
    """Writes the rows of one thread, in order of call; a context manager."""

    def __init__(self, directory: Path, thread: int, first_call: int) -> None:
        self._directory, self._thread, self._next = directory, thread, first_call
        self._file: pq.ParquetWriter | None = None
        self._part, self._rows = 0, 0

    def __enter__(self) -> CallsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def write(self, columns: dict[str, NDArray[Any]]) -> None:
        """Write a batch of the kernel's columns as one row group."""
        count = len(columns["up"])
        if not count:
            return
        arrays: dict[str, NDArray[Any]] = {
            "call_id": np.arange(self._next, self._next + count),
            "thread": np.full(count, self._thread, np.int32),
            "function_id": columns["function"],
            "gap": columns["gap"].astype(np.bool_),
        }
        batch = pa.table(
            [_array(arrays[name] if name in arrays else columns[name]) for name in CALLS.names], schema=CALLS
        )
        if self._file is None or self._rows + count > PART_ROWS:
            self._close()
            path = self._directory / f"calls-{self._thread}-{self._part}.parquet"
            self._file = pq.ParquetWriter(
                path,
                CALLS,
                compression="zstd",
                compression_level=1,
                use_dictionary=_DICTIONARY,  # type: ignore[arg-type]  # the stubs know only bool, the writer takes names too
                column_encoding=_ENCODINGS,
            )
            self._part, self._rows = self._part + 1, 0
        self._file.write_table(batch, row_group_size=count)
        self._next += count
        self._rows += count

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _array(values: NDArray[Any]) -> Any:
    return pa.array(values)


def write_tables(
    trace: Trace,
    target: Path,
    threads: list[ThreadCalls],
    sites: list[tuple[int, np.void]],
    nodes: NDArray[np.void],
    outermost: NDArray[np.uint8],
    targets: list[Target],
) -> None:
    """Write all tables but the calls.

    `sites`: (thread, SITE record) by site number; `targets`: of recorded call sites.
    """
    parents = nodes["parent"].astype(np.int64)
    parents[nodes["parent"] == 0xFFFFFFFF] = -1
    _write(
        target,
        "nodes",
        {
            "node": pa.array(np.arange(len(nodes)), pa.int32()),
            "parent": pa.array(parents, pa.int32()),
            "function_id": pa.array(nodes["function"].astype(np.int64), pa.int32()),
            "depth": pa.array(nodes["depth"].astype(np.int64), pa.int32()),
            "outermost": pa.array(outermost.astype(np.bool_)),
            **{
                name: pa.array(nodes[name].astype(np.int64))
                for name in ("calls", "total_ns", "self_ns", "min_ns", "max_ns")
            },
        },
    )
    buckets = np.concatenate([thread.counted.buckets for thread in threads]) if threads else np.empty(0, "V16")
    _write(
        target,
        "durations",
        {
            "function_id": pa.array(buckets["function"].astype(np.int64) if len(buckets) else [], pa.int32()),
            "bucket": pa.array(buckets["bucket"].astype(np.int64) if len(buckets) else [], pa.int32()),
            "calls": pa.array(buckets["calls"].astype(np.int64) if len(buckets) else [], pa.int64()),
        },
    )
    names: dict[tuple[str, bytes], ImageNames] = {}
    unpacked = [image for image in trace.file.images if image.memory]
    memory = {image.build_id: str(trace.path / image.memory) for image in unpacked}
    for module in trace.modules:
        build_id = module.build_id
        own = ImageNames(module.path, build_id, trace.warnings, memory.get(build_id))
        names.setdefault((module.path, build_id), own)
    _write_functions(trace, target, nodes, names, targets)
    _write_sites(trace, target, sites, names)
    _write_history(trace, target, threads)


def _write(target: Path, name: str, columns: dict[str, Any]) -> None:
    pq.write_table(pa.table(columns), target / f"{name}.parquet", compression="zstd")


def _write_functions(
    trace: Trace,
    target: Path,
    nodes: NDArray[np.void],
    names: dict[tuple[str, bytes], ImageNames],
    targets: list[Target],
) -> None:
    called = np.unique(nodes["function"]).astype(np.int64)
    rows: list[dict[str, Any]] = []
    for image in trace.images:
        ids = called[(called >= image.id_base) & (called < image.id_base + image.image.function_count)]
        layouts = read_layouts(trace.path / image.image.arguments, trace.warnings) if image.image.arguments else {}
        known = image.functions[ids - image.id_base] if image.is_known else np.zeros(len(ids), image.functions.dtype)
        build_id = (
            bytes.fromhex(image.image.build_id) if isinstance(image.image.build_id, str) else image.image.build_id
        )
        names_here = names.get((image.image.path, build_id)) or ImageNames(image.image.path, build_id, trace.warnings)
        rvas = known["rva"].astype(np.int64)
        found = names_here.names(rvas)
        for number, function, name in zip(ids.tolist(), known, found, strict=True):
            file, line = names_here.location(int(function["rva"]))
            rows.append(
                {
                    "function_id": number,
                    "module": names_here.module,
                    "path": image.image.path,
                    "name": name,
                    "address": int(function["rva"]),
                    "size": int(function["bytes"]),
                    "file": file,
                    "line": line,
                    "owner": image.id_base + int(function["owner"]),
                    "traced": True,
                    "captures": layouts.get(str(number - image.id_base)),
                }
            )
    rows += script_rows(trace.history.scripts, called)
    rows += _target_rows(trace, names, targets)
    _write_rows(
        target,
        "functions",
        rows,
        {
            "function_id": pa.int32(),
            "module": pa.string(),
            "path": pa.string(),
            "name": pa.string(),
            "address": pa.int64(),
            "size": pa.int64(),
            "file": pa.string(),
            "line": pa.int32(),
            "owner": pa.int32(),
            "traced": pa.bool_(),
            "captures": pa.string(),
        },
    )


def _target_rows(
    trace: Trace, names: dict[tuple[str, bytes], ImageNames], targets: list[Target]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    modules = trace.modules
    by_module: dict[int, list[Target]] = {}
    for target in targets:
        by_module.setdefault(target.module, []).append(target)
    for index, here in by_module.items():
        module = modules[index] if index >= 0 else None
        image = names[module.path, module.build_id] if module is not None else None
        rvas = np.array([target.rva for target in here], np.int64)
        found = image.names(rvas) if image is not None else [f"{rva:#x}" for rva in rvas.tolist()]
        for target, name in zip(here, found, strict=True):
            file, line = image.location(target.rva) if image is not None else (None, None)
            rows.append(
                {
                    "function_id": target.function_id,
                    "module": image.module if image is not None else "[unknown]",
                    "path": module.path if module is not None else "",
                    "name": name,
                    "address": target.rva,
                    "size": 0,
                    "file": file,
                    "line": line,
                    "owner": target.function_id,
                    "traced": False,
                    "captures": None,
                }
            )
    return rows


def _write_sites(
    trace: Trace, target: Path, sites: list[tuple[int, np.void]], names: dict[tuple[str, bytes], ImageNames]
) -> None:
    modules = trace.modules
    process_of = {thread.number: thread.process for thread in trace.threads}
    by_module: dict[int, list[int]] = {}
    for number, (_, site) in enumerate(sites):
        by_module.setdefault(int(site["module"]), []).append(number)
    rows: list[dict[str, Any]] = [{} for _ in sites]
    for index, numbers in by_module.items():
        module = modules[index] if index >= 0 else None
        rvas = np.array([int(sites[number][1]["rva"]) for number in numbers], np.int64)
        found: list[str] = []
        if module is not None:
            image = names[module.path, module.build_id]
            # The call ends just before the return address.
            starts = image.starts(rvas - 1)
            found = image.names(starts)
        for place, number in enumerate(numbers):
            thread, site = sites[number]
            low = int(site["return_address"])
            function = int(site["function"])
            file, line = image.location(int(rvas[place]) - 1) if module is not None else (None, None)
            rows[number] = {
                "site": number,
                "process": process_of[thread],
                "address": module.base + int(rvas[place]) if module is not None else low,
                "module": image.module if module is not None else None,
                "rva": int(rvas[place]) if module is not None else None,
                "function_id": function if function else -1,
                "name": found[place] if module is not None else f"{low:#x}",
                "file": file,
                "line": line,
            }
    _write_rows(
        target,
        "sites",
        rows,
        {
            "site": pa.int32(),
            "process": pa.int32(),
            "address": pa.uint64(),
            "module": pa.string(),
            "rva": pa.int64(),
            "function_id": pa.int32(),
            "name": pa.string(),
            "file": pa.string(),
            "line": pa.int32(),
        },
    )


def _write_history(trace: Trace, target: Path, threads: list[ThreadCalls]) -> None:
    def ns(tsc: int | None) -> int | None:
        return None if tsc is None else trace.clock.ns(tsc)

    counted = {thread.number: thread.counted.counts for thread in threads}
    nothing = {"calls": 0, "events": 0, "first_tsc": 0, "last_tsc": 0}
    rows = []
    for thread in trace.threads:
        counts = counted.get(thread.number, nothing)
        start = thread.start_tsc or counts["first_tsc"] or None
        rows.append(
            {
                "thread": thread.number,
                "process": thread.process,
                "pid": thread.pid,
                "tid": thread.tid,
                "name": thread.name,
                "start_ns": ns(start),
                "end_ns": ns(thread.end_tsc or counts["last_tsc"] or start),
                "calls": counts["calls"],
                "events": counts["events"],
            }
        )
    integers = {name: pa.int64() for name in ("pid", "tid", "start_ns", "end_ns", "calls", "events")}
    _write_rows(target, "threads", rows, {"thread": pa.int32(), "process": pa.int32(), **integers, "name": pa.string()})
    _write_rows(
        target,
        "processes",
        [
            {
                "process": process.number,
                "parent": process.parent,
                "pid": process.pid,
                "ppid": process.ppid,
                "cause": process.cause,
                "path": process.path,
                "command": list(process.command),
                "start_ns": ns(process.start_tsc),
                "end_ns": ns(process.end_tsc),
            }
            for process in trace.processes
        ],
        {
            "process": pa.int32(),
            "parent": pa.int32(),
            "pid": pa.int64(),
            "ppid": pa.int64(),
            "cause": pa.string(),
            "path": pa.string(),
            "command": pa.list_(pa.string()),
            "start_ns": pa.int64(),
            "end_ns": pa.int64(),
        },
    )
    _write_rows(
        target,
        "modules",
        [
            {
                "process": module.process,
                "base": module.base,
                "span": module.span,
                "path": module.path,
                "build_id": module.build_id.hex(),
                "id_base": module.id_base,
                "load_ns": ns(module.load_tsc),
                "unload_ns": ns(module.unload_tsc),
                "traced": module.is_traced,
                "function_count": module.function_count,
                "patch_count": module.patch_count,
                "refused": module.patch_refused,
            }
            for module in trace.modules
        ],
        {
            "process": pa.int32(),
            "base": pa.uint64(),
            "span": pa.int64(),
            "path": pa.string(),
            "build_id": pa.string(),
            "id_base": pa.int32(),
            "load_ns": pa.int64(),
            "unload_ns": pa.int64(),
            "traced": pa.bool_(),
            "function_count": pa.int64(),
            "patch_count": pa.int64(),
            "refused": pa.int64(),
        },
    )


def _write_rows(target: Path, name: str, rows: list[dict[str, Any]], columns: dict[str, Any]) -> None:
    table = pa.Table.from_pylist(rows, pa.schema(list(columns.items())))
    pq.write_table(table, target / f"{name}.parquet", compression="zstd")

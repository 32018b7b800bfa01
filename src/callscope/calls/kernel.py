"""The kernel's side of a rebuild: its structures (native/kernel/rebuild.h) and a pass over one thread."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callscope import format as records
from callscope.errors import NativeError
from callscope.native import kernel
from callscope.trace.events import EventsReader

BLOCK_CALLS = 65536
ROWS = 1 << 16
"""A batch, which becomes a row group, has BLOCK_CALLS rows more: few enough for a viewer, which reads whole groups, and
enough for DuckDB."""
NO_NODE = 0xFFFFFFFF
CALLS_RECORDED, CALLS_ONCE = 1, 2
"""call sites were recorded; nothing else was, and each of them once"""
_ROWS_FULL = 3
_ERRORS = {1: "there is not enough memory", 2: "it was asked for something impossible"}

IMAGE_TABLES = np.dtype(
    [("functions", "<u8"), ("rows", "<u8"), ("function_count", "<u4"), ("row_count", "<u4"), ("id_base", "<u4"),
     ("reserved", "<u4")]
)  # fmt: skip
MODULE_SPAN = np.dtype(
    [("low", "<u4"), ("bytes", "<u4"), ("rva", "<u4"), ("module", "<u4"), ("image", "<i4"), ("reach", "<u4"),
     ("load_tsc", "<u8"), ("unload_tsc", "<u8")]
)  # fmt: skip
LATE = np.dtype([("duration_ns", "<i8"), ("self_ns", "<i8"), ("descendants", "<i8"), ("ended_by", "<u8")])
SITE = np.dtype([("return_address", "<u4"), ("module", "<i4"), ("rva", "<u4"), ("function", "<u4")])
NODE = np.dtype(
    [("parent", "<u4"), ("function", "<u4"), ("depth", "<u4"), ("reserved", "<u4"), ("calls", "<u8"),
     ("total_ns", "<i8"), ("self_ns", "<i8"), ("min_ns", "<i8"), ("max_ns", "<i8")]
)  # fmt: skip
OFF_SPAN = np.dtype([("off_tsc", "<u8"), ("on_tsc", "<u8")])
CAPTURED = np.dtype([("call", "<u8"), ("offset", "<u8"), ("bytes", "<u4"), ("kind", "<u4")])
BUCKET = np.dtype([("function", "<u4"), ("bucket", "<u4"), ("calls", "<u8")])
COLUMNS: dict[str, str] = {
    "up": "<i8",
    "start_ns": "<i8",
    "duration_ns": "<i8",
    "self_ns": "<i8",
    "descendants": "<i8",
    "function": "<i4",
    "site": "<i4",
    "depth": "<i4",
    "node": "<i4",
    "ended_by": "u1",
    "gap": "u1",
}
"""columns of a batch in the order of `struct cs_call_rows`, with their types"""

_INPUT = """
    function_flags function_owner function_out function_limit images image_count modules module_count resumed
    resumed_count late late_count site_names node_names target_names site_count node_count offs off_count script_ids
    script_count origin_tsc tick_limit tick_scale end_tsc
""".split()  # noqa: SIM905
_COUNTS = """
    calls events first_tsc last_tsc unmatched unfinished unknown too_deep merged_paths lanes left nodes sites late
    buckets out assumed resumed node_count site_count late_count bucket_count out_count assumed_count resumed_count
""".split()  # noqa: SIM905


class _Input(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint64) for name in _INPUT),
        *((name, ctypes.c_uint32) for name in ("no_clock", "learning", "emit", "calls")),
    )


class _Rows(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint64) for name in COLUMNS),
        ("capacity", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
    )


class _Result(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in _COUNTS)


@dataclass
class Functions:
    """What the kernel must know of all functions, by function id: FUNCTION_* flags u1, owner ids u4, `out` u1
    (learned).
    """

    flags: NDArray[np.uint8]
    owner: NDArray[np.uint32]
    out: NDArray[np.uint8]


@dataclass
class PassInput:
    """One pass over one thread.

    `resumed`: u8, learned; `late`, and `site_names`, `node_names`, `target_names`: of the first pass, i4; `calls`:
    CALLS_* flags; `kept`: what `images` points to; `offs`: OFF_SPAN, when recording was off;
    `scripts`: as callscope.calls.scripts.script_ids gives them.
    """

    functions: Functions
    images: NDArray[np.void]
    modules: NDArray[np.void]
    origin_tsc: int
    tick_limit: int
    tick_scale: int
    end_tsc: int
    no_clock: bool
    resumed: NDArray[np.uint64]
    kept: list[Any]
    scripts: NDArray[np.uint32]
    offs: NDArray[np.void] = field(default_factory=lambda: np.empty(0, OFF_SPAN))
    calls: int = 0
    learning: bool = False
    late: NDArray[np.void] | None = None
    site_names: NDArray[np.int32] | None = None
    node_names: NDArray[np.int32] | None = None
    target_names: NDArray[np.int32] | None = None


@dataclass(frozen=True)
class Captured:
    """What a chunk holds of arguments and results: CAPTURED records, and the bytes that they point into."""

    rows: NDArray[np.void]
    data: NDArray[np.uint8]


@dataclass
class PassResult:
    """What a pass found. `counts`: the figures of `struct cs_rebuild_result`; arrays are copies."""

    counts: dict[str, int]
    nodes: NDArray[np.void]
    sites: NDArray[np.void]
    late: NDArray[np.void]
    buckets: NDArray[np.void]
    out: NDArray[np.uint32]
    assumed: NDArray[np.uint32]
    resumed: NDArray[np.uint64]


def rebuild_pass(
    reader: EventsReader, chunks: NDArray[np.void], given: PassInput, result: list[PassResult]
) -> Iterator[dict[str, NDArray[Any]] | int | Captured]:
    """Go over one thread's chunks. Yields, in order, bytes read so far (int) and, when emitting, batches of columns and
    what was captured.

    The arrays of a batch are views, good until the next step. At the end the pass's result is appended to `result`.
    Raises NativeError.
    """
    library = kernel()
    emit = given.late is not None
    structure, kept = _input(given, emit)
    handle = ctypes.c_void_p()
    _check(library.cs_rebuild_open(ctypes.byref(structure), ctypes.byref(handle)))
    columns = {name: np.empty(ROWS + BLOCK_CALLS if emit else 0, kind) for name, kind in COLUMNS.items()}
    rows = _Rows(*(array.ctypes.data for array in columns.values()), ROWS + BLOCK_CALLS, 0)
    rows_at = ctypes.byref(rows) if emit else None
    buffer = np.empty(int(chunks["bytes"].max()) if len(chunks) else 0, np.uint8)
    offset = ctypes.c_uint64()
    try:
        for chunk in chunks:
            length = reader.read(chunk, buffer)
            offset.value = 0
            while True:
                status = library.cs_rebuild_feed(
                    handle,
                    ctypes.c_void_p(buffer.ctypes.data),
                    ctypes.c_uint64(length),
                    ctypes.c_uint64(int(chunk["tsc"])),
                    ctypes.byref(offset),
                    rows_at,
                )
                if emit and (captured := _captured(handle, buffer)) is not None:
                    yield captured
                if status != _ROWS_FULL:
                    _check(status)
                    break
                yield {name: array[: rows.count] for name, array in columns.items()}
                rows.count = 0
            yield length
        while (status := library.cs_rebuild_finish(handle, rows_at)) == _ROWS_FULL:
            yield {name: array[: rows.count] for name, array in columns.items()}
            rows.count = 0
        _check(status)
        if rows.count:
            yield {name: array[: rows.count] for name, array in columns.items()}
        result.append(_result(handle))
    finally:
        library.cs_rebuild_close(handle)
        del kept


def _captured(handle: ctypes.c_void_p, buffer: NDArray[np.uint8]) -> Captured | None:
    place = ctypes.c_void_p()
    function = kernel().cs_rebuild_captured
    function.restype = ctypes.c_uint64
    count = function(handle, ctypes.byref(place))
    if not count:
        return None
    rows = np.frombuffer(ctypes.string_at(place.value or 0, count * CAPTURED.itemsize), CAPTURED)
    return Captured(rows, buffer)


def _input(given: PassInput, emit: bool) -> tuple[_Input, list[Any]]:
    arrays = {
        "function_flags": given.functions.flags,
        "function_owner": given.functions.owner,
        "function_out": given.functions.out,
        "images": given.images,
        "modules": given.modules,
        "resumed": given.resumed,
        "late": given.late,
        "site_names": given.site_names,
        "node_names": given.node_names,
        "target_names": given.target_names,
        "script_ids": given.scripts,
        "offs": given.offs,
    }
    structure = _Input()
    kept = []
    for name, array in arrays.items():
        if array is not None:
            array = np.ascontiguousarray(array)
            kept.append(array)
            setattr(structure, name, array.ctypes.data)
    for name, counted in {
        "function_limit": given.functions.flags,
        "image_count": given.images,
        "module_count": given.modules,
        "resumed_count": given.resumed,
        "late_count": given.late,
        "site_count": given.site_names,
        "node_count": given.node_names,
        "script_count": given.scripts,
        "off_count": given.offs,
    }.items():
        setattr(structure, name, 0 if counted is None else len(counted))
    structure.origin_tsc = given.origin_tsc
    structure.tick_limit = given.tick_limit
    structure.tick_scale = given.tick_scale
    structure.end_tsc = given.end_tsc
    structure.no_clock = given.no_clock
    structure.learning = given.learning
    structure.emit = emit
    structure.calls = given.calls
    return structure, kept


def _result(handle: ctypes.c_void_p) -> PassResult:
    raw = _Result()
    _check(kernel().cs_rebuild_result(handle, ctypes.byref(raw)))

    def copy(name: str, count: str, kind: Any) -> NDArray[Any]:
        size = getattr(raw, count) * np.dtype(kind).itemsize
        if not size:
            return np.empty(0, kind)
        return np.frombuffer(ctypes.string_at(getattr(raw, name), size), kind).copy()

    return PassResult(
        {name: int(getattr(raw, name)) for name in _COUNTS[:11]},
        copy("nodes", "node_count", NODE),
        copy("sites", "site_count", SITE),
        copy("late", "late_count", LATE),
        copy("buckets", "bucket_count", BUCKET),
        copy("out", "out_count", "<u4"),
        copy("assumed", "assumed_count", "<u4"),
        copy("resumed", "resumed_count", "<u8"),
    )


class Paths:
    """The kernel's table of paths that merges those of threads. A context manager."""

    def __init__(self) -> None:
        self._handle = ctypes.c_void_p()
        _check(kernel().cs_paths_open(ctypes.byref(self._handle)))

    def __enter__(self) -> Paths:
        return self

    def __exit__(self, *_: object) -> None:
        kernel().cs_paths_close(self._handle)

    def merge(self, nodes: NDArray[np.void]) -> NDArray[np.int32]:
        """Add a thread's NODE records; what each is called here, int32."""
        names = np.empty(len(nodes), np.int32)
        nodes = np.ascontiguousarray(nodes)
        _check(
            kernel().cs_paths_merge(
                self._handle,
                ctypes.c_void_p(nodes.ctypes.data),
                ctypes.c_uint64(len(nodes)),
                ctypes.c_void_p(names.ctypes.data),
            )
        )
        return names

    def result(self) -> tuple[NDArray[np.void], NDArray[np.uint8]]:
        """The merged NODE records, and for each 1 where no ancestor has the same function."""
        nodes, count = ctypes.c_void_p(), ctypes.c_uint64()
        _check(kernel().cs_paths_result(self._handle, ctypes.byref(nodes), ctypes.byref(count), None))
        outermost = np.zeros(count.value, np.uint8)
        _check(
            kernel().cs_paths_result(
                self._handle, ctypes.byref(nodes), ctypes.byref(count), ctypes.c_void_p(outermost.ctypes.data)
            )
        )
        size = count.value * NODE.itemsize
        data = ctypes.string_at(nodes.value or 0, size) if size else b""
        return np.frombuffer(data, NODE).copy(), outermost


def module_spans(modules: list[tuple[int, int, int, int, int, int]]) -> NDArray[np.void]:
    """MODULE_SPAN records from (base, span, number, image index or -1, load tsc, unload tsc) of one process's modules.

    Only the low halves of addresses are recorded, so a module that crosses a 4 GiB boundary stands there twice.
    """
    rows = []
    for base, span, number, image, load, unload in modules:
        low = base & 0xFFFFFFFF
        first = min(span, (1 << 32) - low)
        rows.append((low, first, 0, number, image, 0, load, unload))
        if span > first:
            rows.append((0, min(span - first, 0xFFFFFFFF), first, number, image, 0, load, unload))
    out = np.array(sorted(rows), MODULE_SPAN)
    if len(out):
        ends = out["low"].astype(np.int64) + out["bytes"] - 1
        out["reach"] = np.maximum.accumulate(ends)
    return out


def off_spans(spans: list[tuple[int, int]]) -> NDArray[np.void]:
    """OFF_SPAN records."""
    return np.array(spans, OFF_SPAN)


def image_tables(images: list[tuple[NDArray[np.void], NDArray[np.void], int]]) -> tuple[NDArray[np.void], list[Any]]:
    """IMAGE_TABLES records from (FUNCTION[], CFA_ROW[], id base); keep the second value as long as they are used."""
    out = np.zeros(len(images), IMAGE_TABLES)
    kept = []
    for row, (functions, rules, id_base) in zip(out, images, strict=True):
        functions, rules = np.ascontiguousarray(functions), np.ascontiguousarray(rules)
        kept += [functions, rules]
        row["functions"], row["rows"] = functions.ctypes.data, rules.ctypes.data
        row["function_count"], row["row_count"], row["id_base"] = len(functions), len(rules), id_base
    return out, kept


def function_table(images: list[tuple[NDArray[np.void], NDArray[np.void], int]]) -> Functions:
    """Flags and owners of all functions by id. Ids that no image has are functions of their own, fully patched."""
    limit = max((id_base + len(functions) for functions, _, id_base in images), default=0)
    flags = np.full(limit, records.FUNCTION_ENTRY | records.FUNCTION_EXITS | records.FUNCTION_TAILS, np.uint8)
    owner = np.arange(limit, dtype=np.uint32)
    for functions, _, id_base in images:
        span = slice(id_base, id_base + len(functions))
        flags[span] = functions["flags"]
        owner[span] = np.minimum(functions["owner"], max(len(functions) - 1, 0)) + id_base
    return Functions(flags, owner, np.zeros(limit, np.uint8))


def _check(status: int) -> None:
    if status:
        raise NativeError(f"calls cannot be rebuilt: {_ERRORS.get(status, f'error {status} in the kernel')}")

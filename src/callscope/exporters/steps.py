"""Entries and exits as flat arrays, made by the kernel (native/kernel/steps.c): what fast exporters write from."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from callscope.errors import NativeError
from callscope.native import kernel
from callscope.reports.database import Database
from callscope.reports.selection import Selection, check_calls, condition

STEP: Final = np.dtype(
    [("time", "<i8"), ("call", "<i8"), ("function", "<i4"), ("depth", "<u4"), ("node", "<i4"), ("is_entry", "u1"),
     ("ended_by", "u1"), ("is_switch", "u1"), ("unused", "V1")]
)  # fmt: skip
"""time: nanoseconds, or without a clock the number of the step; depth: calls open around this one; node: of the
innermost call that is open then, -1 without one; ended_by: as in ENDINGS; is_switch: the call does not begin or end, it
goes on or waits, as the stack does (a coroutine's, a greenlet's) that it is on."""
COLUMNS: Final = {
    "call_id": "<i8",
    "up": "<i8",
    "start_ns": "<i8",
    "duration_ns": "<i8",
    "descendants": "<i8",
    "function_id": "<i4",
    "node": "<i4",
    "ended_by": "u1",
}
"""What steps are made of, with its types, in the order of `struct cs_step_calls`."""
BATCH_CALLS: Final = 1 << 19
_ROOM = 1 << 18
_DONE, _FULL = 0, 1
_PACKET_BYTES = 24


class _Calls(ctypes.Structure):
    _fields_ = (*((name, ctypes.c_void_p) for name in COLUMNS), ("count", ctypes.c_uint64))


class Steps:
    """The steps of calls given thread by thread. A context manager."""

    def __init__(self, has_clock: bool) -> None:
        library = kernel()
        library.cs_steps_open.restype = ctypes.c_void_p
        self._handle = ctypes.c_void_p(library.cs_steps_open(int(not has_clock)))
        if not self._handle:
            raise NativeError("there is not enough memory")
        self._out = np.empty(_ROOM, STEP)

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *_: object) -> None:
        kernel().cs_steps_close(self._handle)

    def feed(self, columns: Mapping[str, Any]) -> Iterator[NDArray[np.void]]:
        """Go on with a thread: STEP arrays, each good until the next. `columns`: COLUMNS of its next calls, in order.

        Raises NativeError when there is not enough memory for the calls that are open.
        """
        arrays = [np.ascontiguousarray(columns[name], kind) for name, kind in COLUMNS.items()]
        if len(arrays[0]):
            yield from self._feed(_Calls(*(array.ctypes.data for array in arrays), len(arrays[0])))

    def finish(self) -> Iterator[NDArray[np.void]]:
        """The end of a thread: leave all open calls."""
        yield from self._feed(_Calls())

    def _feed(self, calls: _Calls) -> Iterator[NDArray[np.void]]:
        at, count = ctypes.c_uint64(), ctypes.c_uint64()
        status = _FULL
        while status == _FULL:
            status = kernel().cs_steps_feed(
                self._handle,
                ctypes.byref(calls),
                ctypes.byref(at),
                ctypes.c_void_p(self._out.ctypes.data),
                ctypes.c_uint64(len(self._out)),
                ctypes.byref(count),
            )
            if status not in (_DONE, _FULL):
                raise NativeError("there is not enough memory for the calls that are open")
            yield self._out[: count.value]


class Batch(NamedTuple):
    """Steps of one thread."""

    thread: int
    steps: NDArray[np.void]


def step_batches(database: Database, selection: Selection) -> Iterator[Batch]:
    """All steps of the threads chosen, those of a thread together, as callscope.exporters.walk.steps gives them.

    A batch is good until the next. Of `selection` thread and process are regarded. Raises TraceError, NativeError.
    """
    check_calls(database)
    chosen = condition(database, Selection(thread=selection.thread, process=selection.process))
    listed = ", ".join(COLUMNS)
    thread = -1
    with Steps(database.has_clock) as steps:
        for first, end in database.call_ranges(BATCH_CALLS):
            found = database.arrays(
                f"SELECT thread, {listed} FROM {database.calls_between(first, end)} WHERE {chosen} ORDER BY call_id"
            )
            changes = np.flatnonzero(np.diff(found["thread"])) + 1
            for low, high in zip([0, *changes], [*changes, len(found["thread"])], strict=True):
                if low == high:
                    continue
                if thread not in (-1, found["thread"][low]):
                    yield from (Batch(thread, made) for made in steps.finish())
                thread = int(found["thread"][low])
                yield from (Batch(thread, made) for made in steps.feed({n: found[n][low:high] for n in COLUMNS}))
        if thread >= 0:
            yield from (Batch(thread, made) for made in steps.finish())


def packets(steps: NDArray[np.void], templates: NDArray[np.uint32], offsets: NDArray[np.uint64], data: bytes) -> bytes:
    """A Perfetto packet a step: its time, and the bytes of its template, `data[offsets[t]:offsets[t + 1]]`."""
    steps = np.ascontiguousarray(steps)
    sizes = np.diff(offsets.astype(np.int64))[templates]
    out = np.empty(int(sizes.sum()) + _PACKET_BYTES * len(steps), np.uint8)
    function = kernel().cs_step_packets
    function.restype = ctypes.c_uint64
    written = function(
        ctypes.c_void_p(steps.ctypes.data),
        ctypes.c_void_p(templates.ctypes.data),
        ctypes.c_uint64(len(steps)),
        ctypes.c_void_p(offsets.ctypes.data),
        ctypes.c_char_p(data),
        ctypes.c_void_p(out.ctypes.data),
    )
    return out[:written].tobytes()

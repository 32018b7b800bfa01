"""Call stacks that were captured: raw addresses with a time, from the chunks of a trace."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from callscope import format as records
from callscope.native import kernel
from callscope.trace.open import Trace

CAUSES = {
    records.STACK_CALLED: "call",
    records.STACK_ENTRY: "entry",
    records.STACK_TIMER: "timer",
    records.STACK_SIGNAL: "signal",
}
_HEAD = records.STACK_EVENT.itemsize
_EXACT = records.STACK_EXACT


@dataclass(frozen=True)
class Snapshot:
    """One stack. process, thread: numbers in the session. tsc: ticks. tag: what the program gave, the id of the
    function entered, or the signal's number. flags: STACK_*.

    raw: the addresses as they lie in the file, the innermost first.
    """

    process: int
    thread: int
    pid: int
    tid: int
    tsc: int
    tag: int
    flags: int
    cause: str
    raw: bytes

    @property
    def addresses(self) -> list[tuple[int, bool]]:
        """(address, whether it is that of an instruction itself and not where a call returns to)."""
        words = np.frombuffer(self.raw, np.uint64).tolist()
        return [(word & ~_EXACT, bool(word & _EXACT)) for word in words]


def read_snapshots(trace: Trace) -> Iterator[Snapshot]:
    """All stacks of a trace, thread by thread, each thread's in the order they were captured.

    Raises TraceError when the events file is gone.
    """
    buffer = np.zeros(trace.events.chunk_bytes, np.uint8)
    offsets = np.zeros(trace.events.chunk_bytes // _HEAD + 1, np.uint64)
    with trace.events.open() as reader:
        for chunk in trace.events.chunks:
            size = reader.read(chunk, buffer)
            yield from _of_chunk(chunk, buffer[:size], offsets)


def _of_chunk(chunk: np.void, data: NDArray[np.uint8], offsets: NDArray[np.uint64]) -> Iterator[Snapshot]:
    count = _find()(data.ctypes.data, len(data), offsets.ctypes.data, len(offsets))
    whole: dict[int, int] = {}
    for offset in offsets[: min(count, len(offsets))].tolist():
        event = data[offset : offset + _HEAD].view(records.STACK_EVENT)[0]
        start = offset + _HEAD
        if event["type"] == records.EXTENDED_STACK:
            flags = int(event["flags"])
            end = start + 8 * int(event["count"])
            whole[offset] = end
            raw = data[start:end].tobytes()
        else:
            event = data[offset : offset + _HEAD].view(records.STACK_SHARED_EVENT)[0]
            base, length = int(event["base"]) * 8 - records.CHUNK_HEADER.itemsize, int(event["outer"]) * 8
            end = whole.get(base, 0)
            found = end - length >= base + _HEAD
            flags = 0 if found else records.STACK_BROKEN
            raw = data[start : offset + 8 * (int(event["size"]) >> 3)].tobytes()
            raw += data[end - length : end].tobytes() if found else b""
        if raw:
            yield Snapshot(
                int(chunk["process"]),
                int(chunk["thread"]),
                int(chunk["pid"]),
                int(chunk["tid"]),
                int(event["tsc"]),
                int(event["tag"]),
                flags,
                CAUSES.get(int(event["cause"]), "unknown"),
                raw,
            )


@cache
def _find() -> ctypes._NamedFuncPointer:
    function = kernel().cs_find_stacks
    function.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64]
    function.restype = ctypes.c_uint64
    return function

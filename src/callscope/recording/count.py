"""How many calls and events a trace holds, before anything is rebuilt from it."""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from callscope import format as records
from callscope.native import kernel
from callscope.recording.directory import read_header, used_chunks

MOST_CHUNKS = 4096
"""Chunks looked at; of more, evenly spread ones are taken for the rest."""


@dataclass(frozen=True)
class EventCounts:
    """calls: entries recorded. sites: calls recorded where they were made. events: these, exits, tail jumps, landings.
    lost: events that found no room.

    exact: all of the file was counted, and no hooks of compilers told of calls, some of which are known already.
    threads: that recorded something or could have. wrapped: a flight recorder has forgotten some.
    """

    calls: int
    sites: int
    events: int
    lost: int
    threads: int
    exact: bool
    wrapped: bool


def count_events(path: Path) -> EventCounts:
    """Count what the events file holds; chunks that are still being written count as far as they are."""
    header = read_header(path)
    size, used = int(header["chunk_bytes"]), used_chunks(header)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        chunks = range(1, min(used, len(data) // size))
        step = -(-len(chunks) // MOST_CHUNKS) or 1
        counts = np.zeros(6, np.uint64)
        view = np.frombuffer(data, np.uint8)
        for number in chunks[::step]:
            _count_chunk(view[number * size : (number + 1) * size], counts)
        del view
    scale = len(chunks) / len(chunks[::step]) if step > 1 else 1
    return EventCounts(
        calls=round(int(counts[0] + counts[5]) * scale),
        sites=round(int(counts[4]) * scale),
        events=round(int(counts.sum()) * scale),
        lost=int(header["lost"]),
        threads=int(header["next_thread"]),
        exact=step == 1 and not counts[5],
        wrapped=int(header["next_chunk"]) > used,
    )


def _count_chunk(
    chunk: np.ndarray[tuple[int], np.dtype[np.uint8]], counts: np.ndarray[tuple[int], np.dtype[np.uint64]]
) -> None:
    head = records.CHUNK_HEADER.itemsize
    header = chunk[:head].view(records.CHUNK_HEADER)[0]
    if header["magic"] != records.CHUNK_MAGIC:
        return
    used = int(header["used"]) or len(chunk)
    events = chunk[head : min(used, len(chunk))]
    _count()(events.ctypes.data, len(events), counts.ctypes.data)


@cache
def _count() -> ctypes._NamedFuncPointer:
    function = kernel().cs_count_events
    function.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p]
    function.restype = ctypes.c_int64
    return function

"""How many calls and events a trace holds, before anything is rebuilt from it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection
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
    threads: that recorded something or could have. wrapped: a flight recorder has forgotten some. stopped: why
    recording ended before the program, STOP_*, and the time-stamp counter then.
    """

    calls: int
    sites: int
    events: int
    lost: int
    threads: int
    exact: bool
    wrapped: bool
    stopped: tuple[int, int] = (records.STOP_NONE, 0)


Counts = np.ndarray[tuple[int], np.dtype[np.uint64]]


def no_counts() -> Counts:
    """Nothing counted yet, by kind, as the kernel counts."""
    return np.zeros(6, np.uint64)


def count_events(path: Path, packed: Collection[int] = (), counted: Counts | None = None) -> EventCounts:
    """Count what the events file holds; chunks that are still being written count as far as they are.

    packed: numbers of chunks that are there no more, whose events have been `counted`.
    """
    header = read_header(path)
    size, used = int(header["chunk_bytes"]), used_chunks(header)
    # Read, not mapped: the first look at a hole of a mapping takes memory, which a full disk of memory does not have.
    with path.open("rb", buffering=0) as file:
        there = os.fstat(file.fileno()).st_size
        chunks = [number for number in range(1, min(used, there // size)) if number not in packed]
        step = -(-len(chunks) // MOST_CHUNKS) or 1
        found, buffer = no_counts(), np.empty(size, np.uint8)
        for number in chunks[::step]:
            count = os.preadv(file.fileno(), [memoryview(buffer)], number * size)  # type: ignore[arg-type]
            add_chunk(buffer[:count], found)
    scale = len(chunks) / len(chunks[::step]) if step > 1 else 1
    counts = [round(int(count) * scale) for count in found]
    if counted is not None:
        counts = [count + int(more) for count, more in zip(counts, counted, strict=True)]
    return EventCounts(
        calls=counts[0] + counts[5],
        sites=counts[4],
        events=sum(counts),
        lost=int(header["lost"]),
        threads=int(header["next_thread"]),
        exact=step == 1 and not counts[5],
        wrapped=int(header["next_chunk"]) > used,
        stopped=(int(header["stopped"]), int(header["stopped_tsc"])),
    )


def add_chunk(chunk: np.ndarray[tuple[int], np.dtype[np.uint8]], counts: Counts) -> None:
    """Add a chunk's events, by kind, to the counts."""
    head = records.CHUNK_HEADER.itemsize
    if len(chunk) < head:
        return
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

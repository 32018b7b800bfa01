"""Which functions make the events, from a sample of the newest chunks of an events file."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from ctypes import c_uint64, c_void_p
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from callscope import format as records
from callscope.native import kernel

MOST_CHUNKS = 8
"""chunks that are looked at"""


@dataclass(frozen=True)
class Sample:
    """functions: ids of those that began calls; shares: of all calls in the sample, each; calls: in the sample."""

    functions: NDArray[np.uint32]
    shares: NDArray[np.float64]
    calls: int


def claimed_numbers(claims: Iterable[int], limit: int) -> list[int]:
    """Where in the file the chunks of these claims lie: a flight recorder uses them again."""
    return [1 + (claim - 1) % (limit - 1) for claim in claims]


def sample_chunks(memory: mmap.mmap, numbers: Iterable[int], chunk_bytes: int) -> Sample:
    """What the chunks with these numbers hold."""
    function = kernel().cs_list_entries
    function.restype = c_uint64
    found = np.empty(chunk_bytes // 16, np.uint32)
    seen: list[NDArray[np.uint32]] = []
    head = records.CHUNK_HEADER.itemsize
    for number in numbers:
        if (number + 1) * chunk_bytes > len(memory):
            continue
        chunk = np.frombuffer(memory, np.uint8, chunk_bytes - head, number * chunk_bytes + head)
        count = function(
            c_void_p(chunk.ctypes.data), c_uint64(len(chunk)), c_void_p(found.ctypes.data), c_uint64(len(found))
        )
        seen.append(found[: int(count)].copy())
        del chunk
    if not seen or not sum(map(len, seen)):
        return Sample(np.empty(0, np.uint32), np.empty(0), 0)
    functions, counts = np.unique(np.concatenate(seen), return_counts=True)
    return Sample(functions, counts / counts.sum(), int(counts.sum()))

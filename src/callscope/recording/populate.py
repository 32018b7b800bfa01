"""Gives the events file its memory before the program needs it, on another processor.

A page of a file that is written for the first time costs microseconds, more than the calls it holds. The agents' own
first touch is quick when the page is there already.
"""

from __future__ import annotations

import mmap
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np

from callscope import format as records
from callscope.recording.directory import used_chunks

MADV_POPULATE_WRITE: Final = 23  # madvise(2), Linux 5.14
FURTHEST: Final = 32 << 20
"""bytes ahead of the chunks claimed; no more than were claimed, so that short programs pay nothing"""
INTERVAL: Final = 0.002
"""seconds between looks"""


class Populator:
    """Keeps ahead of the program while it runs. A context manager; where the system cannot, it does nothing."""

    def __init__(self, events: Path) -> None:
        self._path = events
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="populate")

    def __enter__(self) -> Populator:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        with suppress(OSError, ValueError), self._path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            header = np.frombuffer(memory, records.EVENTS_HEADER, 1)
            try:
                self._follow(memory, header)
            finally:
                del header  # the mapping cannot be closed while it is looked at

    def _follow(self, memory: mmap.mmap, header: np.ndarray[tuple[int], np.dtype[np.void]]) -> None:
        chunk, limit = int(header["chunk_bytes"][0]), int(header["chunk_limit"][0])
        there = 1
        while not self._done.wait(INTERVAL):
            claimed, allowed = used_chunks(header[0]), int(header["allowed"][0]) or limit
            wanted = min(claimed + min(claimed - 1, FURTHEST // chunk), limit, allowed)
            for number in range(max(there, claimed), wanted):
                memory.madvise(MADV_POPULATE_WRITE, number * chunk, chunk)
                if self._done.is_set():
                    return
            there = max(there, wanted)

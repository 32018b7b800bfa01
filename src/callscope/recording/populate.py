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

from callscope.recording.directory import read_open_header, used_chunks

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
            there = 1
            while not self._done.wait(INTERVAL):
                header = read_open_header(file.fileno())
                chunk, limit = int(header["chunk_bytes"]), int(header["chunk_limit"])
                claimed, allowed = used_chunks(header), int(header["allowed"]) or limit
                wanted = min(claimed + min(claimed - 1, FURTHEST // chunk), limit, allowed)
                for number in range(max(there, claimed), wanted):
                    memory.madvise(MADV_POPULATE_WRITE, number * chunk, chunk)
                    if self._done.is_set():
                        return
                there = max(there, wanted)

"""Compresses finished chunks while the program runs, and frees their disk and memory behind its back.

It begins when there is much to free, works with a low priority, and never holds the program up. With --max-size
it lets agents have as many chunks as there is room for besides what was packed.
"""

from __future__ import annotations

import mmap
import os
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

import numpy as np

from callscope import format as records
from callscope.recording.count import add_chunk, no_counts
from callscope.recording.directory import EVENTS_NAME, PACKED_NAME, read_open_header, used_chunks

if TYPE_CHECKING:
    from callscope.recording.pack import Packer

INTERVAL: Final = 0.05
"""seconds between looks; a chunk must be closed at two of them, since a signal handler's end may still fill a slot"""
BEGIN: Final = 256 << 20
"""bytes of finished and open chunks that are left alone"""
NICE: Final = 10
"""of the thread, as nice(1) has it: on a busy machine a tenth of what a program gets, else all it needs"""
SETTLED: Final = 64 << 20
"""packed bytes after which they are written to the disk and leave the memory"""
_OPEN: Final = 3
"""bits of chunk_header.flags: a thread writes there, or is about to"""
_HEAD = records.CHUNK_HEADER.itemsize


class Archive:
    """Packs within the `with` block. Where the system cannot free parts of files, it does nothing."""

    def __init__(self, directory: Path, max_size: int = 0) -> None:
        """max_size: bytes that the events may take on disk, 0 for no limit."""
        self._directory = directory
        self._max_size = max_size
        self._begin = min(BEGIN, max_size // 4) if max_size else BEGIN
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="archive")
        self._pending: list[int] = []
        self._closed: set[int] = set()
        self._seen = 1
        self._packer: Packer | None = None
        self._settled = 0
        self.packed: set[int] = set()
        """Numbers of the chunks packed."""
        self.counts = no_counts()
        """Of the chunks packed, as `count_events` has them."""

    def __enter__(self) -> Archive:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        with suppress(OSError):  # of the thread alone: the kernel has priorities by thread
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        path = self._directory / EVENTS_NAME
        with suppress(OSError, ValueError), path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            while not self._done.wait(INTERVAL):
                header = read_open_header(file.fileno())
                size, claimed = int(header["chunk_bytes"]), used_chunks(header)
                self._pending.extend(range(self._seen, claimed))
                self._seen = max(self._seen, claimed)
                if len(self._pending) * size > self._begin:
                    self._pack(memory, file.fileno(), size)

    def _pack(self, memory: mmap.mmap, descriptor: int, size: int) -> None:
        """Pack the oldest finished chunks until little is left, or the program has ended."""
        if self._packer is None:
            from callscope.recording.pack import Packer  # it takes a while to load: short recordings need not wait

            self._packer = Packer(self._directory / PACKED_NAME)
        packer = self._packer
        for number in list(self._pending):
            if self._done.is_set() or len(self._pending) * size <= self._begin // 2:
                break
            data = self._finished(descriptor, number, size)
            if data is None:
                continue
            packer.add(data[:_HEAD].tobytes(), data[_HEAD:])
            memory.madvise(mmap.MADV_REMOVE, number * size, size)
            add_chunk(data, self.counts)
            self._pending.remove(number)
            self.packed.add(number)
            self._allow(descriptor, packer.size, size)
            if packer.size - self._settled >= SETTLED:
                packer.settle()
                self._settled = packer.size

    @property
    def descriptor(self) -> int:
        """Of the packed file, which may have been removed; -1 when there is none."""
        return self._packer.descriptor if self._packer is not None else -1

    def close(self) -> None:
        """Close the packed file."""
        if self._packer is not None:
            self._packer.close()

    def _finished(self, descriptor: int, number: int, size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]] | None:
        """A chunk up to its end, when it was closed at the last look already."""
        head = os.pread(descriptor, _HEAD, number * size)
        chunk = np.frombuffer(head, records.CHUNK_HEADER)[0]
        used = int(chunk["used"])
        if chunk["magic"] != records.CHUNK_MAGIC or int(chunk["flags"]) & _OPEN or not _HEAD <= used <= size:
            return None
        if number not in self._closed:
            self._closed.add(number)
            return None
        self._closed.discard(number)
        return np.frombuffer(os.pread(descriptor, used, number * size), np.uint8)

    def _allow(self, descriptor: int, packed_bytes: int, size: int) -> None:
        """Tell agents how many chunks there is room for now."""
        if not self._max_size:
            return
        room = max(self._max_size - packed_bytes, 0) // size
        at = records.EVENTS_HEADER.fields["allowed"][1]  # type: ignore[index]  # every record has fields
        os.pwrite(descriptor, (1 + len(self.packed) + room).to_bytes(8, "little"), at)

"""Writes the file `packed`, compressed chunks of the events file (format/SPEC.md)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from callscope import format as records
from callscope.packing import pack

_HEAD = records.CHUNK_HEADER.itemsize


class Packer:
    """Appends to a packed file; what stands behind its last whole record is cut off. Raises OSError."""

    def __init__(self, path: Path) -> None:
        """Make the file, or go on behind what it has."""
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.size = whole_bytes(self.descriptor)
        """Bytes of the file."""
        os.ftruncate(self.descriptor, self.size)
        if not self.size:
            header = np.zeros((), records.PACKED_HEADER)
            header["magic"], header["version"] = records.PACKED_MAGIC, records.TRACE_VERSION
            header["header_size"] = header.nbytes
            self._append(header.tobytes())

    def add(self, header: bytes, events: NDArray[np.uint8]) -> None:
        """Pack a chunk: its chunk_header, and the bytes behind it."""
        packed, checksum = pack(header, events)
        record = np.zeros((), records.PACKED_CHUNK)
        record["magic"], record["checksum"] = records.PACKED_CHUNK_MAGIC, checksum
        record["bytes"], record["event_bytes"] = len(packed), len(events)
        self._append(record.tobytes() + header + packed + bytes(-len(packed) % 8))

    def _append(self, data: bytes) -> None:
        """Write all of it, or nothing: a full disk must not leave half a record in the midst of others."""
        view, at = memoryview(data), self.size
        try:
            while view:
                done = os.pwrite(self.descriptor, view, at)
                view, at = view[done:], at + done
        except OSError:
            os.ftruncate(self.descriptor, self.size)
            raise
        self.size = at

    def settle(self) -> None:
        """Have what was written on the disk, and out of the memory."""
        os.fdatasync(self.descriptor)
        os.posix_fadvise(self.descriptor, 0, self.size, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the file."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def whole_bytes(descriptor: int) -> int:
    """Bytes of a packed file up to the end of its last whole record; 0 when it is none."""
    size, at = os.fstat(descriptor).st_size, records.PACKED_HEADER.itemsize
    data = os.pread(descriptor, at, 0)
    if len(data) < at or np.frombuffer(data, records.PACKED_HEADER)[0]["magic"] != records.PACKED_MAGIC:
        return 0
    while True:
        data = os.pread(descriptor, records.PACKED_CHUNK.itemsize, at)
        if len(data) < records.PACKED_CHUNK.itemsize:
            return at
        record = np.frombuffer(data, records.PACKED_CHUNK)[0]
        end = at + len(data) + _HEAD + (int(record["bytes"]) + 7 & ~7)
        if record["magic"] != records.PACKED_CHUNK_MAGIC or end > size:
            return at
        at = end

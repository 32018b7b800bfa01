"""The `packed` file: chunks of events, compressed (format/SPEC.md). Nothing in it is believed before it is checked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from callscope import format as records
from callscope.trace.session import check_version

PACKED_NAME = "packed"
_HEAD, _RECORD = records.CHUNK_HEADER.itemsize, records.PACKED_CHUNK.itemsize


@dataclass(frozen=True)
class PackedChunk:
    """One chunk. header: CHUNK_HEADER. offset, bytes: of the compressed bytes in the file. event_bytes: when unpacked.
    checksum: CRC-32 of header and compressed bytes.
    """

    header: bytes
    offset: int
    bytes: int
    event_bytes: int
    checksum: int


def open_packed(directory: Path) -> int:
    """A descriptor of the file, or -1 when there is none."""
    try:
        return os.open(directory / PACKED_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def read_index(descriptor: int, chunk_bytes: int, warnings: list[str]) -> Iterator[PackedChunk]:
    """The chunks of a packed file, up to its end or to the first record that makes no sense.

    Raises TraceError when it is of another version.
    """
    size = os.fstat(descriptor).st_size
    data = os.pread(descriptor, records.PACKED_HEADER.itemsize, 0)
    header = np.frombuffer(data, records.PACKED_HEADER)[0] if len(data) == records.PACKED_HEADER.itemsize else None
    if header is None or header["magic"] != records.PACKED_MAGIC:
        warnings.append(f"{PACKED_NAME} is damaged: its events are left out")
        return
    check_version(int(header["version"]), PACKED_NAME)
    at = max(int(header["header_size"]), len(data))
    most = min(chunk_bytes - _HEAD, records.PACKED_LARGEST)
    while at < size:
        data = os.pread(descriptor, _RECORD + _HEAD, at)
        record = np.frombuffer(data, records.PACKED_CHUNK, 1)[0] if len(data) == _RECORD + _HEAD else None
        start = at + _RECORD + _HEAD
        if (
            record is None
            or record["magic"] != records.PACKED_CHUNK_MAGIC
            or start + int(record["bytes"]) > size
            or int(record["event_bytes"]) > most
        ):
            warnings.append(f"{PACKED_NAME} is damaged or cut off: events after byte {at} are left out")
            return
        count = int(record["bytes"])
        yield PackedChunk(data[_RECORD:], start, count, int(record["event_bytes"]), int(record["checksum"]))
        at = start + (count + 7 & ~7)

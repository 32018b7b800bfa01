"""The `events` file: its header and the index of its chunks. The events themselves are read by the kernel."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from callscope import format as records
from callscope.errors import TraceError
from callscope.trace.session import check_version

EVENTS_NAME = "events"

CHUNK = np.dtype([*((name, records.CHUNK_HEADER[name]) for name in records.CHUNK_HEADER.names or ()), ("offset", "<u8"),
                  ("bytes", "<u8")])  # fmt: skip
"""A chunk header, where the chunk lies in the file, and how many bytes of events follow the header at most."""

_LEAST_CHUNK, _MOST_CHUNK = 4096, 1 << 30
_MOST_CHUNKS = 1 << 22


@dataclass(frozen=True)
class EventsFile:
    """What is known of an events file without reading its events.

    chunks: CHUNK[n], the valid ones, in order of thread and sequence. lost: events that found no room. size,
    mtime_ns: of the file when it was read.
    """

    path: Path
    features: int
    chunk_bytes: int
    chunk_limit: int
    lost: int
    max_depth: int
    chunks: NDArray[np.void]
    size: int
    mtime_ns: int

    def open(self) -> EventsReader:
        """Open the file to read chunks; a context manager. Raises TraceError when it is gone."""
        return EventsReader(self)


class EventsReader:
    """Reads chunks of one events file. May be used by several threads at a time."""

    def __init__(self, events: EventsFile) -> None:
        self._path = events.path
        self._descriptor = _open(events.path)

    def __enter__(self) -> EventsReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read(self, chunk: np.void, buffer: NDArray[np.uint8]) -> int:
        """Read the bytes after the chunk's header into the buffer; how many. Fewer than expected at a torn end."""
        wanted = min(int(chunk["bytes"]), len(buffer))
        view = memoryview(buffer)  # type: ignore[arg-type]  # an array is a buffer; the stubs for 3.11 cannot say so
        done = 0
        start = int(chunk["offset"]) + records.CHUNK_HEADER.itemsize
        try:
            while done < wanted:
                count = os.preadv(self._descriptor, [view[done:wanted]], start + done)
                if count == 0:
                    break
                done += count
        except OSError as error:
            raise TraceError(f"{self._path} cannot be read: {error.strerror}; check the disk") from None
        return done


def read_events(directory: Path, warnings: list[str]) -> EventsFile:
    """The header and the chunk index of a trace's events file.

    Sparse files cost only what they hold. Raises TraceError when there is no events file, or it is of another format.
    """
    path = directory / EVENTS_NAME
    descriptor = _open(path)
    try:
        status = os.fstat(descriptor)
        header = _header(os.pread(descriptor, records.EVENTS_HEADER_BYTES, 0), path)
        chunk_bytes = int(header["chunk_bytes"])
        if not (_LEAST_CHUNK <= chunk_bytes <= _MOST_CHUNK and chunk_bytes & (chunk_bytes - 1) == 0):
            warnings.append(f"{EVENTS_NAME} has a damaged header: chunks of {records.CHUNK_BYTES} bytes are assumed")
            chunk_bytes = records.CHUNK_BYTES
        chunks = _read_chunks(descriptor, status.st_size, chunk_bytes, warnings)
    finally:
        os.close(descriptor)
    if status.st_size % chunk_bytes and status.st_size > records.EVENTS_HEADER_BYTES:
        warnings.append(f"{EVENTS_NAME} is truncated: events after byte {status.st_size} are gone")
    return EventsFile(
        path=path,
        features=int(header["features"]),
        chunk_bytes=chunk_bytes,
        chunk_limit=int(header["chunk_limit"]),
        lost=int(header["lost"]),
        max_depth=int(header["max_depth"]),
        chunks=chunks,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
    )


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise TraceError(f"{path.parent} has no {EVENTS_NAME} file: it is no trace, or not a whole one") from None
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror}; check its permissions") from None


def _header(data: bytes, path: Path) -> np.void:
    if len(data) < records.EVENTS_HEADER.itemsize:
        raise TraceError(f"{path} is cut off inside its header: nothing of the trace can be read")
    header: np.void = np.frombuffer(data, records.EVENTS_HEADER, 1)[0]
    if int(header["magic"]) != records.EVENTS_MAGIC:
        raise TraceError(f"{path} is not an events file of callscope: it is damaged, or belongs to something else")
    check_version(int(header["version"]), str(path))
    return header


def _data_extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that are not holes; all of it where the system does not say."""
    at = 0
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:
                yield at, size
            return
        yield start, end
        at = max(end, at + 1)


def _read_chunks(descriptor: int, size: int, chunk_bytes: int, warnings: list[str]) -> NDArray[np.void]:
    """The valid chunk headers. A chunk that was claimed and has no header yet is passed over."""
    numbers: list[int] = []
    last = 0
    for start, end in _data_extents(descriptor, size):
        first = max(start // chunk_bytes, last + 1)
        last = max(last, (end - 1) // chunk_bytes)
        numbers.extend(range(first, min(last, first + _MOST_CHUNKS - len(numbers)) + 1))
        if len(numbers) >= _MOST_CHUNKS:
            warnings.append(f"{EVENTS_NAME} has more than {_MOST_CHUNKS} chunks: the rest is left out")
            break
    headers = bytearray()
    found: list[int] = []
    for number in numbers:
        data = os.pread(descriptor, records.CHUNK_HEADER.itemsize, number * chunk_bytes)
        if len(data) == records.CHUNK_HEADER.itemsize:
            headers += data
            found.append(number)
    read = np.frombuffer(bytes(headers), records.CHUNK_HEADER)
    chunks = np.zeros(len(read), CHUNK)
    for name in records.CHUNK_HEADER.names or ():
        chunks[name] = read[name]
    chunks["offset"] = np.array(found, np.uint64) * np.uint64(chunk_bytes)
    room = np.uint64(chunk_bytes - records.CHUNK_HEADER.itemsize)
    used = chunks["used"]
    is_valid = (chunks["magic"] == records.CHUNK_MAGIC) & (chunks["thread"] > 0) & (chunks["thread"] < 1 << 31)
    is_valid &= (chunks["process"] > 0) & (chunks["process"] < 1 << 31)
    damaged = int(((chunks["magic"] != 0) & ~is_valid).sum())
    if damaged:
        warnings.append(f"{EVENTS_NAME}: {damaged} chunks have a damaged header and are left out")
    # 0: the chunk was still open, and its end is where only zeros remain.
    plausible = (used >= records.CHUNK_HEADER.itemsize) & (used <= chunk_bytes)
    chunks["bytes"] = np.where(plausible, used - np.uint64(records.CHUNK_HEADER.itemsize), room)
    chunks = chunks[is_valid]
    ordered: NDArray[np.void] = chunks[np.lexsort((chunks["offset"], chunks["sequence"], chunks["thread"]))]
    return ordered

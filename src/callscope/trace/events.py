"""The `events` file: its header and the index of its chunks. The events themselves are read by the kernel."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from callscope import format as records
from callscope.errors import TraceError
from callscope.packing import unpack
from callscope.trace.packed import PACKED_NAME, PackedChunk, open_packed, read_index
from callscope.trace.session import check_version

EVENTS_NAME = "events"

CHUNK = np.dtype([*((name, records.CHUNK_HEADER[name]) for name in records.CHUNK_HEADER.names or ()), ("offset", "<u8"),
                  ("bytes", "<u8"), ("packed", "<u4"), ("event_bytes", "<u4"), ("checksum", "<u4")])  # fmt: skip
"""A chunk header, where the chunk lies in the file, and how many bytes of events follow the header at most.

packed: 0, or bytes of the chunk at `offset` of the packed file, which unpack to event_bytes bytes. checksum: theirs.
"""

_LEAST_CHUNK, _MOST_CHUNK = 4096, 1 << 30
_MOST_CHUNKS = 1 << 22


@dataclass(frozen=True)
class EventsFile:
    """What is known of an events file without reading its events.

    chunks: CHUNK[n], the valid ones, in order of thread and sequence. lost: events that found no room. stopped: why
    recording stopped before its end, STOP_*, at stopped_tsc. size, mtime_ns: of the files when they were read.
    warnings: what reading finds to be damaged.
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
    stopped: int
    stopped_tsc: int
    warnings: list[str]

    def open(self) -> EventsReader:
        """Open the file to read chunks; a context manager. Raises TraceError when it is gone."""
        return EventsReader(self)


class EventsReader:
    """Reads chunks of one events file. May be used by several threads at a time."""

    def __init__(self, events: EventsFile) -> None:
        self._path = events.path
        self._descriptor = _open(events.path)
        self._packed = open_packed(events.path.parent)
        self._warnings = events.warnings

    def __enter__(self) -> EventsReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        for descriptor in (self._descriptor, self._packed):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._packed = -1

    def read(self, chunk: np.void, buffer: NDArray[np.uint8]) -> int:
        """Read the bytes after the chunk's header into the buffer; how many. Fewer than expected at a torn end."""
        return self._unpack(chunk, buffer) if chunk["packed"] else self._read(chunk, buffer)

    def _unpack(self, chunk: np.void, buffer: NDArray[np.uint8]) -> int:
        header = np.zeros((), records.CHUNK_HEADER)
        for name in records.CHUNK_HEADER.names or ():
            header[name] = chunk[name]
        try:
            data = os.pread(self._packed, int(chunk["packed"]), int(chunk["offset"]))
        except OSError as error:
            path = self._path.with_name(PACKED_NAME)
            raise TraceError(f"{path} cannot be read: {error.strerror}; check the disk") from None
        events = unpack(header.tobytes(), data, int(chunk["event_bytes"]), int(chunk["checksum"]))
        if events is None:
            damage = f"{PACKED_NAME}: the events at byte {chunk['offset']} are damaged and left out"
            if damage not in self._warnings:
                self._warnings.append(damage)
            return 0
        wanted = min(int(chunk["bytes"]), len(buffer), len(events))
        buffer[:wanted] = events[:wanted]
        return wanted

    def _read(self, chunk: np.void, buffer: NDArray[np.uint8]) -> int:
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
        chunks = _read_chunks(descriptor, status.st_size, chunk_bytes, directory, warnings)
    finally:
        os.close(descriptor)
    packed = (directory / PACKED_NAME).stat() if (directory / PACKED_NAME).exists() else None
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
        size=status.st_size + (packed.st_size if packed else 0),
        mtime_ns=max(status.st_mtime_ns, packed.st_mtime_ns if packed else 0),
        stopped=int(header["stopped"]),
        stopped_tsc=int(header["stopped_tsc"]),
        warnings=warnings,
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


def _read_chunks(
    descriptor: int, size: int, chunk_bytes: int, directory: Path, warnings: list[str]
) -> NDArray[np.void]:
    """The valid chunk headers, of both files. A chunk that was claimed and has no header yet is passed over."""
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
    packed = _read_packed(directory, chunk_bytes, warnings)
    for chunk in packed:
        headers += chunk.header
    read = np.frombuffer(bytes(headers), records.CHUNK_HEADER)
    chunks = np.zeros(len(read), CHUNK)
    for name in records.CHUNK_HEADER.names or ():
        chunks[name] = read[name]
    chunks["offset"][: len(found)] = np.array(found, np.uint64) * np.uint64(chunk_bytes)
    for name, column in (("offset", "offset"), ("packed", "bytes"), ("event_bytes", "event_bytes"), ("checksum",) * 2):
        chunks[name][len(found) :] = [getattr(chunk, column) for chunk in packed]
    return _in_order(chunks, chunk_bytes, warnings)


def _read_packed(directory: Path, chunk_bytes: int, warnings: list[str]) -> list[PackedChunk]:
    descriptor = open_packed(directory)
    if descriptor < 0:
        return []
    try:
        return list(islice(read_index(descriptor, chunk_bytes, warnings), _MOST_CHUNKS))
    finally:
        os.close(descriptor)


def _in_order(chunks: NDArray[np.void], chunk_bytes: int, warnings: list[str]) -> NDArray[np.void]:
    """The valid ones of the chunks, in order of thread and sequence, with the bytes of their events."""
    room = np.where(
        chunks["packed"] > 0, chunks["event_bytes"], np.uint64(chunk_bytes - records.CHUNK_HEADER.itemsize)
    ).astype(np.uint64)
    used = chunks["used"]
    is_valid = (chunks["magic"] == records.CHUNK_MAGIC) & (chunks["thread"] > 0) & (chunks["thread"] < 1 << 31)
    is_valid &= (chunks["process"] > 0) & (chunks["process"] < 1 << 31)
    damaged = int(((chunks["magic"] != 0) & ~is_valid).sum())
    if damaged:
        warnings.append(f"{EVENTS_NAME}: {damaged} chunks have a damaged header and are left out")
    # 0: the chunk was still open, and its end is where only zeros remain.
    plausible = (used >= records.CHUNK_HEADER.itemsize) & (used <= chunk_bytes)
    behind = np.where(plausible, used - np.uint64(records.CHUNK_HEADER.itemsize), room)
    chunks["bytes"] = np.minimum(behind, room)
    chunks = chunks[is_valid]
    ordered: NDArray[np.void] = chunks[
        np.lexsort((chunks["offset"], chunks["packed"] > 0, chunks["sequence"], chunks["thread"]))
    ]
    if not ordered["packed"].any():
        return ordered
    # What was packed and could not be taken out of the other file any more is in both.
    names = list(zip(ordered["thread"].tolist(), ordered["sequence"].tolist(), strict=True))
    plain = {name for name, packed in zip(names, ordered["packed"].tolist(), strict=True) if not packed}
    return ordered[[not packed or name not in plain for name, packed in zip(names, ordered["packed"], strict=True)]]

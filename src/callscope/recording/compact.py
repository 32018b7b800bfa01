"""Compresses the events of a finished trace: what the archive does while a program runs, for all that is left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from callscope import format as records
from callscope.errors import RecordError, UsageError
from callscope.recording.directory import EVENTS_NAME, PACKED_NAME, hold, is_trace, read_header
from callscope.recording.pack import Packer
from callscope.recording.survivors import find_survivors

_HEAD = records.CHUNK_HEADER.itemsize
_LARGEST_CHUNK = records.PACKED_LARGEST


@dataclass(frozen=True)
class Compacted:
    """Bytes of disk that the events took and take, and how many chunks were packed now."""

    before: int
    after: int
    chunks: int


def compact(directory: Path, progress: Callable[[int, int], None] | None = None) -> Compacted:
    """Pack all chunks of a trace that nobody writes to. What was packed before stays.

    `progress` is told of bytes done and in all. The trace can be read at every moment, also when this is cut off.
    Raises UsageError when it is no trace or is being written, RecordError when the disk is full or it is damaged.
    """
    if not directory.is_dir() or not is_trace(directory):
        raise UsageError(f"{directory} is no trace: give the directory that callscope record made")
    events, packed = directory / EVENTS_NAME, directory / PACKED_NAME
    partial = packed.with_name(PACKED_NAME + ".tmp")
    try:
        guard = hold(directory)
    except BlockingIOError:
        raise UsageError(f"{directory} is being recorded: wait for its end, or use callscope dump") from None
    try:
        writers = find_survivors(events, attached=True)
        if writers:
            raise UsageError(f"{writers[0].name} (process {writers[0].pid}) still writes to {directory}: end it first")
        before = _disk(events) + _disk(packed)
        if packed.exists():
            shutil.copyfile(packed, partial)
            partial.chmod(0o600)
        else:
            partial.unlink(missing_ok=True)
        chunks = _pack(events, partial, progress)
        partial.replace(packed)
        _empty(events)
        return Compacted(before, _disk(events) + _disk(packed), chunks)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RecordError(f"cannot compress {directory}: {reason}; it is as it was") from None
    finally:
        partial.unlink(missing_ok=True)
        os.close(guard)


def _pack(events: Path, packed: Path, progress: Callable[[int, int], None] | None) -> int:
    """Add every chunk that has an owner to the packed file; how many."""
    size = int(read_header(events)["chunk_bytes"])
    if not _HEAD < size <= _LARGEST_CHUNK:
        raise RecordError(f"{events} has a damaged header: it cannot be compressed")
    packer, found = Packer(packed), 0
    descriptor = os.open(events, os.O_RDONLY | os.O_CLOEXEC)
    try:
        count = os.fstat(descriptor).st_size // size
        for number in range(1, count):
            head = os.pread(descriptor, _HEAD, number * size)
            chunk = np.frombuffer(head, records.CHUNK_HEADER)[0]
            if chunk["magic"] != records.CHUNK_MAGIC:
                continue
            used = int(chunk["used"])
            wanted = used - _HEAD if _HEAD <= used <= size else size - _HEAD
            packer.add(head, np.frombuffer(os.pread(descriptor, wanted, number * size + _HEAD), np.uint8))
            found += 1
            if progress is not None:
                progress(number * size, count * size)
        packer.settle()
    finally:
        os.close(descriptor)
        packer.close()
    return found


def _empty(events: Path) -> None:
    """Leave only the header of the events file."""
    os.truncate(events, records.EVENTS_HEADER_BYTES)


def _disk(path: Path) -> int:
    """Bytes of disk."""
    return path.stat().st_blocks * 512 if path.exists() else 0

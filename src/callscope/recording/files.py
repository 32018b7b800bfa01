"""The files that agents map: how large they are, and what their headers say at first (format/SPEC.md)."""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path

import numpy as np

from callscope import format as records
from callscope.clock import clock_pair
from callscope.recording.directory import EVENTS_NAME, JOURNAL_NAME, read_header, used_chunks
from callscope.recording.options import RecordOptions, signal_number

LARGEST_EVENTS = 256 << 30
DISK_RESERVE = 1 << 30
LARGEST_BY_TIME = 1 << 30
"""bytes of a flight recorder that keeps a time, when nothing else is said"""
CHUNKS_OF_RING = 1024
"""chunks that a flight recorder has unless they become too small or too large: every live thread needs one"""
SMALLEST_CHUNK = 256 << 10
"""bytes; with 64 KB a call costs a quarter more"""
CELLS = 4096
"""threads of a flight recorder whose records are kept beside those that chunks tell of"""
_MEASURED_SECONDS = 0.01


def write_events(path: Path, options: RecordOptions, features: int) -> int:
    """Make the sparse events file, as large as its chunks may become; how many these are, the header's included."""
    chunk = records.CHUNK_BYTES
    if options.keeps_last:
        room = options.keep_last or options.max_size or LARGEST_BY_TIME
        chunk = ring_chunk_bytes(room)
        size = chunk + -(-room // chunk) * chunk
    else:
        free = shutil.disk_usage(path.parent).free
        size = min(LARGEST_EVENTS, free - min(DISK_RESERVE, free // 20)) // chunk * chunk
    header = np.zeros((), records.EVENTS_HEADER)
    header["magic"], header["version"] = records.EVENTS_MAGIC, records.TRACE_VERSION
    header["header_size"], header["features"] = records.EVENTS_HEADER_BYTES, features
    header["chunk_bytes"], header["next_chunk"] = chunk, 1
    header["max_depth"] = options.max_depth
    header["stacks_every"], header["stacks_signal"] = options.stacks_every_ns, signal_number(options.stacks_on)
    header["dump_signal"] = signal_number(options.dump_on)
    header["keep_ticks"] = ticks(options.keep_last_ns) if options.keep_last_ns else 0
    if options.max_size and not options.keeps_last:
        header["allowed"] = 1 + max(options.max_size // chunk, 1)
    control = np.zeros((), records.CONTROL)
    control["off"] = options.start_off
    control["sample"] = options.sample if options.sample > 1 else 0
    control["filters"] = (
        (records.FILTER_TRIGGER if options.triggers else 0)
        | (records.FILTER_UNDER if options.under else 0)
        | (records.FILTER_CALLER if options.callers else 0)
    )
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        size = make_sparse(descriptor, size, chunk)
        header["chunk_limit"] = size // chunk
        os.pwrite(descriptor, header.tobytes(), 0)
        os.pwrite(descriptor, control.tobytes(), records.EVENTS_CONTROL)
    finally:
        os.close(descriptor)
    return size // chunk


def ring_chunk_bytes(room: int) -> int:
    """Bytes of a chunk of a flight recorder that keeps `room` bytes: a power of two."""
    wanted = 1 << (room // CHUNKS_OF_RING).bit_length() >> 1
    return max(SMALLEST_CHUNK, min(wanted, records.CHUNK_BYTES))


def ticks(nanoseconds: int) -> int:
    """A time in ticks of the time-stamp counter, as fast as that is found to go now."""
    before = clock_pair()
    time.sleep(_MEASURED_SECONDS)
    after = clock_pair()
    return nanoseconds * (after.tsc - before.tsc) // (after.monotonic_ns - before.monotonic_ns)


def make_sparse(descriptor: int, size: int, unit: int) -> int:
    """Give the file `size` bytes without using disk, or what the file system and the user's limits allow; the size."""
    while size >= 2 * unit:
        try:
            os.ftruncate(descriptor, size)
            return size
        except OSError as error:
            if error.errno not in (errno.EFBIG, errno.EINVAL):
                raise
            size = size // 2 // unit * unit
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_journal(path: Path, features: int, chunks: int) -> None:
    """Make the sparse journal. A flight recorder's has cells for the threads that its `chunks` may be of."""
    header = np.zeros((), records.JOURNAL_HEADER)
    header["magic"], header["version"] = records.JOURNAL_MAGIC, records.TRACE_VERSION
    header["header_size"], header["features"] = records.JOURNAL_HEADER_BYTES, features
    cells = CELLS + chunks if features & records.FEATURE_KEEP_LAST else 0
    header["cells"], header["tail"] = cells, records.JOURNAL_HEADER_BYTES + cells * records.JOURNAL_CELL_BYTES
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        make_sparse(descriptor, records.JOURNAL_BYTES, 4096)
        os.pwrite(descriptor, header.tobytes(), 0)
    finally:
        os.close(descriptor)


def trim_files(directory: Path) -> None:
    """Cut the unused rest of a trace's files, which nobody has mapped."""
    header = read_header(directory / EVENTS_NAME)
    trim_file(directory / EVENTS_NAME, used_chunks(header) * int(header["chunk_bytes"]))
    journal = directory / JOURNAL_NAME
    trim_file(journal, int(np.fromfile(journal, records.JOURNAL_HEADER, 1)[0]["tail"]))


def trim_file(path: Path, size: int) -> None:
    """Cut a file that is longer."""
    if 0 < size < path.stat().st_size:
        os.truncate(path, size)

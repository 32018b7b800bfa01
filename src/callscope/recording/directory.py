"""Where a trace goes, and what may be replaced to make room for it: only a trace that nobody is recording."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path

import numpy as np

from callscope import format as records
from callscope.errors import UsageError

SESSION_NAME = "session.json"
EVENTS_NAME = "events"
JOURNAL_NAME = "journal"
PACKED_NAME = "packed"
RESERVE_NAME = "reserve"
PLANS_NAME = "plans"


def default_directory(command: tuple[str, ...]) -> Path:
    """PROGRAM.trace in the current directory."""
    return Path(Path(command[0]).name + ".trace")


def make_way(directory: Path) -> None:
    """Rename an earlier trace at `directory` to DIRECTORY.old, in place of an older one.

    Raises UsageError when anything but a finished trace would be lost.
    """
    if not os.path.lexists(directory):
        return
    if directory.is_dir() and not directory.is_symlink() and not any(directory.iterdir()):
        directory.rmdir()
        return
    check_replaceable(directory)
    old = directory.with_name(directory.name + ".old")
    if os.path.lexists(old):
        check_replaceable(old)
        shutil.rmtree(old)
    directory.rename(old)


def check_replaceable(directory: Path) -> None:
    """Raise UsageError when `directory` is no trace, or one being recorded."""
    if directory.is_symlink() or not directory.is_dir() or not is_trace(directory):
        raise UsageError(f"{directory} exists and is no trace: choose another place with -o")
    try:
        os.close(hold(directory))
    except BlockingIOError:
        raise UsageError(f"{directory} is being recorded by another callscope: choose another place with -o") from None


def is_trace(directory: Path) -> bool:
    """Whether the recorder made this directory: its description, or failing that its events file, says so."""
    try:
        with (directory / SESSION_NAME).open("rb") as file:
            return b'"callscope-trace"' in file.read(4096)
    except OSError:
        pass
    try:
        return int(read_header(directory / EVENTS_NAME)["magic"]) == records.EVENTS_MAGIC
    except OSError:
        return False


def hold(directory: Path) -> int:
    """A descriptor that marks the directory as being recorded until it is closed; BlockingIOError when another does."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        pass  # a file system without locks
    return descriptor


def read_header(events: Path) -> np.void:
    """The events file's header, as agents have left its counters. Raises OSError, also when the file is too short."""
    with events.open("rb") as file:
        return read_open_header(file.fileno())


def read_open_header(descriptor: int) -> np.void:
    """The same of an open file."""
    data = os.pread(descriptor, records.EVENTS_HEADER.itemsize, 0)
    if len(data) < records.EVENTS_HEADER.itemsize:
        raise OSError(errno.EIO, "the events file was cut off")
    header: np.void = np.frombuffer(data, records.EVENTS_HEADER)[0]
    return header


def used_chunks(header: np.void) -> int:
    """How many chunks an events file has room for so far, or had at its largest, by its header; chunk 0 counts."""
    claimed = int(header["ring_used"]) + 1 if header["keep_ticks"] else int(header["next_chunk"])
    return min(claimed, int(header["chunk_limit"]))

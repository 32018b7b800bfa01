"""Copies what a session holds at this moment into a trace of its own, while its programs go on writing.

Nothing is locked. A chunk of a flight recorder may get another owner while it is copied: its header tells, and it is
left out, with all older ones of its thread, so that each thread's events are its last ones without a gap.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from callscope import format as records
from callscope.clock import clock_pair
from callscope.errors import RecordError, UsageError
from callscope.recording.directory import (
    EVENTS_NAME,
    JOURNAL_NAME,
    PACKED_NAME,
    PLANS_NAME,
    SESSION_NAME,
    make_way,
    used_chunks,
)
from callscope.recording.process import PROC, read_maps

_HEAD = records.CHUNK_HEADER.itemsize
_PREPARED = 2
"""bit of chunk_header.flags: its header is being written"""
_DELETED = " (deleted)"


@dataclass(frozen=True)
class Dump:
    """What came of it. trace: the new directory. chunks: copied; bytes: of events. overtaken: chunks left out, since
    the program used them again meanwhile.
    """

    trace: Path
    chunks: int
    bytes: int
    overtaken: int


def dump(which: str, output: Path | None = None) -> Dump:
    """Write a trace of what is known of the recorded process that `which` names, by its id or its name.

    output: the new trace; by default a numbered name in the current directory. Raises RecordError when there is no such
    process, when it is not recorded, or when the trace cannot be written.
    """
    source = session_of(which)
    return write_dump(source, output or numbered(Path.cwd() / source.name, "dump"), f"callscope dump {which}")


def numbered(trace: Path, word: str) -> Path:
    """A name of no trace yet, made from that of another: x.trace, dump -> x-dump1.trace."""
    number = 1
    while os.path.lexists(path := trace.with_name(f"{trace.stem}-{word}{number}{trace.suffix}")):
        number += 1
    return path


def session_of(which: str) -> Path:
    """The trace that a process writes to. Raises RecordError."""
    if which.isascii() and which.isdigit():
        if not (PROC / which).exists():
            raise RecordError(f"there is no process {which}: see ps -e")
        pids = [int(which)]
    else:
        pids = [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit() and which in names(entry)]
        if not pids:
            raise RecordError(f"no process is called {which}: see ps -e")
    found = {session for pid in pids if (session := recorded_in(pid)) is not None}
    if not found:
        raise RecordError(f"{which} is not being recorded: start it with callscope record, or use callscope attach")
    if len(found) > 1:
        listed = ", ".join(sorted(map(str, found)))
        raise RecordError(f"{which} is being recorded in several traces ({listed}): name a process by its id")
    (session,) = found
    if not session.is_dir():
        raise RecordError(f"the trace {session} was removed while it was recorded: there is nothing to copy it from")
    return session


def names(process: Path) -> set[str]:
    """What a process may be called, by its directory in /proc: itself, its file, and as a Windows program."""
    found = set()
    with suppress(OSError):
        found.add((process / "comm").read_text(errors="replace").rstrip("\n"))
        found.add((process / "exe").readlink().name.removesuffix(_DELETED))
        words = (process / "cmdline").read_bytes().split(b"\0")
        found.add(os.fsdecode(words[0]).replace("\\", "/").rpartition("/")[2])
    return found - {""}


def recorded_in(pid: int) -> Path | None:
    """The trace directory whose events file a process has mapped, or None. Raises RecordError."""
    try:
        paths = {Path(mapping.path.removesuffix(_DELETED)) for mapping in read_maps(pid)}
    except PermissionError:
        raise RecordError(f"process {pid} belongs to another user: run callscope as that user") from None
    except OSError:
        return None
    found = [path.parent for path in paths if path.name == EVENTS_NAME and path.with_name(JOURNAL_NAME) in paths]
    inside = [PROC / str(pid) / "root" / path.relative_to("/") for path in found]  # where it has another root than we
    return next((path for path in [*found, *inside] if path.is_dir()), found[0] if found else None)


def write_dump(source: Path, target: Path, why: str) -> Dump:
    """Copy the trace `source`, which is being written, to a new one. Raises RecordError, UsageError."""
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        if target.absolute() == source.absolute():
            raise UsageError(f"{target} is the trace that is being recorded: choose another place with -o")
        partial.mkdir(0o700, parents=True)
        try:
            figures = copy_events(source / EVENTS_NAME, partial / EVENTS_NAME)
            if (source / PACKED_NAME).exists():
                copy_packed(source / PACKED_NAME, partial / PACKED_NAME)
            copy_journal(source / JOURNAL_NAME, partial / JOURNAL_NAME)
            _copy_session(source, partial, why)
            make_way(target)
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except (OSError, ValueError, IndexError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "it is damaged"
        raise RecordError(f"cannot copy {source} to {target}: {reason}; choose another place with -o") from None
    return Dump(target, *figures)


def copy_events(source: Path, target: Path) -> tuple[int, int, int]:
    """Copy header and chunks, the newest first; chunks and bytes copied, chunks that were overtaken."""
    descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    new = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        header = np.frombuffer(os.pread(descriptor, records.EVENTS_HEADER.itemsize, 0), records.EVENTS_HEADER)[0].copy()
        size = int(header["chunk_bytes"])
        ring = int(header["features"]) & records.FEATURE_KEEP_LAST
        numbers = _newest_first(descriptor, header)
        written, total, overtaken = 0, 0, 0
        broken: dict[int, int] = {}
        for number, thread, sequence in numbers:
            if sequence < broken.get(thread, 0):
                overtaken += 1
                continue
            data = _read_chunk(descriptor, number * size, size, thread, sequence)
            if data is None and ring:
                broken[thread] = sequence
                overtaken += 1
            if data is None:  # of other recordings: it was packed meanwhile
                continue
            written += 1
            total += len(data) - _HEAD
            os.pwrite(new, data, written * size)
        os.ftruncate(new, (written + 1) * size)
        header["chunk_limit"] = written + 1
        header["ring_used"] = header["ring_hand"] = header["keep_ticks"] = header["allowed"] = 0
        header["next_chunk"] = max(int(header["next_chunk"]), written + 1)
        os.pwrite(new, header.tobytes(), 0)
        return written, total, overtaken
    finally:
        os.close(descriptor)
        os.close(new)


def _newest_first(descriptor: int, header: np.void) -> list[tuple[int, int, int]]:
    """Number, thread and sequence of the chunks that have an owner, the last claimed first."""
    size, found = int(header["chunk_bytes"]), []
    for number in range(1, min(used_chunks(header), os.fstat(descriptor).st_size // size)):
        chunk = _header(descriptor, number * size)
        if chunk is not None:
            found.append((number, int(chunk["thread"]), int(chunk["sequence"])))
    return sorted(found, key=lambda entry: -entry[2])


def _header(descriptor: int, offset: int) -> np.void | None:
    """The header of a chunk that has an owner."""
    data = os.pread(descriptor, _HEAD, offset)
    if len(data) < _HEAD:
        return None
    chunk: np.void = np.frombuffer(data, records.CHUNK_HEADER)[0]
    whole = chunk["magic"] == records.CHUNK_MAGIC and not int(chunk["flags"]) & _PREPARED
    return chunk if whole else None


def _read_chunk(descriptor: int, offset: int, size: int, thread: int, sequence: int) -> bytes | None:
    """A chunk with its header, as it was at one moment, without what is of an earlier owner; None when it has another
    owner by now.
    """

    def owned(chunk: np.void | None) -> bool:
        return chunk is not None and (int(chunk["thread"]), int(chunk["sequence"])) == (thread, sequence)

    chunk = _header(descriptor, offset)
    if chunk is None or not owned(chunk):
        return None
    used = int(chunk["used"])
    data = os.pread(descriptor, min(used or size, size) - _HEAD, offset + _HEAD)
    if not owned(_header(descriptor, offset)):
        return None
    chunk = chunk.copy()
    chunk["flags"] = 0
    return bytes(chunk.tobytes() + data.rstrip(b"\0"))


def copy_journal(source: Path, target: Path) -> None:
    """Copy the records written so far."""
    with source.open("rb") as file:
        header = np.frombuffer(file.read(records.JOURNAL_HEADER.itemsize), records.JOURNAL_HEADER)[0].copy()
        size = min(int(header["tail"]), records.JOURNAL_BYTES)
        file.seek(0)
        data = bytearray(file.read(size))
    header["tail"] = len(data)
    data[: header.nbytes] = header.tobytes()
    _write_private(target, bytes(data))


def _copy_session(source: Path, target: Path, why: str) -> None:
    """The description, with an end at this moment, then the files it names."""
    state: dict[str, Any] = json.loads((source / SESSION_NAME).read_bytes())
    state["status"] = "complete"
    state.setdefault("clock", {})["end"] = asdict(clock_pair())
    state["dump"] = {
        "of": str(source.absolute()),
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "why": why,
    }
    _write_private(target / SESSION_NAME, json.dumps(state, indent=1).encode())
    (target / PLANS_NAME).mkdir(0o700)
    with suppress(FileNotFoundError):
        for path in (source / PLANS_NAME).iterdir():
            copy_private(path, target / PLANS_NAME / path.name)


def copy_packed(source: Path, target: Path) -> None:
    """Copy the whole records of a packed file, which may be growing."""
    from callscope.recording.pack import Packer  # it takes a while to load, and few traces have such a file

    copy_private(source, target)
    Packer(target).close()


def copy_private(source: Path, target: Path) -> None:
    """Copy a file so that only this user can read it."""
    shutil.copyfile(source, target)
    target.chmod(0o600)


def _write_private(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)

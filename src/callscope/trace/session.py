"""session.json: what the recorder says of a session."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from callscope import format as records
from callscope.clock import ClockPair
from callscope.errors import TraceError

SESSION_NAME = "session.json"
FORMAT_NAME = "callscope-trace"
_MOST_BYTES = 64 << 20
_MOST_ID = 0x7FFF_FFFF


@dataclass(frozen=True)
class PlannedImage:
    """An image the recorder made a plan for. Its functions have the ids id_base .. id_base + function_count - 1.

    path: as it was when recorded. build_id: empty when the image has none. functions: the functions file, relative to
    the trace directory. span: bytes of address space. memory: the file in the trace directory it was planned from, when
    it unpacked itself; empty for others. arguments: the file of layouts of captured arguments, or
    empty.
    """

    id_base: int
    function_count: int
    path: str
    build_id: bytes
    functions: str
    span: int
    memory: str = ""
    arguments: str = ""


@dataclass(frozen=True)
class SessionFile:
    """The checked contents of session.json; `raw` is all of it, for people. start, end: clock pairs, or None."""

    raw: Mapping[str, Any] = field(default_factory=dict)
    version: int = records.TRACE_VERSION
    images: tuple[PlannedImage, ...] = ()
    start: ClockPair | None = None
    end: ClockPair | None = None


def check_version(version: object, what: str) -> int:
    """The version as a number. Raises TraceError when this callscope does not read it."""
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise TraceError(f"{what} has no valid format version: it was not written by callscope, or is damaged")
    if version > records.TRACE_VERSION:
        newest = records.TRACE_VERSION
        raise TraceError(
            f"{what} was written by a newer callscope (format {version}; "
            f"this one reads up to {newest}): update callscope"
        )
    if version < records.TRACE_VERSION_OLDEST:
        oldest = records.TRACE_VERSION_OLDEST
        raise TraceError(
            f"{what} was written by an older callscope (format {version}; "
            f"this one reads from {oldest}): record it again"
        )
    return version


def read_session(directory: Path, warnings: list[str]) -> SessionFile:
    """The trace's description; an empty one, and a warning, when it is missing or damaged.

    Raises TraceError when it belongs to something else or to a version that is not read.
    """
    path = directory / SESSION_NAME
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        warnings.append(f"{SESSION_NAME} is missing: the command, the clock and names may be unknown")
        return SessionFile()
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror or error}; check its permissions") from None
    try:
        raw = json.loads(data) if len(data) <= _MOST_BYTES else None
    except (ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict):
        warnings.append(f"{SESSION_NAME} is damaged: the command, the clock and names may be unknown")
        return SessionFile()
    if raw.get("format") != FORMAT_NAME:
        raise TraceError(f"{path} does not describe a callscope trace: give the directory that callscope record made")
    version = check_version(raw.get("version"), str(path))
    clock = raw.get("clock")
    clock = clock if isinstance(clock, dict) else {}
    images = raw.get("images")
    planned = [_image(entry) for entry in images] if isinstance(images, list) else []
    if None in planned:
        warnings.append(f"{SESSION_NAME} has damaged entries of images: some functions have no names")
    return SessionFile(
        raw=raw,
        version=version,
        images=tuple(image for image in planned if image is not None),
        start=_pair(clock.get("start")),
        end=_pair(clock.get("end")),
    )


def _number(value: object, largest: int) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= largest else None


def _pair(value: object) -> ClockPair | None:
    if not isinstance(value, dict):
        return None
    numbers = [_number(value.get(name), (1 << 64) - 1) for name in ("tsc", "monotonic_ns", "realtime_ns")]
    tsc, monotonic, realtime = numbers
    return None if tsc is None or monotonic is None or realtime is None else ClockPair(tsc, monotonic, realtime)


def _image(value: object) -> PlannedImage | None:
    if not isinstance(value, dict):
        return None
    id_base, count = (_number(value.get(name), _MOST_ID) for name in ("id_base", "function_count"))
    span = _number(value.get("span"), (1 << 48) - 1)
    path, functions, build_id, memory = (value.get(name) for name in ("path", "functions", "build_id", "memory"))
    arguments = value.get("arguments")
    if id_base is None or count is None or span is None or id_base + count > _MOST_ID:
        return None
    if not (isinstance(path, str) and isinstance(functions, str) and isinstance(build_id, str)):
        return None
    try:
        identity = bytes.fromhex(build_id)
    except ValueError:
        return None
    memory = memory if isinstance(memory, str) and _is_inside(memory) else ""
    arguments = arguments if isinstance(arguments, str) and _is_inside(arguments) else ""
    if not id_base or not _is_inside(functions):
        return None
    return PlannedImage(id_base, count, path, identity, functions, span, memory, arguments)


def _is_inside(path: str) -> bool:
    """Whether a relative path leads to nowhere outside of its directory."""
    return not Path(path).is_absolute() and ".." not in Path(path).parts and "\0" not in path

"""Source text beside functions: only of files that the trace names, and only what lies around a line."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from callscope.errors import TraceError
from callscope.reports.database import Database

LARGEST: Final = 8 << 20
"""Larger files are not read."""
LINES_AROUND: Final = 400
LONGEST_LINE: Final = 400
_FILES = (
    "SELECT DISTINCT file FROM functions WHERE file IS NOT NULL UNION SELECT file FROM sites WHERE file IS NOT NULL"
)


class Sources:
    """The source files of a trace's functions and call sites."""

    def __init__(self, database: Database) -> None:
        self._files = {row["file"] for row in database.rows(_FILES)}

    def add(self, frames: Iterable[Mapping[str, Any]]) -> None:
        """Name the files of these frames of captured stacks, too."""
        for frame in frames:
            inlined = frame.get("inlined") or frame.get("inlines") or ()
            self._files |= {place["file"] for place in (frame, *inlined) if place.get("file")}

    def text(self, file: str, line: int) -> dict[str, Any]:
        """file, line, first (number of the first line), lines. Raises TraceError when there is nothing to show."""
        if file not in self._files:
            raise TraceError("the trace names no such file")
        try:
            lines = _read(Path(file)).decode("utf-8", "replace").splitlines()
        except (OSError, ValueError):
            raise TraceError(f"{file} is not on this machine") from None
        first = max(min(line, len(lines)) - LINES_AROUND, 1)
        shown = [text[:LONGEST_LINE] for text in lines[first - 1 : first - 1 + 2 * LINES_AROUND]]
        return {"file": file, "line": line, "first": first, "lines": shown}


def _read(path: Path) -> bytes:
    """A regular file's bytes. Raises OSError for what is none or too large, ValueError for a path that cannot be."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST:
            raise OSError
        return file.read(LARGEST)

"""Private directories for sockets and other things of a recorder's life; those that a killed one left are removed.

Whoever owns such a directory holds a lock on it, which ends with its process whatever ends that.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from callscope.errors import RecordError
from callscope.recording.directory import hold

PREFIX: Final = "callscope-run-"
_RANDOM_BYTES: Final = 8
"""that mkdtemp adds"""
LONGEST_SOCKET_PATH: Final = 107
"""sun_path of unix(7), without its terminator"""
_NAME_BYTES: Final = 16
"""of a socket in it"""


class Scratch:
    """A new directory only this user can enter, with a path short enough for a socket in it, until it is removed."""

    def __init__(self) -> None:
        """Make it, and remove what killed recorders of this user left beside it. Raises RecordError."""
        try:
            base = Path(tempfile.gettempdir())
            if len(os.fsencode(base)) + 1 + len(PREFIX) + _RANDOM_BYTES + _NAME_BYTES > LONGEST_SOCKET_PATH:
                base = Path("/tmp")
            clear(base)
            self.path, self._guard = _make(base)
        except OSError as error:
            raise RecordError(
                f"cannot make a temporary directory: {error.strerror}; set TMPDIR to another place"
            ) from None

    def remove(self) -> None:
        """Remove it with all that is in it."""
        if self._guard >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._guard)
            self._guard = -1


def _make(base: Path) -> tuple[Path, int]:
    """A new directory and the descriptor that holds it. Until then another recorder may take it for one left behind."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        with suppress(BlockingIOError, FileNotFoundError):
            guard = hold(path)
            if os.path.lexists(path):
                return path, guard
            os.close(guard)


def clear(base: Path) -> None:
    """Remove the directories there that belong to this user and to no process any more."""
    with suppress(OSError), os.scandir(base) as entries:
        for entry in entries:
            if not entry.name.startswith(PREFIX) or not entry.is_dir(follow_symlinks=False):
                continue
            with suppress(OSError):
                if entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                    guard = hold(Path(entry.path))
                    shutil.rmtree(entry.path, ignore_errors=True)
                    os.close(guard)

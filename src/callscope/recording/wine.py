"""Windows programs on Linux: Wine runs our launcher, which starts them with the agent inside (native/launcher)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from callscope.clock import clock_pair
from callscope.errors import RecordError
from callscope.native import LAUNCHER_NAME, WINDOWS_AGENT_NAME, library_path

LOADERS = ("wine64", "wine")
DEBIAN_LOADER = Path("/usr/lib/wine/wine64")
"""where Debian's package wine64 has it when the package wine, whose script finds it, is not installed"""
START_FOLLOW = 1
"""CS_START_FOLLOW of native/inject/inject.h"""


def find_wine(environment: Mapping[str, str] = os.environ) -> str:
    """The program that runs Windows programs. Raises RecordError when there is none."""
    for name in LOADERS:
        found = shutil.which(name, path=environment.get("PATH"))
        if found is not None:
            return found
    if os.access(DEBIAN_LOADER, os.X_OK):
        return str(DEBIAN_LOADER)
    raise RecordError("this is a Windows program, and Wine is not installed: install it (Debian: apt install wine64)")


def launcher_command(
    wine: str, session: Path, mailbox: Path, program: str, arguments: tuple[str, ...], follow: bool
) -> tuple[str, ...]:
    """The command that runs `program` traced. `session`: the trace, `mailbox`: where questions go, absolute both."""
    library_path(WINDOWS_AGENT_NAME)  # the launcher loads it from its own directory
    now = clock_pair()
    return (
        wine,
        str(library_path(LAUNCHER_NAME)),
        "run",
        str(session),
        str(mailbox),
        str(now.realtime_ns - now.monotonic_ns),
        str(START_FOLLOW if follow else 0),
        "--",
        str(Path(program).absolute()),
        *arguments,
    )

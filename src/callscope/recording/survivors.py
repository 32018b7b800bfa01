"""Which processes still write to a trace after the recorded program has ended."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from callscope.recording.launch import SESSION_VARIABLE

_PROC = Path("/proc")
_START_TIME = 19
"""index of starttime among the fields of /proc/PID/stat that follow the name (proc(5))"""


@dataclass(frozen=True)
class Survivor:
    """A process of the session that runs on."""

    pid: int
    name: str


def find_survivors(events: Path, attached: bool = False) -> list[Survivor]:
    """The processes that write to the file `events`, or will as soon as their agent starts, by process id.

    Only processes started since this one are looked at, unless one was `attached`: no other can belong to its session.
    """
    own = 0 if attached else _started(os.getpid())
    found = []
    for entry in _PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError, ValueError):
            if _started(int(entry.name)) >= own and (_inherits(entry, events.parent) or _maps(entry, events)):
                found.append(Survivor(int(entry.name), (entry / "comm").read_text().rstrip("\n")))
    return sorted(found, key=lambda survivor: survivor.pid)


def _started(pid: int) -> int:
    """When a process started, in clock ticks since boot."""
    return int((_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[_START_TIME])


def _maps(process: Path, file: Path) -> bool:
    """Whether the process has the file mapped: by its path or, where a process sees another one, by inode and name."""
    inode, path, name = f" {file.stat().st_ino} ", f" {file}\n", f"/{file.name}\n"
    with (process / "maps").open(errors="replace") as lines:
        return any(line.endswith(path) or (inode in line and line.endswith(name)) for line in lines)


def _inherits(process: Path, session: Path) -> bool:
    """Whether the process got the session in its environment: just after exec it has nothing mapped yet."""
    return os.fsencode(f"{SESSION_VARIABLE}={session}") in (process / "environ").read_bytes().split(b"\0")

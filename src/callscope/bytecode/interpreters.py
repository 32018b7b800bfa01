"""Which CPython runs a file: by the magic number of a .pyc, or as asked for; found on the PATH and among pyenv's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from callscope.errors import RecordError, UsageError

Version = tuple[int, int]
"""Major and minor."""

SUPPORTED: Final[frozenset[Version]] = frozenset({(2, 7), *((3, minor) for minor in range(6, 15))})

# Lib/importlib/_bootstrap_external.py (CPython 3), Python/import.c (CPython 2): the first magic number of each version.
_FIRST_MAGIC: Final[tuple[tuple[int, Version], ...]] = (
    (3000, (3, 0)), (3141, (3, 1)), (3160, (3, 2)), (3190, (3, 3)), (3250, (3, 4)), (3320, (3, 5)), (3360, (3, 6)),
    (3390, (3, 7)), (3400, (3, 8)), (3420, (3, 9)), (3430, (3, 10)), (3450, (3, 11)), (3500, (3, 12)), (3550, (3, 13)),
    (3600, (3, 14)), (3650, (3, 15)), (3700, (3, 16)),
)  # fmt: skip
_FIRST_MAGIC_2: Final[tuple[tuple[int, Version], ...]] = (
    (62011, (2, 3)), (62041, (2, 4)), (62071, (2, 5)), (62151, (2, 6)), (62171, (2, 7)),
)  # fmt: skip
_LAST_MAGIC_2 = 62211
MAGIC_BYTES = 4
_PROBE = (
    "import sys; print('%d.%d %s %d' % (sys.version_info[0], sys.version_info[1], "
    "getattr(sys, 'implementation', None) and sys.implementation.name or sys.subversion[0].lower(), "
    "'t' in getattr(sys, 'abiflags', '')))"
)
_PROBE_SECONDS = 20


@dataclass(frozen=True)
class Interpreter:
    """A CPython that can be traced."""

    path: str
    version: Version


def magic_version(head: bytes) -> Version | None:
    """The version whose .pyc files begin with `head`; None when those of none do."""
    if len(head) < MAGIC_BYTES or head[2:MAGIC_BYTES] != b"\r\n":
        return None
    magic = int.from_bytes(head[:2], "little")
    table = _FIRST_MAGIC if magic < _FIRST_MAGIC[-1][0] else _FIRST_MAGIC_2 if magic <= _LAST_MAGIC_2 else ()
    return max((version for first, version in table if first <= magic), default=None)


def header_bytes(version: Version) -> int:
    """What comes before the marshal data of a .pyc: PEP 3147, 3151's size field, 552."""
    return 8 if version < (3, 3) else 12 if version < (3, 7) else 16


def find_version(version: Version) -> Interpreter:
    """A CPython of this version. Raises RecordError when there is none, or none can be traced."""
    name = ".".join(map(str, version))
    if version not in SUPPORTED:
        raise RecordError(f"bytecode of Python {name} cannot be traced: callscope knows CPython 2.7 and 3.6 to 3.14")
    for path in _candidates(version):
        if probe(path) == (version, True):
            return Interpreter(path, version)
    raise RecordError(f"there is no CPython {name} on the PATH or among pyenv's: install it, or name one with --python")


def find(wanted: str | None) -> Interpreter:
    """The interpreter for source files: a path, a name or a version such as 3.9; without one `python3` of the PATH, or
    the one that runs this. Raises UsageError or RecordError.
    """
    if wanted is None:
        for path in filter(None, (shutil.which("python3"), shutil.which("python"), sys.executable)):
            found = probe(path)
            if found is not None and found[1] and found[0] in SUPPORTED:
                return Interpreter(path, found[0])
        raise RecordError("there is no CPython 2.7 or 3.6 to 3.14 on the PATH: name one with --python")
    if re.fullmatch(r"\d\.\d{1,2}", wanted):
        major, minor = wanted.split(".")
        return find_version((int(major), int(minor)))
    path = shutil.which(wanted) or ""
    found = probe(path) if path else None
    if found is None:
        raise UsageError(f"--python {wanted} is no Python that runs: give a path, or a version such as 3.9")
    version, right_kind = found
    if not right_kind or version not in SUPPORTED:
        raise RecordError(
            f"{wanted} is not CPython 2.7 or 3.6 to 3.14 with the global interpreter lock: others cannot be traced"
        )
    return Interpreter(path, version)


def probe(path: str) -> tuple[Version, bool] | None:
    """An interpreter's version, and whether it is CPython with its lock; None when it does not run."""
    try:
        done = subprocess.run(
            [path, "-E", "-S", "-c", _PROBE], stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.fullmatch(rb"(\d+)\.(\d+) (\w+) (\d)\s*", done.stdout)
    if done.returncode != 0 or match is None:
        return None
    return (int(match[1]), int(match[2])), match[3] == b"cpython" and match[4] == b"0"


def _candidates(version: Version) -> Iterator[str]:
    """Paths that may be of this version, the likeliest first."""
    name = ".".join(map(str, version))
    if sys.version_info[:2] == version:
        yield sys.executable
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    by_pyenv = sorted((root / "versions").glob(f"{name}.*/bin/python"), key=_patch_level, reverse=True)
    for path in (shutil.which(f"python{name}"), *map(str, by_pyenv), shutil.which(f"python{version[0]}")):
        if path:
            yield path


def _patch_level(path: Path) -> int:
    match = re.fullmatch(r"\d+\.\d+\.(\d+)", path.parent.parent.name)
    return int(match[1]) if match else -1

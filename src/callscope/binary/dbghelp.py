"""Names and lines of Windows programs by the system's DbgHelp, which our launcher asks: symbolic has no build there.

DbgHelp is part of Windows, and Wine has one of its own; both read PDB files, Wine's reads DWARF, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from callscope.errors import ImageError
from callscope.native import LAUNCHER_NAME, library_path

VARIABLE = "CALLSCOPE_DBGHELP"
"""The program that runs the launcher where Windows is not: names it, and DbgHelp is asked there, too."""


class Found(NamedTuple):
    """A function that contains an address, as symbolic's SymCache gives it."""

    symbol: str
    full_path: str
    line: int


def is_chosen() -> bool:
    """Whether DbgHelp is to be asked instead of symbolic."""
    return bool(os.environ.get(VARIABLE)) or (sys.platform == "win32" and find_spec("symbolic") is None)


class DbgHelp:
    """The names of one image. A process of the launcher answers until this object is gone."""

    def __init__(self, image: Path, directories: Sequence[Path]) -> None:
        """directories: where PDBs are looked for, beside the image's own directory. Raises ImageError."""
        loader = os.environ.get(VARIABLE)
        search = ";".join(str(directory) for directory in directories if '"' not in str(directory))
        command = [str(library_path(LAUNCHER_NAME)), "symbols", search or ".", "--", str(image)]
        pipe = subprocess.PIPE
        self._known: dict[int, list[Found]] = {}
        try:
            self._process = subprocess.Popen(
                [*([loader] if loader else []), *command], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise ImageError(f"{image}: DbgHelp cannot be asked: {error.strerror}") from None

    def __del__(self) -> None:
        process = getattr(self, "_process", None)
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            stream.close()
        process.wait()

    def lookup(self, address: int) -> list[Found]:
        """The function at a relative address, in a list; empty when nothing is known."""
        if address not in self._known:
            self._known[address] = self._ask(address)
        return self._known[address]

    def _ask(self, address: int) -> list[Found]:
        asked, answers = self._process.stdin, self._process.stdout
        assert asked is not None and answers is not None
        try:
            asked.write(b"%x\n" % address)
            asked.flush()
            answer = answers.readline()
        except OSError:
            return []  # it has ended: the image cannot be read
        fields = answer.decode("utf-8", "replace").rstrip("\r\n").split("\t")
        if len(fields) != 4 or not fields[1]:
            return []
        _, name, line, file = fields
        return [Found(name, file, int(line) if line.isdigit() else 0)]

"""Windows programs for tests, run by Wine in a prefix of their own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from callscope.binary.open import open_image
from callscope.errors import RecordError
from callscope.recording.wine import find_wine
from tests.builders.compilers import MINGW, have


def lacking() -> str | None:
    """Why no Windows program can be run here; None when it can."""
    try:
        find_wine()
    except RecordError as error:
        return str(error)
    return None if have(*MINGW.values()) else "mingw-w64 is not installed (Debian: g++-mingw-w64-x86-64-win32)"


def make_prefix(directory: Path) -> dict[str, str]:
    """The environment of a new Wine prefix in `directory`, ready to run programs."""
    environment = {"WINEPREFIX": str(directory / "wine"), "WINEDEBUG": "-all", "NODE_SKIP_PLATFORM_CHECK": "1"}
    for arguments in (["wineboot", "-i"], ["winecfg", "-v", "win10"]):
        subprocess.run(
            [find_wine(), *arguments], env=os.environ | environment, capture_output=True, check=True, timeout=240
        )
    return environment


@contextmanager
def keep_alive(program: Path, environment: dict[str, str]) -> Iterator[None]:
    """Keep Wine's services running, from before the block on: a program that has to start them leaves them its output,
    so that who reads that would wait for the services' end.
    """
    nowhere = subprocess.DEVNULL
    with subprocess.Popen(
        [find_wine(), str(program), "sleep", "3600"],
        env=os.environ | environment,
        stdin=nowhere,
        stdout=subprocess.PIPE,
        stderr=nowhere,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\r\n"
            yield
        finally:
            process.kill()


def symbol_rva(program: Path, name: str) -> int:
    """Where a function of a program built by mingw lies, relative to its image."""
    lines = subprocess.run(["nm", str(program)], capture_output=True, text=True, check=True).stdout.splitlines()
    addresses = {words[2]: int(words[0], 16) for words in map(str.split, lines) if len(words) == 3}
    return addresses[name] - open_image(program).base

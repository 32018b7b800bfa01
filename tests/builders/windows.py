"""Windows programs for tests, run by Wine in a prefix of their own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from callscope.binary.open import open_image
from callscope.errors import RecordError
from callscope.recording.wine import find_wine
from tests.builders.compilers import MINGW, TARGETS, compile_program, have
from tests.builders.tracing import Outcome, run_plain, run_traced, traced_threads


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


@dataclass(frozen=True)
class Windows:
    """A Wine prefix and the programs of a test module. `cache`: of plans."""

    environment: dict[str, str]
    programs: dict[str, Path]
    plugin: Path
    cache: Path

    def plain(self, *command: str | Path) -> Outcome:
        """Run a program untraced."""
        return run_plain([find_wine(), *command], env=os.environ | self.environment)

    def traced(self, trace: Path, *command: str | Path, **recording: object) -> Outcome:
        """Record a program."""
        return run_traced(command, trace, self.cache, recording=recording, env=self.environment)


def compile_windows(name: str, output: Path, *flags: str, compiler: str = "mingw") -> Path:
    """`output`, built from a file of tests/targets."""
    return compile_program([TARGETS / name], output, ["-O2", *flags], compiler)


def calls_of(trace: Path, program: Path, function: str, rva: int | None = None) -> int:
    """How many calls of a function the trace has; `rva`: where it lies, if the program does not say."""
    rva = symbol_rva(program, function) if rva is None else rva
    return sum(int((thread.addresses == rva).sum()) for thread in traced_threads(trace, program.name))


def same(plain: Outcome, traced: Outcome) -> None:
    """Assert that a program did the same. Standard error is left out: Wine's own programs write there, too."""
    assert traced.output == plain.output
    assert traced.status == plain.status, traced.errors
